"""A forest plot: one difference with its interval a row, against a line at zero.

Source:
    Lewis and Clarke 2001, Forest plots: trying to see the wood and the trees. BMJ 322.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from training.report.charts.axes import Area, x_axis
from training.report.charts.numerals import interval
from training.report.charts.scales import Scale, fitted
from training.report.charts.svg import NAME, drawing, line, mark, text_width, words

_SHAPES = {"better": "up", "worse": "down"}
_NARROW = 600.0


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        group: What it is against.
        name: Of the head.
        difference: Ours less theirs.
        low: Lower end of its interval.
        high: Upper end.
        verdict: `better`, `worse` or `not distinguishable`.
    """

    group: str
    name: str
    difference: float
    low: float
    high: float
    verdict: str


def draw_forest(rows: Sequence[Row], width: float) -> Markup:
    """Draw all comparisons, grouped by what they are against."""
    is_narrow = width < _NARROW
    names = 0.0 if is_narrow else min(280.0, max((text_width(row.name, NAME) for row in rows), default=0.0) + 30)
    figures = 0.0 if is_narrow else 188.0
    ends = [0.0, *(end for row in rows for end in (row.low, row.high, row.difference))]
    x = fitted(ends, names + 12, width - figures - 14, count=4 if is_narrow else 8)
    parts, y = [], 4.0
    for group, members in groupby(rows, key=lambda row: row.group):
        parts.append(words(2, y + 14, f"against {group}", class_="strong", limit=width - 4, size=NAME))
        y += 24
        for row in members:
            parts.extend(_row(row, x, y, width, names))
            y += 44 if is_narrow else 25
        y += 8
    area = Area(x.start, 0, x.end, y)
    axis = [*([] if is_narrow else [line(x(0), 24, x(0), y, "axis")]), *x_axis(area, x)]
    below = [words(x.start, y + 33, "← worse", class_="soft"), words(x.end, y + 33, "better →", anchor="end", class_="soft")]
    described = "; ".join(
        f"{row.name} against {row.group}: {interval(row.difference, (row.low, row.high), is_signed=True)}" for row in rows
    )
    return drawing(
        width, y + 40, "Differences between the searched model and others, with 95 % intervals", described, *axis, *parts, *below
    )


def _row(row: Row, x: Scale, y: float, width: float, names: float) -> list[Markup]:
    text = interval(row.difference, (row.low, row.high), is_signed=True)
    if names:
        middle = y + 10
        parts = [
            words(14, middle + 4, row.name, limit=names - 16, size=NAME),
            words(width - 2, middle + 4, text, anchor="end", class_="figure"),
        ]
    else:
        middle = y + 24
        room = width - text_width(text) - 26
        # The line at zero would cross the names, so each row has its own piece.
        parts = [
            line(x(0), middle - 9, x(0), middle + 9, "axis"),
            words(8, y + 10, row.name, limit=room, size=NAME),
            words(width - 2, y + 10, text, anchor="end", class_="figure"),
        ]
    kind = {"better": "good", "worse": "bad"}.get(row.verdict, "open")
    stroke = {"better": "good-line", "worse": "bad-line"}.get(row.verdict, "even-line")
    parts += [line(x(row.low), middle, x(row.high), middle, stroke)]
    parts += [line(x(end), middle - 4, x(end), middle + 4, stroke) for end in (row.low, row.high)]
    return [*parts, mark(x(row.difference), middle, kind, shape=_SHAPES.get(row.verdict, "dot"), radius=5, title=f"{row.verdict}: {text}")]
