"""Draws runs of the model: what those who asked waited, and how many replicas ran."""

import math
from collections.abc import Mapping, Sequence

from model import Outcome

_WIDTH, _LEFT, _RIGHT, _PANEL, _GAP, _TOP = 900, 60, 20, 190, 50, 70
_COLOURS = ("#1f5f8b", "#b4532a", "#8a7a2f", "#777777")
_BIN_S = 15.0
# Above this a line leaves its panel: those who waited longer were refused.
_MOST_S = 5.0

Line = Sequence[tuple[float, float]]


def draw(title: str, target_s: float, outcomes: Mapping[str, Outcome]) -> str:
    """Return an SVG with two panels over time: the 95th percentile of each quarter of a minute, and replicas that run.

    Args:
        title: Of the drawing.
        target_s: The objective, drawn as a line. A refused request counts as one that waited for ever.
        outcomes: Policy → its run.
    """
    end_s = max(at for one in outcomes.values() for at, _ in one.latencies)
    most = max((running for one in outcomes.values() for _, running, _ in one.replicas), default=1)
    height = _TOP + 2 * _PANEL + _GAP + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/><text x="{_LEFT}" y="18" font-size="14">{title}</text>',
    ]
    for place, (name, colour) in enumerate(zip(outcomes, _COLOURS, strict=False)):
        parts.append(f'<text x="{_LEFT + 180 * place}" y="38" fill="{colour}">{name}</text>')
    panels = ((_TOP, _MOST_S, "p95, s"), (_TOP + _PANEL + _GAP, float(most), "replicas that run"))
    for top, highest, said in panels:
        parts += _frame(top, highest, said)
    at = _TOP + _PANEL * (1 - target_s / _MOST_S)
    parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#c00" stroke-dasharray="4 3"/>')
    for (_, outcome), colour in zip(outcomes.items(), _COLOURS, strict=False):
        parts.append(_line(_waits(outcome), end_s, panels[0][0], _MOST_S, colour))
        parts.append(_line(_steps(outcome, end_s), end_s, panels[1][0], float(most), colour))
    minutes = range(0, int(end_s / 60) + 1, max(1, int(end_s / 60 / 10)))
    parts += [f'<text x="{_x(60 * one, end_s):.1f}" y="{height - 20}" text-anchor="middle">{one}</text>' for one in minutes]
    return "\n".join([*parts, f'<text x="{_WIDTH - _RIGHT}" y="{height - 4}" text-anchor="end">minutes</text></svg>']) + "\n"


def _waits(outcome: Outcome) -> Line:
    bins: dict[int, list[float]] = {}
    for at, seconds in [*outcome.latencies, *((at, math.inf) for at in outcome.refused)]:
        bins.setdefault(int(at // _BIN_S), []).append(seconds)
    return [((place + 0.5) * _BIN_S, sorted(found)[min(len(found) - 1, int(0.95 * len(found)))]) for place, found in sorted(bins.items())]


def _steps(outcome: Outcome, end_s: float) -> Line:
    points: list[tuple[float, float]] = []
    for at, running, _ in outcome.replicas:
        points += [(at, points[-1][1]), (at, float(running))] if points else [(at, float(running))]
    return [*points, (end_s, points[-1][1])] if points else []


def _x(at_s: float, end_s: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * at_s / end_s


def _line(points: Line, end_s: float, top: float, highest: float, colour: str) -> str:
    placed = [f"{_x(at, end_s):.1f},{top + _PANEL * (1 - min(value, highest) / highest):.1f}" for at, value in points]
    return f'<polyline points="{" ".join(placed)}" fill="none" stroke="{colour}" stroke-width="1.5" opacity=".85"/>'


def _frame(top: float, highest: float, said: str) -> list[str]:
    lines = []
    for share in (0, 0.5, 1):
        y = top + _PANEL * (1 - share)
        lines.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        lines.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{highest * share:g}</text>')
    return [*lines, f'<text x="{_LEFT + 4}" y="{top - 4}" fill="#555">{said}</text>']
