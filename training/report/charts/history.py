"""The search in order: each trial's score, how it ended, and the best so far."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from training.report.charts.axes import Area, frame, legend
from training.report.charts.numerals import fraction
from training.report.charts.scales import Scale, fitted
from training.report.charts.svg import drawing, line, mark, path, words

_HEIGHT = 230.0
_LEGEND = (
    ("best", "the best"), ("first", "proposed beforehand"), ("finished", "finished"),
    ("stopped", "stopped early"), ("passed", "passed over"), ("failed", "failed"), ("line", "best so far"),
)  # fmt: skip


def draw_history(trials: Sequence[Mapping[str, Any]], best: int, width: float) -> Markup:
    """Draw scores over trial numbers; trials without a score stand in a strip below."""
    scored = sorted((trial for trial in trials if trial["score"] is not None), key=lambda trial: int(trial["position"]))
    unscored = [trial for trial in trials if trial["score"] is None]
    keys, below = legend(4, 10, width, [(_key(kind), meaning) for kind, meaning in _LEGEND])
    area = Area(40, below + 26, width - 12, below + 26 + _HEIGHT)
    x = Scale(-0.5, max(trial["position"] for trial in trials) + 0.5, area.left, area.right)
    y = fitted(
        [trial["score"] for trial in scored], area.bottom - (32 if unscored else 6), area.top, floor=0 if _are_positive(scored) else None
    )
    parts = frame(area, x, y, "trial", "validation score", whole_x=True)
    if unscored:
        parts += [
            line(area.left, area.bottom - 26, area.right, area.bottom - 26, "grid"),
            *(_unscored(trial, x(trial["position"]), area.bottom - 13) for trial in unscored),
        ]
        parts.append(words(area.left - 6, area.bottom - 9, "none", anchor="end", class_="tick"))
    parts += [path(_steps(scored, x, y), "step"), *(_trial(trial, best, x, y) for trial in scored)]
    said = _sentence(scored, unscored, best)
    return drawing(width, area.bottom + 40, "Search history", said, *keys, *parts)


def _are_positive(scored: Sequence[Mapping[str, Any]]) -> bool:
    return all(trial["score"] >= 0 for trial in scored)


def _sentence(scored: Sequence[Mapping[str, Any]], unscored: Sequence[object], best: int) -> str:
    top = next((trial["score"] for trial in scored if trial["position"] == best), None)
    return f"{len(scored)} trials with a score, {len(unscored)} without; trial {best} has {fraction(top)}"


def _steps(scored: Sequence[Mapping[str, Any]], x: Scale, y: Scale) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    top = None
    for trial in scored:
        if top is not None:
            points.append((x(trial["position"]), y(top)))
        if top is None or trial["score"] > top:
            top = trial["score"]
            points.append((x(trial["position"]), y(top)))
    return [*points, (x(x.high), y(top))] if top is not None else []


def _trial(trial: Mapping[str, Any], best: int, x: Scale, y: Scale) -> Markup:
    said = f"trial {trial['position']} ({trial.get('origin', 'sampler')}): {fraction(trial['score'])}, {trial['state']}"
    place = (x(trial["position"]), y(trial["score"]))
    shape = "dot" if trial.get("origin", "sampler") == "sampler" else "diamond"
    if trial["position"] == best:
        return Markup("").join((mark(*place, "halo", radius=8), mark(*place, "ours", shape=shape, radius=4.5, title=said)))
    if trial["state"] in ("finished", "stopped"):
        return mark(*place, "dark" if trial["state"] == "finished" else "open", shape=shape, title=said)
    return mark(*place, "crossed", shape="cross", title=said)


def _unscored(trial: Mapping[str, Any], x: float, y: float) -> Markup:
    said = f"trial {trial['position']}: {trial['state']}"
    return (
        mark(x, y, "open", radius=2.5, title=said) if trial["state"] == "passed over" else mark(x, y, "crossed", shape="cross", title=said)
    )


def _key(kind: str) -> Markup:
    drawn = {
        "best": Markup("").join((mark(8, 0, "halo", radius=7), mark(8, 0, "ours", radius=4))),
        "first": mark(8, 0, "dark", shape="diamond"),
        "finished": mark(8, 0, "dark"),
        "stopped": mark(8, 0, "open"),
        "passed": mark(8, 0, "open", radius=2.5),
        "failed": mark(8, 0, "crossed", shape="cross"),
        "line": line(0, 0, 16, 0, "step"),
    }
    return drawn[kind]
