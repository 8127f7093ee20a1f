"""What a search may use, what it has used, and how long it will still take.

It does not know Ray or how trials train. Its forecasts are of what has ended, and of the epochs of what runs: a search cannot know better,
and says "about".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from training.search.proposing.ledger import TrialHistory


@dataclass(frozen=True)
class Cost:
    """What was used, or will be.

    Attributes:
        wall_s: Seconds on the clock.
        cpu_s: CPU seconds of all processes that train and encode.
    """

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Budget:
    """What a search may use; null means no limit.

    Attributes:
        wall_s: Seconds on the clock, with what confirms.
        cpu_s: CPU seconds of all processes that train and encode.
    """

    wall_s: float | None = None
    cpu_s: float | None = None

    def leaves(self, used: Cost, needed: Cost) -> bool:
        """Tell whether there is room for more."""
        has_time = self.wall_s is None or used.wall_s + needed.wall_s < self.wall_s
        return has_time and (self.cpu_s is None or used.cpu_s + needed.cpu_s < self.cpu_s)

    def left_s(self, used: Cost) -> float | None:
        """Return the seconds until one of the limits is reached, at the pace so far; nothing without limits."""
        found = [self.wall_s - used.wall_s] if self.wall_s is not None else []
        if self.cpu_s is not None and used.cpu_s > 0:
            found.append((self.cpu_s - used.cpu_s) * used.wall_s / used.cpu_s)
        return max(min(found), 0.0) if found else None


def used_by(history: TrialHistory) -> Cost:
    """Return what a trial has used so far, with epochs that it trained again."""
    spent = spent_on(history)
    return Cost(spent.wall_s + history.repeated_s, spent.cpu_s + history.repeated_cpu_s)


def spent_on(history: TrialHistory) -> Cost:
    """Return what the epochs took that a trial has come to: by these, not by what it trained twice, is told how long others will take."""
    return Cost(_sum(history, "epoch_s"), _sum(history, "epoch_cpu_s"))


def spent_at(history: TrialHistory, depths: Sequence[int]) -> Cost:
    """Return what a trial has used to train with so many frozen layers, or what it has used where that is not known."""
    own = [one for one in history.epochs if one.get("depth", depths[0] if depths else None) in depths]
    return spent_on(replace(history, epochs=own)) if own else spent_on(history)


def in_full(history: TrialHistory, depths: Sequence[int], epochs: float) -> Cost:
    """Forecast what a trial would have used that nobody stops.

    Args:
        history: Of the trial.
        depths: Frozen layers of each training that counts; where none of them is known, all epochs are one training.
        epochs: So many a whole training has, on average.
    """
    trainings = [[one for one in history.epochs if one.get("depth", depths[0]) == depth] for depth in depths]
    cost = spent_at(history, depths)
    for own in [one for one in trainings if one] or [history.epochs]:
        trained = [one for one in own if one["epoch"]]
        if trained and not trained[-1].get("is_last"):
            each = times(spent_on(replace(history, epochs=trained)), 1.0 / len(trained))
            cost = one_after_other(cost, times(each, max(epochs - len(trained), 0.0)))
    return cost


def as_planned(history: TrialHistory, depths: Sequence[int], planned: Sequence[int]) -> Cost:
    """Forecast what a configuration costs that trains so many epochs and no others.

    Args:
        history: Of a trial of it that trained an epoch.
        depths: Frozen layers of each training; none trains once.
        planned: Epochs of each. Where none is known of it, one costs what any did.
    """
    trained = [one for one in history.epochs if one["epoch"]]
    # Judging what it begins with comes before them, where it was asked for.
    cost = spent_on(replace(history, epochs=[one for one in history.epochs if not one["epoch"]]))
    for depth, epochs in zip(depths or (None,), planned, strict=False):
        own = [one for one in trained if one.get("depth", depth) == depth or depth is None] or trained
        cost = one_after_other(cost, times(spent_on(replace(history, epochs=own)), epochs / len(own)))
    return cost


def still_needed(history: TrialHistory, epochs: float, layers: int) -> Cost | None:
    """Forecast what a running trial will still use.

    Args:
        history: Of the trial.
        epochs: So many a training has, on average.
        layers: Of the encoder. An epoch costs as much as its last one did, or where all there are trained fewer layers, in proportion.

    Returns:
        Nothing where it has trained no epoch yet.
    """
    trained = [one for one in history.epochs if one["epoch"] > 0 and "epoch_s" in one]
    if not trained:
        return None
    last, depth = trained[-1], history.depths[-1] if history.depths else None
    done = sum(one.get("depth") == last.get("depth") for one in trained)
    factor = 1.0
    if depth is not None and last.get("depth", depth) != depth:
        done, factor = 0, (layers - depth) / max(layers - last["depth"], 1)
    # One that goes on has at least one before it.
    return times(Cost(float(last["epoch_s"]), float(last.get("epoch_cpu_s", 0.0))), factor * max(epochs - done, 1.0))


def together(costs: Iterable[Cost], side_by_side: int) -> Cost:
    """Return what several trials cost, so many of them at once."""
    found = list(costs)
    wall_s = max(sum(one.wall_s for one in found) / side_by_side, max((one.wall_s for one in found), default=0.0))
    return Cost(wall_s, sum(one.cpu_s for one in found))


def one_after_other(first: Cost, then: Cost) -> Cost:
    """Return what two things cost of which the second waits for the first."""
    return Cost(first.wall_s + then.wall_s, first.cpu_s + then.cpu_s)


def mean_cost(histories: Sequence[TrialHistory]) -> Cost:
    """Return what a trial with a score cost on average; nothing is 0 before the first has ended."""
    costs = [spent_on(one) for one in histories if one.is_sound]
    if not costs:
        return Cost(0.0, 0.0)
    return Cost(float(np.mean([one.wall_s for one in costs])), float(np.mean([one.cpu_s for one in costs])))


def mean_epochs(histories: Sequence[TrialHistory]) -> float:
    """Return how many epochs the last training of a trial with a score had on average; 0 before the first has ended."""
    sound = [one for one in histories if one.is_sound]
    counts = [sum(one.get("depth") == history.last.get("depth") for one in history.epochs if one["epoch"]) for history in sound]
    return float(np.mean(counts)) if counts else 0.0


def times(cost: Cost, count: float) -> Cost:
    """Return a cost so many times, one after the other."""
    return Cost(cost.wall_s * count, cost.cpu_s * count)


def _sum(history: TrialHistory, key: str) -> float:
    return sum(float(epoch.get(key, 0.0)) for epoch in history.epochs)
