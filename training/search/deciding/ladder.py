"""The ladder: heads first, then the top layers, then all layers a configuration may train; who climbs, and whether climbing pays.

A rung costs several times what the one below it costs. Configurations whose heads did badly on the frozen encoder are passed over; of
those whose top layers were trained, the better ones train the rest, from where they are. Both only as long as the lower rung tells
something of the higher one, which is measured as the search goes. Where top layers are better than the heads they began with
beyond doubt, the first to show it climbs at once. It does not know Ray or how anything is trained.

Sources: Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning (ASHA): promotion without waiting for a rung to be full;
layers as its resource are ours. For the doubt about the lower rung: Thorndike 1949, Personnel Selection (case II, restriction of range),
and Fieller, Hartley and Pearson 1957, Tests for Rank Correlation Coefficients (Fisher's z of Spearman's).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import pandas as pd

from training.search.proposing.ledger import TrialHistory
from training.search.proposing.search_space import Point, trial_settings
from training.search.proposing.searcher import INTERVAL, SCORE
from training.search.trials.depths import first_depth
from training.search.trials.found_heads import FirstRung
from training.settings import TrainingSettings

# Fewer pairs of scores say nothing of how two rungs agree.
_FEWEST_PAIRS = 5
# A rung is not asked where its correlation is below the first of these and, as surely as the third says, below the second. Not to ask one
# that tells something has everybody climb, at several times the cost; to ask one that tells nothing passes over at random.
# `benchmarks/doubt.py` simulates how often each happens.
_LEAST_CORRELATION, _GOOD_CORRELATION, _SURE = 0.2, 0.6, 0.9
# Variance of Fisher's z of Spearman's correlation, times pairs less three.
_SPEARMANS_VARIANCE = 1.06
# So many climbed and gained nothing: nobody else does.
_IN_VAIN = 2


@dataclass(frozen=True)
class Agreement:
    """How two rungs agree about the same configurations.

    Attributes:
        lower: What the lower rung is called.
        higher: What the higher rung is called.
        pairs: Configurations with a score on both, which are those that were let through.
        correlation: Spearman's, between the scores of the pairs; nothing where there are too few, or all are equal.
        restriction: Standard deviation of all lower scores over that of the pairs', as normal scores; at least 1. Above 1 selection has
            lowered the correlation by itself.
    """

    lower: str
    higher: str
    pairs: int
    correlation: float | None
    restriction: float = 1.0

    @property
    def is_unknown(self) -> bool:
        """Whether too few configurations have a score on both for a correlation to say anything."""
        return self.pairs < _FEWEST_PAIRS

    @property
    def is_doubtful(self) -> bool:
        """Whether the lower rung is known to say little of the higher one, over all configurations and not only those let through."""
        if self.correlation is None or self._unrestricted(self.correlation) >= _LEAST_CORRELATION:
            return False
        error = math.sqrt(_SPEARMANS_VARIANCE / (self.pairs - 3))
        # Of all pairs turned round z is minus infinity, and so is its end.
        end = math.tanh(math.atanh(self.correlation) + NormalDist().inv_cdf(_SURE) * error) if self.correlation > -1.0 else -1.0
        return self._unrestricted(end) < _GOOD_CORRELATION

    def _unrestricted(self, correlation: float) -> float:
        """Return what a correlation over the pairs is over all configurations."""
        return correlation * self.restriction / math.sqrt(1.0 + correlation**2 * (self.restriction**2 - 1.0))


@dataclass(frozen=True)
class Ladder:
    """The rungs of one group of trials.

    Attributes:
        settings: The section `training`, with the group's heads.
        layers: Of the encoder.
        rung: The first rung, or nothing where heads begin at random.
        reduction_factor: One in so many climbs.
    """

    settings: TrainingSettings
    layers: int
    rung: FirstRung | None
    reduction_factor: float
    _known: dict[str, tuple[float | None, int]] = field(default_factory=dict, compare=False, repr=False)

    def depths(self, point: Point) -> tuple[int, ...]:
        """Return the frozen layers of what a new configuration trains first."""
        return (first_depth(self.layers, self._settled(point)[1]),)

    def heads_score(self, point: Point) -> float | None:
        """Return what a configuration's heads have on the frozen encoder, by cross-validation."""
        return self._settled(point)[0]

    def _settled(self, point: Point) -> tuple[float | None, int]:
        """Return what a configuration's heads have, and its frozen layers."""
        # Asked of every earlier trial at every proposal, and checking a whole configuration takes a millisecond.
        key = repr(sorted(point.items()))
        if key not in self._known:
            trial = trial_settings(self.settings, point)
            score = self.rung.score(trial, self.settings.tuning.score_weights) if self.rung else None
            self._known[key] = score, trial.fit.frozen_layers
        return self._known[key]

    def is_passed_over(self, scores: Sequence[float | None], own: float | None, histories: Sequence[TrialHistory]) -> bool:
        """Tell whether a new configuration is not worth a training, by what its heads did.

        Args:
            scores: Of those proposed before it.
            own: Its own.
            histories: All trials of the group.
        """
        known = [score for score in scores if score is not None]
        if own is None or len(known) < self.reduction_factor or self.agreements(histories)[0].is_doubtful:
            return False
        return own < float(np.quantile(known, 1.0 - 1.0 / self.reduction_factor))

    def next_climb(self, histories: Sequence[TrialHistory], *, is_end: bool) -> tuple[TrialHistory, tuple[int, ...]] | None:
        """Return the trial that climbs next, and the frozen layers of what it then has trained one after the other.

        Args:
            histories: All trials of the group.
            is_end: No other trial of the group will end; then at least the best one climbs.
        """
        waiting = [one for one in histories if one.is_sound and self._is_below_its_own(one)]
        climbed = [one for one in histories if len(one.depths) > 1]
        # Of some that were to climb nothing came: they were stopped before they began, as in searches until 2026-11-29.
        ended = [one for one in climbed if one.is_sound and (one.error or _trained(one, one.depths[-1]) is not None)]
        if len(ended) >= _IN_VAIN and not any(_has_gained(one) for one in ended):
            return None
        factor = 1.0 if self.agreements(histories)[1].is_doubtful else self.reduction_factor
        places = int((len(waiting) + len(climbed)) / factor)
        # Where layers pay beyond doubt, what all of them bring is worth knowing at once.
        if not climbed and not places:
            waiting = waiting if is_end else [one for one in waiting if _pays(one)]
            places = 1
        ranked = sorted([*waiting, *climbed], key=lambda one: (-(_trained(one, one.depths[0]) or 0.0), one.number))[:places]
        chosen = next((one for one in ranked if one in waiting), None)
        if chosen is None:
            return None
        return chosen, (*chosen.depths, self._settled(chosen.best_point)[1])

    def _is_below_its_own(self, history: TrialHistory) -> bool:
        return len(history.depths) == 1 and self._settled(history.best_point)[1] < history.depths[0]

    def agreements(self, histories: Sequence[TrialHistory]) -> tuple[Agreement, Agreement]:
        """Measure how the rungs agree: heads alone with what was trained first, and that with what came of climbing."""
        sound = [one for one in histories if one.is_sound]
        # Those that were passed over are known by their heads alone, and those that may not climb were not left behind.
        heads = {one.number: self.heads_score(one.best_point) for one in histories if one.depths}
        first = {one.number: _trained(one, one.depths[0]) for one in sound if one.depths}
        below = {one.number: first[one.number] for one in sound if len(one.depths) > 1 or self._is_below_its_own(one)}
        second = {one.number: _trained(one, one.depths[-1]) for one in sound if len(one.depths) > 1}
        return agreement_of("heads alone", "top layers", heads, first), agreement_of("top layers", "all its layers", below, second)


