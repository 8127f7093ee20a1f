"""Draws the best score over CPU seconds, both sides, one pair of steps a seed."""

import math
from collections.abc import Sequence

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 720, 380, 60, 330, 40, 20
_COLOURS = ("#b4532a", "#1f5f8b")
_NAMES = ("recipe: Tune, OptunaSearch, ASHA, Trainer", "twohead")

Points = Sequence[tuple[float, float, float]]


def draw_curves(curves: Sequence[Sequence[Points]], ends: Sequence[Sequence[float]]) -> str:
    """Return an SVG; the axis of CPU seconds is logarithmic.

    Args:
        curves: For every seed the points of both sides: (CPU seconds, wall seconds, best score so far).
        ends: For every seed the CPU seconds at which each side ended.
    """
    low = min(points[0][0] for pair in curves for points in pair if points) * 0.8
    high = max(max(pair) for pair in ends) * 1.05

    def x(cpu_s: float) -> float:
        return _LEFT + (math.log(cpu_s) - math.log(low)) / (math.log(high) - math.log(low)) * (_WIDTH - _LEFT - _RIGHT)

    def y(score: float) -> float:
        return _BOTTOM - score * (_BOTTOM - _TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for tenth in range(0, 11, 2):
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tenth / 10):.1f}" y2="{y(tenth / 10):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(tenth / 10) + 4:.1f}" text-anchor="end">{tenth / 10:.1f}</text>')
    ticks = [tick for tick in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if low <= tick <= high]
    parts += [f'<text x="{x(tick):.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{tick}</text>' for tick in ticks]
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_BOTTOM + 38}" text-anchor="middle">CPU seconds of all processes</text>')
    parts.append(f'<text x="{_LEFT}" y="{_TOP - 22}">best mean macro-F1 on the validation rows</text>')
    for side, (name, colour) in enumerate(zip(_NAMES, _COLOURS, strict=True)):
        parts.append(f'<text x="{_LEFT + 300 + 250 * side}" y="{_TOP - 22}" fill="{colour}">{name}</text>')
        for pair, pair_ends in zip(curves, ends, strict=True):
            parts.append(_step(pair[side], pair_ends[side], x, y, colour))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _step(points: Points, end: float, x, y, colour: str) -> str:  # type: ignore[no-untyped-def]
    steps = []
    for place, (cpu_s, _, score) in enumerate(points):
        following = points[place + 1][0] if place + 1 < len(points) else max(end, cpu_s)
        steps += [f"{x(cpu_s):.1f},{y(score):.1f}", f"{x(following):.1f},{y(score):.1f}"]
    return f'<polyline points="{" ".join(steps)}" fill="none" stroke="{colour}" stroke-width="2"/>'
