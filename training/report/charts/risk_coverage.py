"""A risk–coverage curve: the share of wrong answers when only the surest are given.

Source:
    El-Yaniv and Wiener 2010, On the Foundations of Noise-free Selective Classification.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from training.report.charts.axes import PANEL, Area, frame, heading
from training.report.charts.numerals import fraction, threshold
from training.report.charts.scales import Scale, fitted
from training.report.charts.svg import drawing, line, mark, path

_AREA = Area(38, 66, PANEL - 10, 240)
_MOST_POINTS = 200


def draw_risk_coverage(head: str, abstention: Mapping[str, Any], split: str) -> Markup:
    """Draw one head's curve with the chosen threshold and what was wanted."""
    curve = _thinned(sorted(abstention.get("curve") or (), key=lambda point: float(point["coverage"])))
    target, reached = abstention.get("target") or {}, abstention.get(split) or {}
    chosen = abstention.get("threshold") is not None and reached.get("coverage") is not None
    wanted = 1 - target["precision"] if target.get("precision") is not None else None
    x = Scale(0, 1, _AREA.left, _AREA.right)
    y = fitted([0.0, 0.05, *(point["risk"] for point in curve), *([wanted] if wanted else [])], _AREA.bottom, _AREA.top, floor=0, ceiling=1)
    said = _sentence(abstention, reached, chosen=chosen)
    parts = [*heading(head, said), *frame(_AREA, x, y, "coverage: share answered", "risk: share of answers wrong")]
    if wanted is not None:
        parts.append(line(_AREA.left, y(wanted), _AREA.right, y(wanted), "wanted"))
    if target.get("coverage") is not None:
        parts.append(line(x(target["coverage"]), _AREA.top, x(target["coverage"]), _AREA.bottom, "wanted"))
    parts.append(path([(x(point["coverage"]), y(point["risk"])) for point in curve], "ours-line thick"))
    if chosen:
        risk = 1 - reached["precision"] if reached.get("precision") is not None else 0.0
        parts.append(line(x(reached["coverage"]), _AREA.top, x(reached["coverage"]), _AREA.bottom, "chosen"))
        parts.append(mark(x(reached["coverage"]), y(risk), "bad", shape="diamond", radius=6, title=said))
    return drawing(PANEL, _AREA.bottom + 40, f"Risk and coverage of {head} on the {split} texts", said, *parts)


def _sentence(abstention: Mapping[str, Any], reached: Mapping[str, Any], *, chosen: bool) -> str:
    if not chosen:
        return "no threshold: every text is answered"
    figures = f"coverage {fraction(reached['coverage'])}, precision {fraction(reached.get('precision'))}"
    return f"threshold {threshold(abstention['threshold'])}: {figures}"


def _thinned(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    step = max(1, -(-len(points) // _MOST_POINTS))
    return [point for number, point in enumerate(points) if number % step == 0 or number == len(points) - 1]
