"""Bootstrap: how far a score on these texts, and the difference of two, could lie elsewhere on others like them.

A statistic maps the indices of drawn texts to a number. Texts are drawn with replacement; texts of one group are drawn together, as the
split kept them together. It knows neither models nor heads: `score_of` makes the statistic of one head's answers.

Sources: Efron and Tibshirani 1993, An Introduction to the Bootstrap (percentile interval, clusters); Koehn 2004, Statistical Significance
Tests for Machine Translation Evaluation (pairing: both sides see the same texts); Bouthillier et al. 2021, Accounting for Variance in
Machine Learning Benchmarks (training runs vary too); Rao and Wu 1988, Resampling Inference with Complex Survey Data (drawing one run
fewer than there are).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.data.labels import MISSING
from training.judging.metrics import (
    Labels,
    Probabilities,
    macro_f1,
    quadratic_weighted_kappa,
    selection_score,
    weighted_f1,
)
from training.search_settings import Metric

Drawn = NDArray[np.int64]
Statistic = Callable[[Drawn], float]
Verdict = Literal["better", "worse", "not distinguishable"]

RESAMPLES = 2000
LEAST_UNITS = 20
SEED = 7
# The ends of a 95 % interval.
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Difference:
    """What lies between our score and theirs.

    Attributes:
        ours: Mean over our runs, on all texts.
        theirs: Mean over their runs.
        difference: Ours less theirs.
        low: Lower end of its 95 % interval.
        high: Upper end.
        verdict: `better` or `worse` where the interval leaves out 0 and at least `LEAST_UNITS` of what is drawn have a label.
    """

    ours: float
    theirs: float
    difference: float
    low: float
    high: float
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


def interval(
    statistic: Statistic, texts: int, *, resamples: int = RESAMPLES, seed: int = SEED, groups: Sequence[str] | None = None
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a statistic.

    Args:
        statistic: Of drawn texts.
        texts: How many there are.
        resamples: How often texts are drawn.
        seed: Of the draws.
        groups: Of each text; those of one group are drawn together, "" is a group of its own for each text.
    """
    generator = np.random.default_rng(seed)
    return _middle([statistic(drawn) for drawn in _draws(texts, groups, resamples, generator)])


def paired_difference(
    ours: Sequence[Statistic],
    theirs: Sequence[Statistic],
    texts: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    groups: Sequence[str] | None = None,
    known: Sequence[NDArray[np.bool_]] = (),
) -> Difference:
    """Compare two sides on the same texts, each side by the mean over its training runs.

    Every resample draws the texts once for both sides, and on each side the runs, so that the interval holds the noise of texts and of
    seeds. A side of one run has no noise of seeds to show.

    Args:
        ours: One statistic a run.
        theirs: One statistic a run.
        texts: How many there are.
        resamples: How often texts and runs are drawn.
        seed: Of the draws.
        groups: See `interval`.
        known: For each head that is compared, which texts have a label, (texts,); without any, all have.
    """
    generator = np.random.default_rng(seed)
    differences = [
        _mean_of_drawn(ours, drawn, generator) - _mean_of_drawn(theirs, drawn, generator)
        for drawn in _draws(texts, groups, resamples, generator)
    ]
    everything = np.arange(texts)
    ours_mean, theirs_mean = (float(np.mean([statistic(everything) for statistic in side])) for side in (ours, theirs))
    low, high = _middle(differences)
    verdict: Verdict = "better" if low > 0 else "worse" if high < 0 else "not distinguishable"
    if min(_units(one, groups) for one in known or [np.ones(texts, dtype=bool)]) < LEAST_UNITS:
        # So few can agree by chance, and then the interval has no width: one group is the same in every draw.
        verdict = "not distinguishable"
    return Difference(ours_mean, theirs_mean, ours_mean - theirs_mean, low, high, verdict)


def score_of(truth: Labels, probabilities: Probabilities, metric: Metric) -> Statistic:
    """Make the statistic of one head's answers, as `metrics.head_score` scores them: more is better.

    Args:
        truth: Class indices, (texts,); -1 has no label and does not count.
        probabilities: (texts, classes).
        metric: Its name; a log loss becomes exp(-log_loss).
    """
    if metric == "log_loss":
        return _likelihood_of(truth, probabilities)
    classes = probabilities.shape[1]
    # One number a text stands for truth and answer; texts without a label share the last.
    codes = np.where(truth == MISSING, classes * classes, truth * classes + probabilities.argmax(axis=1))
    score = _SCORES[metric]

    def statistic(drawn: Drawn) -> float:
        counts = np.bincount(codes[drawn], minlength=classes * classes + 1)[:-1]
        return score(counts.reshape(classes, classes)) if counts.any() else math.nan

    return statistic


