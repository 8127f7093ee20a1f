"""Calibration: one temperature a head, and how far a head's confidence lies from its accuracy.

The confidence of an answer is the probability of the class that is answered. It knows logits and class indices, not where they
come from.

Sources: Guo et al. 2017, On Calibration of Modern Neural Networks (temperature scaling, expected calibration error); Naeini et al. 2015,
Obtaining Well Calibrated Probabilities Using Bayesian Binning (the error's definition).
"""

import math
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from training.data.labels import MISSING
from training.judging.metrics import HeadMetrics, Labels, Probabilities, measure_head, probabilities
from training.judging.shares import confidence_bins
from training.search_settings import Metric

LOWEST_TEMPERATURE = 0.05
HIGHEST_TEMPERATURE = 20.0
# Smaller gains in nats are float noise.
_LEAST_GAIN = 1e-9
# More would take longer, and fewer leave less to fit a temperature on than a version has.
_PARTS = 5


class Bin(TypedDict):
    """The answers whose confidence lies above `low` and not above `high`; null figures where there are none."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


def fit_temperature(logits: NDArray[np.float32], labels: Labels) -> float:
    """Find the temperature that minimises the log loss of softmax(logits / temperature) over the labelled texts.

    Args:
        logits: (texts, classes).
        labels: Class indices, (texts,); -1 has no label and does not count.

    Returns:
        Between 0.05 and 20. Exactly 1 where no text has a label, where no other temperature is better, and where every answer is
        right: the log loss would then fall for ever as the temperature does, and say nothing about the next text.
    """
    known = labels != MISSING
    found, truth = logits[known].astype(np.float64), labels[known]
    if not len(truth) or bool((found.argmax(axis=1) == truth).all()):
        return 1.0

    # No exponential is above 1 then, and candidates for a head are judged so very often.
    found -= found.max(axis=1, keepdims=True)
    own = found[np.arange(len(truth)), truth]

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float((np.log(np.exp(found * scale).sum(axis=1)) - own * scale).mean())

    # Convex in 1/temperature, so it has one valley in the logarithm too.
    bounds = (math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE))
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return math.exp(float(best.x)) if loss(0.0) - float(best.fun) > _LEAST_GAIN else 1.0


def judged_probabilities(logits: NDArray[np.float32], labels: Labels, metric: Metric) -> Probabilities:
    """Turn logits into the probabilities that a head is judged by where models are compared.

    A version divides logits by a temperature, and of two models the one whose answers are calibrated easily can be better than the one
    that happens to be calibrated now. So with a log loss each text has the temperature that others have: a fifth of the texts that of the
    other four. One fitted on the same texts would flatter. No other metric sees a temperature, and none is fitted.

    Args:
        logits: (texts, classes).
        labels: Class indices, (texts,); -1 has no label.
        metric: Of the head.

    Returns:
        (texts, classes); answers are those of the logits.
    """
    if metric != "log_loss":
        return probabilities(logits)
    known = np.flatnonzero(labels != MISSING)
    # Texts may lie in an order that fifths of them would share.
    parts = np.full(len(labels), -1)
    parts[known] = np.random.default_rng(0).permutation(len(known)) % _PARTS
    found = probabilities(logits)
    for part in range(_PARTS):
        own, others = np.flatnonzero(parts == part), np.flatnonzero((parts != part) & (parts >= 0))
        if len(own):
            found[own] = probabilities(logits[own], fit_temperature(logits[others], labels[others]))
    return found


def measured(truth: Labels, logits: NDArray[np.float32], majority: int, metric: Metric, *, is_ordered: bool = False) -> HeadMetrics:
    """Score one head where models are compared; see `judged_probabilities`, and `metrics.measure_head` for the rest.

    Args:
        truth: Class indices, (texts,); -1 has no label and does not count.
        logits: (texts, classes).
        majority: The commonest class of the training texts.
        metric: Of the head.
        is_ordered: The classes have a natural order.
    """
    return measure_head(truth, judged_probabilities(logits, truth, metric), majority, is_ordered=is_ordered)


def expected_calibration_error(probabilities: Probabilities, labels: Labels, bins: int = 15) -> float:
    """Average |accuracy - confidence| over bins of equal width, each weighing by its answers; 0 where no text has a label.

    Args:
        probabilities: (texts, classes).
        labels: Class indices, (texts,); -1 has no label and does not count.
        bins: How many between 0 and 1.
    """
    counts, confidences, rights = _binned(probabilities, labels, bins)
    return float(np.abs(rights - confidences).sum() / max(int(counts.sum()), 1))


def reliability(probabilities: Probabilities, labels: Labels, bins: int = 10) -> list[Bin]:
    """Tell, bin by bin of equal width, how confident the answers are and how many of them are right; lowest first.

    Args:
        probabilities: (texts, classes).
        labels: Class indices, (texts,); -1 has no label and does not count.
        bins: How many between 0 and 1.
    """
    counts, confidences, rights = _binned(probabilities, labels, bins)
    return [
        Bin(
            low=number / bins,
            high=(number + 1) / bins,
            count=int(count),
            confidence=float(confidences[number] / count) if count else None,
            accuracy=float(rights[number] / count) if count else None,
        )
        for number, count in enumerate(counts)
    ]


def _binned(probabilities: Probabilities, labels: Labels, bins: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Count answers, sum their confidences and count the right ones, bin by bin."""
    known = labels != MISSING
    confidence = probabilities[known].max(axis=1).astype(np.float64)
    right = (probabilities[known].argmax(axis=1) == labels[known]).astype(np.float64)
    # Open below and closed above, as in both papers.
    number = confidence_bins(confidence, bins)
    counts = np.bincount(number, minlength=bins).astype(np.int64)
    sums = [np.bincount(number, one, bins).astype(np.float64) for one in (confidence, right)]
    return counts, sums[0], sums[1]
