"""Scores of the same configuration with several seeds, one row a configuration."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from training.report.charts.axes import Area, legend, x_axis
from training.report.charts.numerals import fraction
from training.report.charts.scales import fitted
from training.report.charts.svg import NAME, drawing, line, mark, text_width, words

_ROW = 32.0


def draw_confirmation(confirmed: Sequence[Mapping[str, Any]], names: Mapping[int, str], best: int, width: float) -> Markup:
    """Draw each seed's score and the means.

    Args:
        confirmed: Of the record, best first.
        names: How to call each position.
        best: Position of the winner.
        width: In pixels.
    """
    left = min(width * 0.4, max(text_width(names[one["position"]], NAME) for one in confirmed) + 14)
    keys, top = legend(4, 10, width, [(mark(8, 0, "open"), "one seed"), (line(8, -7, 8, 7, "mean"), "mean")])
    x = fitted([score["score"] for one in confirmed for score in one["scores"]], left + 10, width - 60)
    bottom = top + len(confirmed) * _ROW
    parts = []
    for number, one in enumerate(confirmed):
        y = top + (number + 0.5) * _ROW
        is_best = one["position"] == best
        parts.append(line(x.start, y, x.end, y, "grid"))
        parts.append(
            words(left, y + 4, names[one["position"]], anchor="end", limit=left - 2, size=NAME, class_="strong" if is_best else None)
        )
        for score in one["scores"]:
            parts.append(mark(x(score["score"]), y, "open", radius=4.5, title=f"seed {score['seed']}: {fraction(score['score'])}"))
        parts.append(line(x(one["mean"]), y - 10, x(one["mean"]), y + 10, "mean ours" if is_best else "mean"))
        parts.append(words(width - 4, y + 4, fraction(one["mean"]), anchor="end", class_="figure"))
    said = "; ".join(f"{names[one['position']]}: mean {fraction(one['mean'])} of {len(one['scores'])}" for one in confirmed)
    axis = x_axis(Area(x.start, top, x.end, bottom), x)
    return drawing(width, bottom + 24, "Confirmation with other seeds", said, *keys, *axis, *parts)
