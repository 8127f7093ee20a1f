"""Heads over ordered classes: CORN, a chain of "above class k, given above class k-1?".

A CORN head has one output fewer than classes. Turned into the log-probabilities of the classes it answers like any other head, and its
loss is their negative log-likelihood, which for this chain is the sum of the paper's conditional binary losses.

Source: Shi, Cao and Raschka 2021, Deep Neural Networks for Rank-Consistent Ordinal Regression Based on Conditional Probabilities.
"""

import torch
from torch.nn import functional

from training.data.labels import MISSING


def class_log_probabilities(steps: torch.Tensor) -> torch.Tensor:
    """Turn the logits of a chain into log-probabilities of classes; the probability of "above class k" never rises with k.

    Args:
        steps: Logits of "above class k, given above class k-1", (texts, classes - 1).

    Returns:
        (texts, classes); their exponentials sum to 1.
    """
    climbed = functional.pad(functional.logsigmoid(steps).cumsum(dim=-1), (1, 0))
    stayed = functional.pad(functional.logsigmoid(-steps), (0, 1))
    return climbed + stayed


def count_steps(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Count the binary questions the labelled texts answer: class k answers k + 1, the highest class one fewer.

    Args:
        labels: Class indices, (texts,); -1 has no label.
        classes: Number of classes.
    """
    known = labels[labels != MISSING]
    return (known + 1).clamp(max=classes - 1).sum()
