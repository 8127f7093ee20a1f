"""Decides how many replicas are wanted, from the seconds of work that wait and the tokens that arrive.

Serve's own policy counts requests, whose cost it does not know, and averages them before it waits. This one knows what a replica can do
in a second and what is asked of all of them, so that it need not wait to be sure: it asks for more at once, looks ahead by as long as
a replica takes to start, and lets replicas go only when the busiest time of the last minutes would not have needed them.

It runs in Serve's controller, which has none of our code: Serve carries this file there by itself, so it imports nothing of ours and
nothing of Ray's.

Sources: Halfin and Whitt 1981, Heavy-Traffic Limits for Queues with Many Exponential Servers, for the square root; Gandhi et al. 2012,
AutoScale, for not trusting a quiet moment.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

# Of each replica: tokens queued or being computed; tokens asked for since it started; tokens it can compute in a second.
WAITING = "waiting_tokens"
ASKED = "asked_tokens"
SPEED = "tokens_per_s"

# Work beside the mean: so many square roots of the replicas that the mean alone would keep busy.
_ROOTS = 0.4
# A replica is not planned to be busier than this, however many there are.
_MOST_BUSY = 0.85
# Work that waits asks for so many times the replicas there are at most: it is gone when new ones have started.
_MOST_AT_ONCE = 2.0
# The last reports tell of a jump before the whole window does. So much of what they say, and of what the window says, is no chance.
_LATELY, _LATELY_SHARE, _MEAN_SHARE = 3, 0.85, 0.92
# The trend is taken from so long.
_TREND_S = 30.0
# The busiest time is remembered in steps of so long.
_STEP_S = 5.0
# What was wanted is wanted for so long: what has not even started should not be let go.
_SETTLE_S = 30.0
# A replica's start, before one was seen; how much of what was known stays when one is.
_START_S = 15.0
_START_MEMORY = 0.7


class Backlog:
    """A policy for Ray Serve.

    Args:
        target_p95_ms: Answers should come within this.
        hold_s: Replicas that the busiest moment of this last time needed stay.
        idle_s: The last replica goes, where none must stay, after nothing was asked for so long.
    """

    def __init__(self, target_p95_ms: float, hold_s: float, idle_s: float) -> None:
        self._target_s = target_p95_ms / 1000
        self._hold_s = hold_s
        self._idle_s = idle_s

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Decide.

        Args:
            context: Serve's `AutoscalingContext`.

        Returns:
            Replicas that are wanted, and what to remember until the next call.
        """
        state, now = dict(context.policy_state), float(context.current_time)
        running, target = int(context.current_num_replicas), int(context.target_num_replicas)
        metrics: Mapping[str, Mapping[Any, Sequence[Any]]] = context.raw_metrics or {}
        _note_starts(state, now, running, target)
        speeds = [series[-1].value for series in metrics.get(SPEED, {}).values() if series and series[-1].value > 0.0]
        if not running:
            # Who comes back is not idle since the one before it went.
            state["idle_since"] = None
        if not speeds or not running:
            # Nothing is known: before the first reports, or with no replica, which Serve itself starts when somebody asks.
            return target, state
        speed = sum(speeds) / len(speeds)
        told = metrics.get(ASKED, {}).values()
        asked = sum(_rate(series) for series in told)
        lately = _LATELY_SHARE * sum(_rate(series[-_LATELY:]) for series in told)
        waiting = sum(series[-1].value for series in metrics.get(WAITING, {}).values() if series)
        growth = _growth(state, now, asked) * float(state.get("start_s", _START_S))
        # Half the objective may be spent waiting. What waits for longer should be gone within the objective, on top of what comes.
        late = max(waiting - speed * running * self._target_s / 2, 0.0)
        urgent = min((asked + late / self._target_s) / speed, _MOST_AT_ONCE * running)
        wanted = max(replicas_for(max(_MEAN_SHARE * asked + growth, lately) / speed), math.ceil(urgent))
        # At first, and after the controller was begun anew, reports tell of less than is asked: what runs was needed a moment ago.
        state.setdefault("steps", {math.floor(now / _STEP_S): (0.0, 0, target)})
        wanted = self._held(state, now, asked / speed, wanted)
        # One that has reported once does not tell yet what is asked of it.
        is_quiet = bool(told) and all(len(series) > 1 for series in told) and not asked and not waiting
        if not context.capacity_adjusted_min_replicas and self._is_idle(state, now, is_quiet):
            return 0, state
        return max(wanted, 1), state

    def _held(self, state: dict[str, Any], now: float, load: float, wanted: int) -> int:
        """Return what is wanted, what was a moment ago, or what the busiest time needed, whichever is most."""
        step, settle_s = math.floor(now / _STEP_S), min(_SETTLE_S, self._hold_s)
        steps: dict[int, tuple[float, int, int]] = {
            at: known for at, known in state["steps"].items() if at >= step - self._hold_s / _STEP_S
        }
        total, count, most = steps.get(step, (0.0, 0, 0))
        steps[step] = (total + load, count + 1, max(most, wanted))
        state["steps"] = steps
        # A moment's chance is averaged out of what is held for long.
        busiest = max(total / count for total, count, _ in steps.values())
        return max([replicas_for(busiest), *(most for at, (_, _, most) in steps.items() if at >= step - settle_s / _STEP_S)])

    def _is_idle(self, state: dict[str, Any], now: float, is_quiet: bool) -> bool:
        if not is_quiet:
            state["idle_since"] = None
            return False
        state["idle_since"] = state.get("idle_since") or now
        return now - float(state["idle_since"]) >= self._idle_s


