"""What a search may use, what it has used, and how long it will still take.

It does not know Ray or how trials train. Its forecasts are means over what has ended: a search cannot know better, and says "about".
"""

from collections.abc import Sequence
from dataclasses import dataclass

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


def spent_on(history: TrialHistory) -> Cost:
    """Return what a trial has used so far."""
    return Cost(_sum(history, "epoch_s"), _sum(history, "epoch_cpu_s"))


def mean_cost(histories: Sequence[TrialHistory]) -> Cost:
    """Return what a trial with a score cost on average; nothing is 0 before the first has ended."""
    costs = [spent_on(one) for one in histories if one.is_sound]
    if not costs:
        return Cost(0.0, 0.0)
    return Cost(float(np.mean([one.wall_s for one in costs])), float(np.mean([one.cpu_s for one in costs])))


def times(cost: Cost, trials: float, side_by_side: int = 1) -> Cost:
    """Return what several trials cost, so many of them at once."""
    return Cost(cost.wall_s * trials / side_by_side, cost.cpu_s * trials)


def _sum(history: TrialHistory, key: str) -> float:
    return sum(float(epoch.get(key, 0.0)) for epoch in history.epochs)
