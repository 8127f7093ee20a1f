"""The frame of a drawing: grid, ticks that keep their distance, names of the axes.

It does not know what is drawn inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from training.report.charts.scales import Scale
from training.report.charts.svg import NAME, SMALL, element, line, text_width, words

PANEL = 304.0
_GAP = 10.0


@dataclass(frozen=True)
class Area:
    """The rectangle that data are drawn in, in pixels from the top left corner."""

    left: float
    top: float
    right: float
    bottom: float


def frame(area: Area, x: Scale, y: Scale, x_name: str, y_name: str, *, whole_x: bool = False) -> list[Markup]:
    """Draw grid, ticks and names around an area.

    Args:
        area: Where.
        x: Its scale.
        y: Its scale.
        x_name: Written below.
        y_name: Written above the axis, level, so that it reads without a turned head.
        whole_x: Only whole numbers are ticks of x.
    """
    parts = [*_rows(area, y), *x_axis(area, x, whole=whole_x)]
    parts.append(words(area.right, area.bottom + 33, x_name, anchor="end", class_="soft", limit=area.right - area.left + 20))
    parts.append(words(area.left - 34, area.top - 10, y_name, class_="soft", limit=area.right - area.left + 20))
    return parts


def _rows(area: Area, y: Scale) -> list[Markup]:
    ticks = y.ticks(max(2, int((area.bottom - area.top) / 30)))
    parts = []
    for tick, text in zip(ticks, y.texts(ticks), strict=True):
        parts.append(line(area.left, y(tick), area.right, y(tick), "grid"))
        parts.append(words(area.left - 6, y(tick) + 4, text, anchor="end", class_="tick"))
    return parts


def x_axis(area: Area, x: Scale, *, whole: bool = False) -> list[Markup]:
    """Draw a level axis below an area, with as many ticks as have room."""
    ticks = fitting_ticks(x, whole=whole)
    parts = [line(area.left, area.bottom, area.right, area.bottom, "axis")]
    for tick, text in zip(ticks, x.texts(ticks), strict=True):
        parts.append(line(x(tick), area.bottom, x(tick), area.bottom + 4, "axis"))
        parts.append(words(x(tick), area.bottom + 17, text, anchor="middle", class_="tick"))
    return parts


def fitting_ticks(x: Scale, *, whole: bool = False) -> list[float]:
    """Return round ticks whose texts do not touch each other on a level axis."""
    for count in (8, 6, 5, 4, 3, 2):
        ticks = [tick for tick in x.ticks(count) if not whole or tick == int(tick)]
        places = [x(tick) for tick in ticks]
        widths = [text_width(text) for text in x.texts(ticks)]
        pairs = zip(places, places[1:], widths, widths[1:], strict=False)
        if all(abs(after - before) >= (one + two) / 2 + _GAP for before, after, one, two in pairs):
            return ticks
    return ticks[:1]


def heading(title: str, subtitle: str = "", width: float = PANEL) -> list[Markup]:
    """Write a panel's name and a line below it, cut to the panel."""
    return [
        words(2, 14, title, class_="strong", limit=width - 4, size=NAME),
        *([words(2, 31, subtitle, class_="soft", limit=width - 4)] if subtitle else []),
    ]


def legend(x: float, y: float, width: float, items: Sequence[tuple[Markup, str]]) -> tuple[list[Markup], float]:
    """Write what the marks mean, in as many lines as the width needs.

    Args:
        x: Left end.
        y: Middle of its first line.
        width: Of the whole drawing.
        items: Each a mark drawn around (8, 0), and its meaning.

    Returns:
        Its elements, and the y below it.
    """
    parts, left = [], x
    for drawn, meaning in items:
        taken = 22 + text_width(meaning, SMALL) + 16
        if left > x and left + taken - 16 > width:
            left, y = x, y + 18
        parts.append(element("g", drawn, words(22, 4, meaning, class_="soft"), transform=f"translate({left:.1f} {y:.1f})"))
        left += taken
    return parts, y + 14