def replicas_for(load: float) -> int:
    """Return how many replicas can do the work of so many that are always busy, without much waiting."""
    return math.ceil(max(load + _ROOTS * math.sqrt(load), load / _MOST_BUSY) - 1e-9)


def _rate(series: Sequence[Any]) -> float:
    if len(series) < 2:
        return 0.0
    spent_s = series[-1].timestamp - series[0].timestamp
    return max(series[-1].value - series[0].value, 0.0) / spent_s if spent_s > 0.0 else 0.0


def _growth(state: dict[str, Any], now: float, asked: float) -> float:
    """Return by how many tokens per second what is asked for grows every second, where it has grown in all of the last time.

    After a jump it has in one part, or in two where the window over which arrivals are averaged lies across their border.
    """
    seen = [(at, rate) for at, rate in state.get("trend", ()) if at > now - _TREND_S]
    if not seen or now - seen[-1][0] >= 1.0:
        seen.append((now, asked))
    state["trend"] = seen
    begins = now - _TREND_S
    parts = (
        [one for one in seen if begins + part <= one[0] < begins + part + _TREND_S / 3 + 1.0]
        for part in (0.0, _TREND_S / 3, 2 * _TREND_S / 3)
    )
    return max(min(_slope(part) for part in parts), 0.0)


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line through the points with the least squared error; 0 where they say too little."""
    if len(points) < 2 or points[-1][0] - points[0][0] < _TREND_S / 4:
        return 0.0
    middle_at = sum(at for at, _ in points) / len(points)
    middle = sum(rate for _, rate in points) / len(points)
    return sum((at - middle_at) * (rate - middle) for at, rate in points) / sum((at - middle_at) ** 2 for at, _ in points)


def _note_starts(state: dict[str, Any], now: float, running: int, target: int) -> None:
    """Learn how long replicas take from being wanted to running."""
    since, wanted = state.get("wanted_since"), int(state.get("wanted", 0))
    if since is None:
        if target > running:
            state["wanted_since"], state["wanted"] = now, target
    elif running >= wanted or target < wanted:
        if running >= wanted:
            known = float(state.get("start_s", _START_S))
            state["start_s"] = _START_MEMORY * known + (1 - _START_MEMORY) * (now - float(since))
        state["wanted_since"] = None
