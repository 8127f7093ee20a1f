"""Several heads side by side: which trials are beaten by none, and which of these a rule picks.

It does not know what a score is made of; more is better. Source of the knee: Das 1999, On characterizing the "knee" of the Pareto
curve based on normal-boundary intersection.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.errors import SettingsError

KNEE = "knee"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_CONDITION = re.compile(rf"^([A-Za-z_]\w*)\s*>=\s*({_NUMBER})$")
_THEN = re.compile(r"^(.*?)[\s,]*\bthen\s+([A-Za-z_]\w*)$")
_HINT = "write `knee`, or like `education >= 0.70, then category`: conditions HEAD >= NUMBER joined by commas, then the head to maximise"


@dataclass(frozen=True)
class Pick:
    """A rule that picks one of several trials.

    Attributes:
        floors: Head → score it must reach.
        then: The head to maximise among those that reach them; None means the knee of the front.
    """

    floors: Mapping[str, float]
    then: str | None


class Picked(NamedTuple):
    """A trial, and what a person should know about how it was picked ("" if nothing)."""

    trial: int
    note: str


def front(scores: Sequence[Sequence[float]]) -> list[int]:
    """List, in order, the positions of the rows that no other row dominates: none is as good everywhere and better somewhere."""
    values = np.asarray(scores, dtype=np.float64)
    return [position for position, row in enumerate(values) if not _dominates(values, row).any()]


def ranks(scores: Sequence[Sequence[float]]) -> list[int]:
    """Return the front each row stands on: 0 is beaten by none, 1 only by rows of front 0, and so on.

    Source:
        Deb et al. 2002, NSGA-II (non-dominated sorting).
    """
    values = np.asarray(scores, dtype=np.float64)
    result, left = [0] * len(values), list(range(len(values)))
    rank = 0
    while left:
        best = {left[position] for position in front(values[left].tolist())}
        for position in best:
            result[position] = rank
        left = [position for position in left if position not in best]
        rank += 1
    return result


def knee(scores: Sequence[Sequence[float]]) -> int:
    """Return the position of the row that bulges most from the plane through the front's extremes.

    Every head is scaled to 0..1 over the front; then the distance from that plane grows with the sum. Of equals (always so with a
    front of two) the one with the greater unscaled sum, then the first.
    """
    positions = front(scores)
    values = np.asarray(scores, dtype=np.float64)[positions]
    spread = values.max(axis=0) - values.min(axis=0)
    scaled = (values - values.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    order = sorted(range(len(positions)), key=lambda row: (-round(scaled[row].sum(), 9), -values[row].sum(), row))
    return positions[order[0]]


def parse_pick(rule: str, heads: Sequence[str]) -> Pick:
    """Read the rule `training.tuning.pick`.

    Args:
        rule: `knee`, or conditions `HEAD >= NUMBER` joined by commas or "and", then `then HEAD`.
        heads: Those that exist.

    Raises:
        SettingsError: It cannot be read, or names a head that does not exist or stands twice.
    """
    text = rule.strip()
    if text == KNEE:
        return Pick({}, None)
    if (whole := _THEN.match(text)) is None:
        raise SettingsError(f"training.tuning.pick is {rule!r}, but must be 'knee' or end with 'then HEAD'", _HINT)
    floors: dict[str, float] = {}
    for part in re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+", whole[1].strip()) if whole[1].strip() else ():
        if (condition := _CONDITION.match(part.strip())) is None:
            raise SettingsError(f"training.tuning.pick: the condition {part.strip()!r} cannot be read, but must be HEAD >= NUMBER", _HINT)
        if condition[1] in floors:
            raise SettingsError(
                f"training.tuning.pick names head {condition[1]!r} in two conditions, but once is enough", "keep the higher"
            )
        floors[condition[1]] = float(condition[2])
    for head in (*floors, whole[2]):
        if head not in heads:
            raise SettingsError(f"training.tuning.pick names head {head!r}, but the heads are {', '.join(heads)}", _HINT)
    return Pick(floors, whole[2])


def pick(scores: Mapping[int, Mapping[str, float]], rule: Pick) -> Picked:
    """Pick a trial by a rule.

    When no trial meets all conditions, the one that misses least is picked (the sum of what is missing), and the note says so.

    Args:
        scores: Trial → head → score; at least one trial.
        rule: Of `parse_pick`.
    """
    trials = list(scores)
    if rule.then is None:
        return Picked(trials[knee([list(scores[trial].values()) for trial in trials])], "")
    missing = {trial: sum(max(0.0, floor - scores[trial][head]) for head, floor in rule.floors.items()) for trial in trials}
    least = min(missing.values())
    able = [trial for trial in trials if missing[trial] == least]
    # Of equals in that head the better elsewhere, so that the pick stands on the front; then the earlier.
    chosen = max(able, key=lambda trial: (scores[trial][rule.then or ""], sum(scores[trial].values()), -trial))
    return Picked(chosen, _miss_note(scores[chosen], rule, chosen) if least > 0 else "")


def _miss_note(scores: Mapping[str, float], rule: Pick, trial: int) -> str:
    wanted = ", ".join(f"{head} {scores[head]:.3f} (wanted {floor:g})" for head, floor in rule.floors.items() if scores[head] < floor)
    return f"no trial meets every condition of the pick; trial {trial} misses least: {wanted}"


def _dominates(values: NDArray[np.float64], row: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.logical_and((values >= row).all(axis=1), (values > row).any(axis=1))
