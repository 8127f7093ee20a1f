"""Learning curves: a score after each epoch, one line a trial, the best one in front."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from training.report.charts.axes import PANEL, Area, frame, heading
from training.report.charts.numerals import fraction
from training.report.charts.scales import Scale, fitted
from training.report.charts.svg import drawing, mark, path

_DOTTED = 10
_AREA = Area(38, 66, PANEL - 10, 232)


@dataclass(frozen=True)
class Curve:
    """One trial's.

    Attributes:
        position: The trial.
        points: (epoch, score), in order.
        has_failed: It ended by a fault.
    """

    position: int
    points: Sequence[tuple[int, float]]
    has_failed: bool = False


def draw_curves(name: str, curves: Sequence[Curve], best: int, kept: int) -> Markup:
    """Draw all trials' curves of one score.

    Args:
        name: Of the score.
        curves: Of all trials.
        best: The trial in front.
        kept: Its epoch that was kept; 0 is before the first.
    """
    scores = [score for curve in curves for _, score in curve.points]
    epochs = [epoch for curve in curves for epoch, _ in curve.points]
    x = Scale(min(epochs, default=1), max([*epochs, 2]), _AREA.left + 4, _AREA.right)
    y = fitted(scores, _AREA.bottom, _AREA.top, floor=min(0.0, *scores) if scores else 0.0)
    chosen: Mapping[int, Curve] = {curve.position: curve for curve in curves}
    parts = [_one(curve, x, y) for curve in curves if curve.position != best]
    said = "no epoch was measured"
    if best in chosen and chosen[best].points:
        epoch, top = min(chosen[best].points, key=lambda point: abs(point[0] - kept))
        said = f"trial {best}: {fraction(top)} after epoch {epoch} of {chosen[best].points[-1][0]}"
        dots = chosen[best].points if len(chosen[best].points) <= _DOTTED else ()
        parts += [
            path([(x(one), y(score)) for one, score in chosen[best].points], "ours-line thick"),
            *(mark(x(one), y(score), "ours", radius=2.5) for one, score in dots),
            mark(x(epoch), y(top), "halo", radius=6, title=said),
        ]
    framed = frame(_AREA, x, y, "epoch", "validation score", whole_x=True)
    return drawing(PANEL, _AREA.bottom + 40, f"Learning curves: {name}", said, *heading(name, said), *framed, *parts)


def _one(curve: Curve, x: Scale, y: Scale) -> Markup:
    places = [(x(epoch), y(score)) for epoch, score in curve.points]
    if len(places) == 1:
        return mark(*places[0], "other-dot", radius=2, title=f"trial {curve.position}")
    return path(places, "failed-line" if curve.has_failed else "other-line", title=f"trial {curve.position}")
