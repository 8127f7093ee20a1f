"""Draws runs as one SVG: latency over time for each, and the percentiles of all; readable in light and dark, without scripts.

The drawing's parts are those of the search's report. It does not measure.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from cluster.errors import StorageError
from serving.loading.outcomes import ANSWERED, Outcome, Run, quantile
from training.report.charts.axes import Area, frame, legend
from training.report.charts.numerals import plural
from training.report.charts.scales import Scale, for_values
from training.report.charts.svg import element, line, mark, path, words

_WIDTH, _PANEL, _HEIGHT = 760.0, 300.0, 170.0
_LEFT, _RIGHT = 48.0, 24.0
_BINS, _LEAST_IN_BIN = 40, 20
_MOST_DOTS, _MOST_CROSSES = 1_500, 300
_STEPS_A_TENTH, _COLOURS = 20, 6
# Over time there are too few requests at once for more.
_LINES = (("p50", 0.5), ("p90", 0.9))
_SHARES = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999)
_STYLE = """
:root{color-scheme:light dark;--ink:#1c1f24;--soft:#5c636e;--faint:#e4e7eb;--other:#8d95a1;--paper:#fdfdfc;
--a:#0067a3;--b:#b84a00;--c:#5b7a1f;--d:#7a3fa0;--e:#8a5a00;--f:#3d4a5c}
@media (prefers-color-scheme:dark){:root{--ink:#e4e7eb;--soft:#a3abb8;--faint:#2b313a;--other:#788392;--paper:#14171c;
--a:#6db9ee;--b:#f59a55;--c:#a9cc66;--d:#c99ae6;--e:#e0b457;--f:#b8c4d6}}
svg{font-family:"Helvetica Neue",Helvetica,Arial,"Liberation Sans",sans-serif}
.paper{fill:var(--paper)}text{fill:var(--ink)}.tick,.soft{fill:var(--soft)}.strong{font-weight:600}
line,polyline{fill:none}.grid{stroke:var(--faint)}.axis{stroke:var(--other)}
.dot{fill:var(--other);fill-opacity:.6}.cross{fill:none;stroke:var(--b);stroke-width:1.5}
.p50{stroke:var(--a);stroke-width:2}.p90{stroke:var(--b);stroke-width:2}
.run0{stroke:var(--a)}.run1{stroke:var(--b)}.run2{stroke:var(--c)}.run3{stroke:var(--d)}.run4{stroke:var(--e)}.run5{stroke:var(--f)}
.run0,.run1,.run2,.run3,.run4,.run5{stroke-width:2;stroke-linejoin:round}
"""


def write_svg(path: Path, runs: Sequence[Run]) -> None:
    """Draw runs and write the drawing.

    Raises:
        StorageError: It cannot be written.
    """
    try:
        path.write_text(draw(runs) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from error


def draw(runs: Sequence[Run]) -> Markup:
    """Draw a panel a run, and one of all runs' percentiles."""
    panels = [_over_time(run) for run in runs]
    if any(run.answered for run in runs):
        panels.append(_percentiles([run for run in runs if run.answered]))
    height = _PANEL * len(panels)
    placed = (element("g", *panel, transform=f"translate(0 {number * _PANEL:.0f})") for number, panel in enumerate(panels))
    return element(
        "svg",
        element("title", "Latency under load"),
        element("desc", "; ".join(_said(run) for run in runs)),
        element("style", Markup(_STYLE)),  # noqa: S704 - ours, no data
        element("rect", width=_WIDTH, height=height, class_="paper"),
        *placed,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH:.0f} {height:.0f}",
        width=_WIDTH,
        height=height,
        role="img",
    )


def _said(run: Run) -> str:
    if not run.answered:
        return f"{run.name}: nothing was answered"
    figures = ", ".join(f"{name} {run.latency_ms(share):.0f} ms" for name, share in (("p50", 0.5), ("p99", 0.99)))
    return f"{run.name}: {run.texts_per_s:.1f} texts/s, {figures}"


def _over_time(run: Run) -> list[Markup]:
    answered = sorted(run.answered)
    failed = sorted(one for one in run.outcomes if one.status != ANSWERED)
    area = Area(_LEFT, 78, _WIDTH - _RIGHT, 78 + _HEIGHT)
    x = Scale(0.0, max([run.load.seconds or 0.0, *(one.due_s for one in run.outcomes), 0.1]), area.left, area.right)
    # The rail above is that of errors.
    y = _latencies(answered, area.bottom, area.top + (14 if failed else 0))
    tail = quantile(sorted(one.latency_s for one in answered), 0.99)
    body = [one for one in answered if one.latency_s < tail]
    kept = -(-len(body) // _MOST_DOTS) or 1
    dots = [*body[::kept], *(one for one in answered if one.latency_s >= tail)]
    every = -(-len(failed) // _MOST_CROSSES) or 1
    keys = [
        (mark(8, 0, "dot", radius=3), "a request" if kept == 1 else f"one of {kept} requests, all above p99"),
        *((line(0, 0, 16, 0, name), name) for name, _ in _LINES),
        *([(mark(8, 0, "cross", shape="cross"), f"error ({plural(len(failed), 'request')})")] if failed else []),
    ]
    return [
        words(2, 16, _said(run), class_="strong", limit=_WIDTH - 4),
        *legend(2, 36, _WIDTH, keys)[0],
        *frame(area, x, y, "due, s", "latency, ms"),
        *(mark(x(one.due_s), y(1000 * one.latency_s), "dot", radius=2) for one in dots),
        *(mark(x(one.due_s), area.top + 4, "cross", shape="cross", radius=3) for one in failed[::every]),
        *(path([(x(at), y(value)) for at, value in _binned(answered, share)], name) for name, share in _LINES),
    ]


def _latencies(answered: Sequence[Outcome], bottom: float, top: float) -> Scale:
    """Make a scale of milliseconds."""
    values = [1000 * one.latency_s for one in answered] or [0.0, 1.0]
    scale = for_values([max(value, 0.01) for value in values], bottom, top)
    return scale if scale.is_log else Scale(0.0, 1.05 * max(values), bottom, top)


def _binned(answered: Sequence[Outcome], share: float) -> list[tuple[float, float]]:
    """Return a percentile over time: (middle of a stretch with as many requests as all others, milliseconds)."""
    size = max(-(-len(answered) // _BINS), _LEAST_IN_BIN)
    stretches = [answered[first : first + size] for first in range(0, len(answered), size)]
    return [
        ((stretch[0].due_s + stretch[-1].due_s) / 2, 1000 * quantile(sorted(one.latency_s for one in stretch), share))
        for stretch in stretches
    ]


def _percentiles(runs: Sequence[Run]) -> list[Markup]:
    keys = [(line(0, 0, 16, 0, f"run{number % _COLOURS}"), run.name) for number, run in enumerate(runs)]
    area = Area(_LEFT, 78, _WIDTH - _RIGHT, 78 + _HEIGHT)
    # Each tenth of the requests that is left is as wide: the axis is that of 1 / (1 - share).
    x = Scale(1.0, max(10.0, *(float(len(run.answered)) for run in runs)), area.left, area.right, is_log=True)
    y = _latencies([one for run in runs for one in run.answered], area.bottom, area.top)
    parts = [
        words(2, 16, "Percentiles of latency", class_="strong"),
        *legend(2, 36, _WIDTH, keys)[0],
        words(area.left - 34, area.top - 10, "latency, ms", class_="soft"),
        words(area.right, area.bottom + 33, "requests answered in at most this time", anchor="end", class_="soft"),
        line(area.left, area.bottom, area.right, area.bottom, "axis"),
    ]
    ticks = y.ticks(5)
    for tick, text in zip(ticks, y.texts(ticks), strict=True):
        parts += [
            line(area.left, y(tick), area.right, y(tick), "grid"),
            words(area.left - 6, y(tick) + 4, text, anchor="end", class_="tick"),
        ]
    for share in (share for share in _SHARES if 1 / (1 - share) <= x.high):
        at = x(1 / (1 - share))
        parts += [
            line(at, area.bottom, at, area.bottom + 4, "axis"),
            words(at, area.bottom + 17, f"{100 * share:g} %", anchor="middle", class_="tick"),
        ]
    return [*parts, *(_curve(run, number, x, y) for number, run in enumerate(runs))]


def _curve(run: Run, number: int, x: Scale, y: Scale) -> Markup:
    ordered = sorted(one.latency_s for one in run.answered)
    tenths = (10 ** (step / _STEPS_A_TENTH) for step in range(int(_STEPS_A_TENTH * math.log10(len(ordered))) + 1))
    points = [(x(left), y(1000 * quantile(ordered, 1 - 1 / left))) for left in (*tenths, len(ordered))]
    return path(points, f"run{number % _COLOURS}")
