"""Scores of predictions: accuracy, F1 and the one number that chooses a model.

It knows class indices only. Definitions follow scikit-learn: macro-F1 averages over the classes that occur in
the truth or in the predictions (https://scikit-learn.org/stable/modules/model_evaluation.html).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from training.dataset import MISSING

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class HeadMetrics:
    """How well one head answers; fractions of 1.

    Attributes:
        count: Labelled texts the figures are over.
        accuracy: Share of right answers.
        macro_f1: Mean F1 over classes.
        majority_accuracy: Accuracy of always answering the commonest class of the training texts.
        majority_macro_f1: Its macro-F1.
    """

    count: int
    accuracy: float
    macro_f1: float
    majority_accuracy: float
    majority_macro_f1: float

    def to_dict(self) -> dict[str, float]:
        """Return the figures by name."""
        return asdict(self)


def confusion(truth: Labels, predicted: Labels, classes: int) -> NDArray[np.int64]:
    """Count answers, (true class, predicted class), over the labelled texts."""
    known = truth != MISSING
    flat = truth[known] * classes + predicted[known]
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def macro_f1(counts: NDArray[np.int64]) -> float:
    """Average F1 over the classes that occur in a confusion matrix; 0 for an empty one."""
    right = np.diag(counts).astype(np.float64)
    occurring = counts.sum(axis=0) + counts.sum(axis=1)
    present = occurring > 0
    return float((2 * right[present] / occurring[present]).mean()) if present.any() else 0.0


def measure_head(truth: Labels, predicted: Labels, classes: int, majority: int) -> HeadMetrics:
    """Score one head.

    Args:
        truth: Class indices, (texts,); -1 has no label and does not count.
        predicted: Class indices, (texts,).
        classes: Number of classes.
        majority: The commonest class of the training texts.
    """
    counts = confusion(truth, predicted, classes)
    baseline = confusion(truth, np.full_like(predicted, majority), classes)
    total = max(int(counts.sum()), 1)
    return HeadMetrics(
        count=int(counts.sum()),
        accuracy=float(np.trace(counts)) / total,
        macro_f1=macro_f1(counts),
        majority_accuracy=float(np.trace(baseline)) / total,
        majority_macro_f1=macro_f1(baseline),
    )


def majority_class(labels: Labels, classes: int) -> int:
    """Return the commonest class; the first of several."""
    return int(np.bincount(labels[labels != MISSING], minlength=classes).argmax())


def joint_accuracy(truth: Mapping[str, Labels], predicted: Mapping[str, Labels]) -> float:
    """Share of the fully labelled texts for which every head is right; 0 where there are none."""
    known = np.logical_and.reduce([labels != MISSING for labels in truth.values()])
    right = np.logical_and.reduce([truth[head] == predicted[head] for head in truth])
    return float(right[known].mean()) if known.any() else 0.0


def selection_score(metrics: Mapping[str, HeadMetrics], score_weights: Mapping[str, float]) -> float:
    """Average macro-F1 over heads: the number that chooses epochs and trials.

    Args:
        metrics: Of each head.
        score_weights: Of each head; empty means equal, a head that is left out weighs 0.
    """
    weights = {head: score_weights.get(head, 0.0) if score_weights else 1.0 for head in metrics}
    return sum(weights[head] * metrics[head].macro_f1 for head in metrics) / sum(weights.values())
