"""Scores of predictions: accuracy, F1 and the one number that chooses a model.

It knows class indices only. Definitions follow scikit-learn: macro-F1 averages over the classes that occur in
the truth or in the predictions (https://scikit-learn.org/stable/modules/model_evaluation.html).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.labels import MISSING
from training.search_settings import Metric

Labels = NDArray[np.int64]
Counts = NDArray[np.int64]
Logits = dict[str, NDArray[np.float32]]
Probabilities = NDArray[np.float32]


@dataclass(frozen=True)
class HeadMetrics:
    """How well one head answers; fractions of 1 unless said otherwise.

    Attributes:
        count: Labelled texts the figures are over.
        accuracy: Share of right answers.
        macro_f1: Mean F1 over classes.
        weighted_f1: The same, each class weighing by its true texts.
        log_loss: Mean negative log-probability of the true class, in nats; 0 is best.
        quadratic_weighted_kappa: Agreement beyond chance, errors weighing by their squared distance, -1 to 1; ordered classes only.
        majority_accuracy: Accuracy of always answering the commonest class of the training texts.
        majority_macro_f1: Its macro-F1.
    """

    count: int
    accuracy: float
    macro_f1: float
    weighted_f1: float
    log_loss: float
    quadratic_weighted_kappa: float | None
    majority_accuracy: float
    majority_macro_f1: float

    def to_dict(self) -> dict[str, float]:
        """Return the figures by name."""
        return asdict(self)


def confusion(truth: Labels, predicted: Labels, classes: int) -> Counts:
    """Count answers, (true class, predicted class), over the labelled texts."""
    known = truth != MISSING
    flat = truth[known] * classes + predicted[known]
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def class_f1(counts: Counts) -> NDArray[np.float64]:
    """Return F1 class by class, (classes,); 0 for a class that occurs neither in the truth nor in the answers."""
    occurring = counts.sum(axis=0) + counts.sum(axis=1)
    scores: NDArray[np.float64] = 2 * np.diag(counts).astype(np.float64) / np.maximum(occurring, 1)
    return scores


def macro_f1(counts: Counts) -> float:
    """Average F1 over the classes that occur in a confusion matrix; 0 for an empty one."""
    present = counts.sum(axis=0) + counts.sum(axis=1) > 0
    return float(class_f1(counts)[present].mean()) if present.any() else 0.0


def weighted_f1(counts: Counts) -> float:
    """Average F1 over classes, each weighing by its true texts; 0 for an empty matrix."""
    support = counts.sum(axis=1)
    return float((class_f1(counts) * support).sum() / max(int(support.sum()), 1))


def quadratic_weighted_kappa(counts: Counts) -> float:
    """Compare squared distances of answers with those of answers by chance; 0 where chance cannot err either.

    Source:
        Cohen 1968, Weighted kappa.
    """
    classes = np.arange(len(counts))
    distance = (classes[:, None] - classes[None, :]) ** 2
    by_chance = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / max(int(counts.sum()), 1)
    expected = float((distance * by_chance).sum())
    return 1.0 - float((distance * counts).sum()) / expected if expected else 0.0


def log_loss(truth: Labels, probabilities: Probabilities) -> float:
    """Average the negative log-probability of the true class over the labelled texts; 0 where there are none."""
    known = truth != MISSING
    if not known.any():
        return 0.0
    chosen = probabilities[known, truth[known]].astype(np.float64)
    # A float32 probability of 0 stands for anything below its resolution.
    return float(-np.log(np.maximum(chosen, np.finfo(np.float32).eps)).mean())


def measure_head(truth: Labels, probabilities: Probabilities, majority: int, *, is_ordered: bool = False) -> HeadMetrics:
    """Score one head.

    Args:
        truth: Class indices, (texts,); -1 has no label and does not count.
        probabilities: (texts, classes); the answer is the most probable class.
        majority: The commonest class of the training texts.
        is_ordered: The classes have a natural order.
    """
    classes = probabilities.shape[1]
    counts = confusion(truth, probabilities.argmax(axis=1), classes)
    baseline = confusion(truth, np.full_like(truth, majority), classes)
    total = max(int(counts.sum()), 1)
    return HeadMetrics(
        count=int(counts.sum()),
        accuracy=float(np.trace(counts)) / total,
        macro_f1=macro_f1(counts),
        weighted_f1=weighted_f1(counts),
        log_loss=log_loss(truth, probabilities),
        quadratic_weighted_kappa=quadratic_weighted_kappa(counts) if is_ordered else None,
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


def head_score(figures: Mapping[str, Any], metric: Metric) -> float:
    """Return a head's metric as a number where more is better; a log loss becomes exp(-log_loss), between 0 and 1.

    Args:
        figures: Of `HeadMetrics.to_dict`.
        metric: Its name.
    """
    value = float(figures[metric])
    return math.exp(-value) if metric == "log_loss" else value


def head_scores(figures: Mapping[str, Mapping[str, Any]], score_metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Return every head's score; a head without a metric of its own has macro-F1."""
    return {head: head_score(one, score_metrics.get(head, "macro_f1")) for head, one in figures.items()}


def selection_score(scores: Mapping[str, float], score_weights: Mapping[str, float]) -> float:
    """Average the heads' scores: the number that chooses epochs and trials.

    Args:
        scores: Of `head_scores`.
        score_weights: Of each head; empty means equal, a head that is left out weighs 0.
    """
    weights = {head: score_weights.get(head, 0.0) if score_weights else 1.0 for head in scores}
    return sum(weights[head] * score for head, score in scores.items()) / sum(weights.values())


def has_score(heads: Iterable[str], score_weights: Mapping[str, float]) -> bool:
    """Whether any of the heads counts in the selection score."""
    return any(score_weights.get(head, 0.0) > 0 for head in heads) if score_weights else any(True for _ in heads)


def probabilities(logits: NDArray[np.float32], temperature: float = 1.0) -> Probabilities:
    """Turn logits into probabilities, softmax(logits / temperature), row by row.

    Args:
        logits: (texts, classes).
        temperature: Above 1 softens, below 1 sharpens; the order of classes stays.

    Source:
        Guo et al. 2017, On Calibration of Modern Neural Networks.
    """
    scaled = logits.astype(np.float32) / np.float32(temperature)
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    result: Probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result
