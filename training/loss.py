"""The training loss: cross-entropy per head, masked where a label is missing, weighted and summed.

It never serves to choose a model: a small loss weight would make any model look good.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from training.dataset import MISSING


def head_loss(logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor | None = None) -> torch.Tensor:
    """Average the cross-entropy over the labelled texts of a batch.

    Args:
        logits: (texts, classes).
        labels: Class indices, (texts,); -1 has no label.
        class_weights: (classes,), or none.

    Returns:
        A scalar; exactly 0 with zero gradients where no text is labelled (a mean would be NaN there).
    """
    total = functional.cross_entropy(logits.float(), labels, weight=class_weights, ignore_index=MISSING, reduction="sum")
    return total / (labels != MISSING).sum().clamp(min=1)


def normalise_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Scale loss weights to sum to the number of heads, so that tuning them does not tune the learning rate."""
    scale = len(weights) / sum(weights.values())
    return {head: weight * scale for head, weight in weights.items()}


def total_loss(losses: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """Sum the heads' losses, each times its weight."""
    return torch.stack([weights[head] * loss for head, loss in losses.items()]).sum()


def inverse_sqrt_weights(labels: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Weigh each class by one over the root of its count, scaled to a mean of 1 over the labelled texts.

    Args:
        labels: Class indices of the training texts, -1 for none.
        classes: Number of classes; one without texts weighs as one with a single text.

    Returns:
        (classes,), float32.
    """
    counts = np.bincount(labels[labels != MISSING], minlength=classes).astype(np.float64)
    weights = 1.0 / np.sqrt(np.maximum(counts, 1.0))
    scaled: NDArray[np.float32] = (weights * counts.sum() / max(float((weights * counts).sum()), 1e-12)).astype(np.float32)
    return scaled
