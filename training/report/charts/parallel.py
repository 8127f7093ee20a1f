"""Parallel coordinates, lying down: one level axis a dimension, one line a trial, the score at the foot.

Level axes leave room for long names and for narrow pages. A dimension of words, or of a few numbers, has its values
side by side; positive values that span more than a factor of 30 lie on a logarithmic axis.

Source:
    Inselberg 1985, The plane with parallel coordinates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from training.report.charts.axes import fitting_ticks
from training.report.charts.numerals import fraction, setting
from training.report.charts.scales import Bands, Scale, for_values
from training.report.charts.svg import NAME, drawing, line, path, text_width, words

_FEW_VALUES = 6
_NARROW = 600.0
SCORE = "score"


@dataclass(frozen=True)
class Range:
    """An interval that was searched; `is_log` where proposals were spread over magnitudes."""

    low: float
    high: float
    is_log: bool = False


class Place(NamedTuple):
    """The two ends of an axis in pixels."""

    start: float
    end: float


@dataclass(frozen=True)
class _Axis:
    name: str
    scale: Scale | Bands
    y: float

    def place(self, value: Any, lane: float) -> float:
        """Return the pixel of a value; trials of one category run side by side, `lane` from -.5 to .5."""
        if isinstance(self.scale, Bands):
            return self.scale(setting(value)) + lane * min(self.scale.width * 0.6, 60)
        return self.scale(float(value))


def draw_parallel(trials: Sequence[Mapping[str, Any]], ranges: Mapping[str, Range | None], best: int, width: float) -> Markup:
    """Draw the trials that have a score and a value in each dimension.

    Args:
        trials: Of the record.
        ranges: The searched dimensions by path, with the interval that was searched where it is known.
        best: Position of the winner.
        width: In pixels.
    """
    paths = list(ranges)
    whole = [trial for trial in trials if trial["score"] is not None and all(path in trial["point"] for path in paths)]
    ranked = sorted(whole, key=lambda trial: (trial["position"] == best, trial["score"]))
    is_narrow = width < _NARROW
    left = 16.0 if is_narrow else min(250.0, max(text_width(name, NAME) for name in (*paths, SCORE)) + 34)
    gap, first = (62.0, 26.0) if is_narrow else (50.0, 14.0)
    values = {name: [trial["point"][name] for trial in whole] for name in paths} | {SCORE: [trial["score"] for trial in whole]}
    axes = [
        _Axis(name, _scale(name, found, ranges.get(name), Place(left, width - 18)), first + number * gap)
        for number, (name, found) in enumerate(values.items())
    ]
    lines = [_line(trial, axes, rank, len(ranked), best) for rank, trial in enumerate(ranked)]
    parts = [element for axis in axes for element in _axis(axis, 0.0 if is_narrow else left, width)]
    said = f"{len(whole)} trials over {len(paths)} dimensions; trial {best} in front"
    return drawing(width, axes[-1].y + 28, "Searched values and score of each trial", said, *lines, *parts)


def _scale(name: str, values: Sequence[Any], searched: Range | None, place: Place) -> Scale | Bands:
    are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    kinds = sorted(set(values)) if are_numbers else sorted(set(values), key=str)
    # Few values among many trials are choices, whether they are words or numbers.
    if not are_numbers or (not searched and name != SCORE and len(kinds) <= _FEW_VALUES and len(kinds) * 2 <= len(values)):
        return Bands(tuple(dict.fromkeys(setting(value) for value in kinds)), place.start, place.end)
    numbers = [float(value) for value in kinds]
    found = for_values(numbers, place.start + 8, place.end - 8, may_be_log=name != SCORE)
    if not searched:
        return found
    low, high = min(searched.low, *numbers), max(searched.high, *numbers)
    return Scale(low, high, found.start, found.end, is_log=searched.is_log and low > 0)


def _axis(axis: _Axis, left: float, width: float) -> list[Markup]:
    scale, y = axis.scale, axis.y
    above = words(2, y - 12, axis.name, class_="plate strong", limit=width - 4, size=NAME)
    beside = words(left - 18, y + 4, axis.name, anchor="end", limit=left - 20, size=NAME)
    parts = [beside if left else above, line(scale.start, y, scale.end, y, "rail")]
    if isinstance(scale, Bands):
        places = [(scale(category), category) for category in scale.names]
    else:
        ticks = fitting_ticks(scale)
        places = list(zip(map(scale, ticks), scale.texts(ticks), strict=True))
    for x, text in places:
        parts.append(line(x, y - 3, x, y + 3, "axis"))
        limit = scale.width - 6 if isinstance(scale, Bands) else None
        parts.append(words(x, y + 17, text, anchor="middle", class_="tick plate", limit=limit))
    return parts


def _line(trial: Mapping[str, Any], axes: Sequence[_Axis], rank: int, count: int, best: int) -> Markup:
    lane = (trial["position"] % 17) / 17 - 0.47
    values = [*(trial["point"][axis.name] for axis in axes[:-1]), trial["score"]]
    points = [(axis.place(value, lane), axis.y) for axis, value in zip(axes, values, strict=True)]
    kind = "ours-line thick" if trial["position"] == best else "upper-line" if rank >= count * 0.75 else "other-line"
    return path(points, kind, title=f"trial {trial['position']}: {fraction(trial['score'])}")