def agreement_of(lower: str, higher: str, below: Mapping[int, float | None], above: Mapping[int, float | None]) -> Agreement:
    """Measure how two rungs agree.

    Args:
        lower: What the lower one is called.
        higher: What the higher one is called.
        below: Configuration → its score on the lower one, of all that may be let through.
        above: The same on the higher one, of those that were.
    """
    scores = pd.DataFrame({"below": below, "above": above}, dtype=float).dropna(subset="below")
    pairs = scores.dropna()
    ranks = pairs.rank().to_numpy()
    if len(pairs) < _FEWEST_PAIRS or (ranks.std(axis=0) == 0).any():
        return Agreement(lower, higher, len(pairs), None)
    return Agreement(lower, higher, len(pairs), float(np.corrcoef(ranks.T)[0, 1]), _restriction(scores["below"], pairs.index))


def _restriction(scores: "pd.Series[float]", let_through: "pd.Index[int]") -> float:
    """Return by how much those let through are narrower than all; by ranks, which one very bad score does not move."""
    normal = ((scores.rank() - 0.5) / len(scores)).map(NormalDist().inv_cdf)
    return max(1.0, float(normal.std(ddof=0) / normal[let_through].std(ddof=0)))


def _trained(history: TrialHistory, depth: int) -> float | None:
    """Return the best score that training with so many frozen layers brought, averages of its epochs included."""
    own = [one for one in history.epochs if one.get("depth") == depth and one["epoch"] > 0]
    scores = [float(one["epoch_score"] if one.get("trained_score") is None else one["trained_score"]) for one in own]
    return max(scores, default=None)


def _score_of_first(history: TrialHistory) -> float:
    """Return the best score before a trial climbed, of what it began with as well."""
    return max(float(one[SCORE]) for one in history.epochs if one.get("depth") == history.depths[0])


def _pays(history: TrialHistory) -> bool:
    """Whether the top layers are better than the heads they began with, by more than other validation texts could undo."""
    begun = [float(one["epoch_score"]) for one in history.epochs if one["epoch"] == 0]
    low, _ = history.last.get(INTERVAL, (math.nan, math.nan))
    return bool(begun) and float(low) > begun[0]


def _has_gained(history: TrialHistory) -> bool:
    return float(history.last[SCORE]) > _score_of_first(history)
