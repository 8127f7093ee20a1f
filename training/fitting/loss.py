"""The training loss: cross-entropy per head, masked where a label is missing, weighted and summed.

It never serves to choose a model: a small loss weight would make any model look good.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from training.data.labels import MISSING
from training.fit_settings import ClassWeighting, HeadLoss
from training.network.ordinal import count_steps


def head_loss(
    logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor | None = None, loss: HeadLoss = "softmax"
) -> torch.Tensor:
    """Average the cross-entropy over the labelled texts of a batch.

    Args:
        logits: (texts, classes).
        labels: Class indices, (texts,); -1 has no label.
        class_weights: (classes,), or none.
        loss: With `corn` the average is over the binary questions the labelled texts answer.

    Returns:
        A scalar; exactly 0 with zero gradients where no text is labelled (a mean would be NaN there).
    """
    return summed_loss(logits, labels, class_weights) / loss_count(labels, logits.shape[1], loss)


def summed_loss(logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor | None = None) -> torch.Tensor:
    """Sum the cross-entropy over the labelled texts; see `head_loss`."""
    return functional.cross_entropy(logits.float(), labels, weight=class_weights, ignore_index=MISSING, reduction="sum")


def loss_count(labels: torch.Tensor, classes: int, loss: HeadLoss = "softmax") -> torch.Tensor:
    """Count what a head's loss is averaged over, at least 1: labelled texts, or with `corn` their binary questions."""
    count = count_steps(labels, classes) if loss == "corn" else (labels != MISSING).sum()
    return count.clamp(min=1)


def normalise_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Scale loss weights to sum to the number of heads, so that tuning them does not tune the learning rate."""
    scale = len(weights) / sum(weights.values())
    return {head: weight * scale for head, weight in weights.items()}


def total_loss(losses: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """Sum the heads' losses, each times its weight."""
    return torch.stack([weights[head] * loss for head, loss in losses.items()]).sum()


def class_weights(weighting: ClassWeighting, labels: NDArray[np.int64], classes: int, loss: HeadLoss = "softmax") -> NDArray[np.float32]:
    """Weigh each class, scaled to a mean of 1 over what a loss is averaged over, for it is not averaged over weights.

    These are the labelled texts, or with `corn` the binary questions that they answer: the text of a higher class answers more of them.

    Args:
        weighting: See `HeadSettings`.
        labels: Class indices of the training texts, -1 for none.
        classes: Number of classes; one without texts weighs as one with a single text.
        loss: Of the head.

    Returns:
        (classes,), float32; all 1 with `none`.
    """
    if weighting == "none":
        return np.ones(classes, np.float32)
    counts = np.bincount(labels[labels != MISSING], minlength=classes).astype(np.float64)
    known = np.maximum(counts, 1.0)
    weights = 1.0 / (np.sqrt(known) if weighting == "inverse_sqrt" else known)
    averaged = counts * (_questions(classes) if loss == "corn" else 1.0)
    scaled: NDArray[np.float32] = (weights * averaged.sum() / max(float((weights * averaged).sum()), 1e-12)).astype(np.float32)
    return scaled


def _questions(classes: int) -> NDArray[np.int64]:
    """Return how many binary questions a text of each class answers, (classes,)."""
    return np.array([int(count_steps(torch.tensor([label]), classes)) for label in range(classes)])