def joint_accuracy_of(truth: Mapping[str, Labels], probabilities: Mapping[str, Probabilities]) -> Statistic:
    """Make the statistic of `metrics.joint_accuracy`: fully labelled texts for which every head is right."""
    known = np.logical_and.reduce([labels != MISSING for labels in truth.values()])
    right = np.logical_and.reduce([labels == probabilities[head].argmax(axis=1) for head, labels in truth.items()])

    def statistic(drawn: Drawn) -> float:
        count = int(known[drawn].sum())
        return float((right & known)[drawn].sum()) / count if count else math.nan

    return statistic


def selection_score_of(scores: Mapping[str, Statistic], score_weights: Mapping[str, float]) -> Statistic:
    """Make the statistic of `metrics.selection_score` from those of the heads."""
    return lambda drawn: selection_score({head: score(drawn) for head, score in scores.items()}, score_weights)


def _accuracy(counts: NDArray[np.int64]) -> float:
    return float(np.trace(counts) / max(int(counts.sum()), 1))


_SCORES: dict[str, Callable[[NDArray[np.int64]], float]] = {
    "accuracy": _accuracy,
    "macro_f1": macro_f1,
    "weighted_f1": weighted_f1,
    "quadratic_weighted_kappa": quadratic_weighted_kappa,
}


def _likelihood_of(truth: Labels, probabilities: Probabilities) -> Statistic:
    known = truth != MISSING
    chosen = probabilities[np.arange(len(truth)), np.where(known, truth, 0)].astype(np.float64)
    losses = np.where(known, -np.log(np.maximum(chosen, np.finfo(np.float32).eps)), 0.0)

    def statistic(drawn: Drawn) -> float:
        count = int(known[drawn].sum())
        return math.exp(-float(losses[drawn].sum()) / count) if count else math.nan

    return statistic


def _draws(texts: int, groups: Sequence[str] | None, resamples: int, generator: np.random.Generator) -> Iterator[Drawn]:
    """Draw texts, or whole groups of them, as many as there are."""
    if groups is None:
        for _ in range(resamples):
            yield generator.integers(texts, size=texts)
        return
    members, starts, sizes = _members(groups)
    for _ in range(resamples):
        drawn = generator.integers(len(sizes), size=len(sizes))
        lengths = sizes[drawn]
        # Every drawn group's texts, without a list a group: where each group begins, and a count up from there.
        ends = np.cumsum(lengths)
        yield members[np.repeat(starts[drawn] - (ends - lengths), lengths) + np.arange(ends[-1])]


def _units(known: NDArray[np.bool_], groups: Sequence[str] | None) -> int:
    """Count what is drawn, texts or whole groups of them, that has a label."""
    labelled = np.flatnonzero(known).tolist()
    return len(labelled) if groups is None else len({groups[index] or index for index in labelled})


def _members(groups: Sequence[str]) -> tuple[Drawn, Drawn, Drawn]:
    """Return the texts ordered by group, and where each group begins in them and how many texts it has."""
    found: dict[str | int, list[int]] = {}
    for index, group in enumerate(groups):
        found.setdefault(group or index, []).append(index)
    sizes = np.array([len(indices) for indices in found.values()])
    return np.concatenate([np.array(indices) for indices in found.values()]), np.cumsum(sizes) - sizes, sizes


def _mean_of_drawn(side: Sequence[Statistic], drawn: Drawn, generator: np.random.Generator) -> float:
    # The mean over n runs drawn from n varies too little by (n - 1) / n, which is much of three; over n - 1 it does not.
    runs = generator.integers(len(side), size=max(len(side) - 1, 1))
    return float(np.mean([side[run](drawn) for run in runs]))


def _middle(values: Sequence[float]) -> tuple[float, float]:
    # A draw without any labelled text says nothing.
    low, high = np.nanpercentile(values, _PERCENTILES) if not np.isnan(values).all() else (math.nan, math.nan)
    return float(low), float(high)
