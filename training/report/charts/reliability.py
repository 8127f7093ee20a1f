"""A reliability diagram: how often answers of a given confidence are right, before and after temperature.

Source:
    Guo et al. 2017, On Calibration of Modern Neural Networks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from training.report.charts.axes import PANEL, Area, frame, heading
from training.report.charts.numerals import fraction, setting
from training.report.charts.scales import Scale
from training.report.charts.svg import drawing, element, line, mark, path

_AREA = Area(38, 66, PANEL - 10, 286)
_STRIP = 26.0


def draw_reliability(head: str, calibration: Mapping[str, Any], split: str) -> Markup:
    """Draw one head's diagram; a mark's area grows with the answers in its bin, bars below count them."""
    x, y = Scale(0, 1, _AREA.left, _AREA.right), Scale(0, 1, _AREA.bottom, _AREA.top)
    errors = calibration.get(split) or {}
    change = f"ECE {fraction(errors.get('ece_before'))} → {fraction(errors.get('ece_after'))}"
    before, after = _filled(calibration.get("bins_before")), _filled(calibration.get("bins_after"))
    parts = [
        *heading(head, f"{change}, temperature {setting(calibration.get('temperature'))}"),
        *frame(_AREA, x, y, "confidence", "share right"),
        *_histogram(after, x),
        line(x(0), y(0), x(1), y(1), "ideal"),
        *_series(before, x, y, "before", "open-second"),
        *_series(after, x, y, "after", "ours"),
    ]
    return drawing(PANEL, _AREA.bottom + 40, f"Reliability of {head} on the {split} texts", change, *parts)


def _filled(bins: Sequence[Mapping[str, Any]] | None) -> list[Mapping[str, Any]]:
    return [one for one in bins or () if one["count"]]


def _series(bins: Sequence[Mapping[str, Any]], x: Scale, y: Scale, when: str, kind: str) -> list[Markup]:
    most = max((one["count"] for one in bins), default=1)
    parts = [path([(x(one["confidence"]), y(one["accuracy"])) for one in bins], f"{kind}-line")]
    for one in bins:
        said = f"{when}: confidence {fraction(one['confidence'])}, right {fraction(one['accuracy'])}, {one['count']} answers"
        parts.append(mark(x(one["confidence"]), y(one["accuracy"]), kind, radius=2 + 4 * math.sqrt(one["count"] / most), title=said))
    return parts


def _histogram(bins: Sequence[Mapping[str, Any]], x: Scale) -> list[Markup]:
    most = max((one["count"] for one in bins), default=1)
    parts = []
    for one in bins:
        tall = max(_STRIP * one["count"] / most, 1.0)
        wide = max(x(one["high"]) - x(one["low"]) - 1.5, 1.0)
        parts.append(element("rect", x=x(one["low"]) + 0.75, y=_AREA.bottom - tall, width=wide, height=tall, class_="strip"))
    return parts
