"""The report of a search: one HTML page without scripts or outside files, for people to look at.

It knows the search's record (`result.json`) and shows numbers, settings, classes and row numbers; texts only where the
record holds them. The page itself is `page/report.html`, a Jinja template with `page/report.css`; the drawings are of `charts`.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from itertools import combinations
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from training.judging.metrics import head_score
from training.report.charts import numerals
from training.report.charts.bars import draw_importance
from training.report.charts.confusion import draw_confusion
from training.report.charts.curves import Curve, draw_curves
from training.report.charts.dots import draw_confirmation
from training.report.charts.forest import Row, draw_forest
from training.report.charts.front import draw_front
from training.report.charts.history import draw_history
from training.report.charts.parallel import Range, draw_parallel
from training.report.charts.reliability import draw_reliability
from training.report.charts.risk_coverage import draw_risk_coverage
from training.report.summary import METRIC_NAMES, VERDICT_MARKS, Summary, difference, short_difference, verdict, wanted

# A wide drawing is laid out twice: for the column of a wide page, and for a telephone.
_WIDE, _NARROW = 960.0, 352.0
_MOST_PAIRS = 6


def write_report(record: Mapping[str, Any]) -> str:
    """Render a search's record as a page."""
    summary = Summary.of(record)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "fraction": numerals.fraction, "setting": numerals.setting, "duration": numerals.duration,
        "thousands": numerals.count, "threshold": numerals.threshold,
        "difference": difference, "short_difference": short_difference, "verdict": verdict, "wanted": wanted,
        "breakable": _breakable,
    }  # fmt: skip
    environment.globals |= {"plural": numerals.plural, "metric_names": METRIC_NAMES, "verdict_marks": VERDICT_MARKS}
    page = files("training.report").joinpath("html")
    template = environment.from_string(page.joinpath("report.html").read_text(encoding="utf-8"))
    return template.render(
        **summary.record,
        summary=summary,
        split=summary.split,
        charts=_charts(summary),
        styles=Markup(page.joinpath("report.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file, no data
        settings_text=yaml.safe_dump(dict(summary.record["settings"]), sort_keys=False, allow_unicode=True, width=100),
    )


def _breakable(name: str) -> str:
    # A zero-width space lets a long path or head name break where its parts meet.
    return name.replace("/", "/\u200b").replace("_", "_\u200b")


def _charts(summary: Summary) -> dict[str, Any]:
    record = summary.record
    trials, best = record["trials"], record["best"]
    heads = [head for head in record["heads"] if summary.confusion.get(head)]
    calibrated = {head: one for head, one in record["calibration"].items() if one}
    abstaining = {head: one for head, one in record["abstention"].items() if one}
    confirmed, importance = record["confirmed"], record["importance"]
    names = {one["position"]: f"trial {one['position']}" for one in confirmed} | summary.named
    return {
        "forest": _forest(summary),
        "confusion": {head: draw_confusion(head, record["heads"][head]["classes"], summary.confusion[head]) for head in heads},
        "reliability": [draw_reliability(head, one, summary.split) for head, one in calibrated.items()],
        "risk_coverage": [draw_risk_coverage(head, one, summary.split) for head, one in abstaining.items()],
        "history": _twice(lambda width: draw_history(trials, best, width)) if len(trials) > 1 else "",
        "curves": _curves(summary),
        "parallel": _parallel(summary),
        "importance": _twice(lambda width: draw_importance(importance, width)) if importance else "",
        "confirmation": _twice(lambda width: draw_confirmation(confirmed, names, best, width)) if confirmed else "",
        "front": _fronts(summary),
    }


def _twice(draw: Callable[[float], Markup]) -> Markup:
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(draw(_WIDE), draw(_NARROW))


def _forest(summary: Summary) -> str:
    compared = [one for one in summary.record["comparisons"] if one["against"] != "majority" and one.get("low") is not None]
    rows = [
        Row(one["against"], one["head"] or "all heads (score)", one["difference"], one["low"], one["high"], one["verdict"])
        for against in summary.against
        for one in compared
        if one["against"] == against
    ]
    return _twice(lambda width: draw_forest(rows, width)) if rows else ""


def _curves(summary: Summary) -> list[Markup]:
    record = summary.record
    epochs = {trial["position"]: trial.get("epochs") or () for trial in record["trials"]}
    failed = {trial["position"] for trial in record["trials"] if summary.is_failed(trial)}

    def curves(score: Callable[[Mapping[str, Any]], float | None]) -> list[Curve]:
        found = {
            position: [(epoch["number"], value) for epoch in one if (value := score(epoch)) is not None and math.isfinite(value)]
            for position, one in epochs.items()
        }
        return [Curve(position, points, position in failed) for position, points in found.items() if points]

    if not any(epochs.values()):
        return []
    best = record["best"]
    kept = next((trial["best_epoch"] for trial in record["trials"] if trial["position"] == best), 0)
    drawn = [draw_curves("Selection score", curves(lambda epoch: epoch.get("score")), best, kept)]
    for head in record["heads"]:
        drawn.append(draw_curves(head, curves(partial(_head_score, head)), best, kept))
    return drawn


def _head_score(head: str, epoch: Mapping[str, Any]) -> float | None:
    return (epoch.get("heads") or {}).get(head)


def _parallel(summary: Summary) -> str:
    trials, best = summary.record["trials"], summary.record["best"]
    scored = [trial for trial in trials if trial["score"] is not None]
    paths = [path for path in summary.searched if all(path in trial["point"] for trial in scored)]
    if len(scored) < 2 or not paths:
        return ""
    ranges = {path: Range(*found) if (found := summary.range_of(path)) else None for path in paths}
    return _twice(lambda width: draw_parallel(scored, ranges, best, width))


def _fronts(summary: Summary) -> list[Markup]:
    record = summary.record
    if not record["front"]:
        return []
    metrics = {head: one.get("metric", "macro_f1") for head, one in record["heads"].items()}
    measured = {trial["position"]: trial.get("metrics") or {} for trial in record["trials"]}
    drawn = []
    for one, two in list(combinations(metrics, 2))[:_MOST_PAIRS]:
        scores = {
            position: (head_score(heads[one], metrics[one]), head_score(heads[two], metrics[two]))
            for position, heads in measured.items()
            if all(heads.get(head, {}).get(metrics[head]) is not None for head in (one, two))
        }
        if scores:
            drawn.append(draw_front((one, two), scores, record["front"], record["best"], is_line=len(metrics) == 2))
    return drawn
