"""A Grafana dashboard of what a server publishes, made of the same names, so that it cannot ask for a figure that is not there.

It is a plain dashboard of the JSON model that Grafana imports; its data source is chosen in Grafana. It asks `/metrics`, not Ray's own
exporters, whose names begin with `ray_`.

Sources: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/ for the model;
https://prometheus.io/docs/practices/histograms/ for quantiles.
"""

import json
from typing import Any

from serving.observing.names import METRICS

Panel = dict[str, Any]

_SCHEMA_VERSION = 39
_COLUMNS = 2
_WIDTH, _HEIGHT = 12, 8
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_PSI_STEPS = [{"color": "green", "value": None}, {"color": "yellow", "value": 0.1}, {"color": "red", "value": 0.25}]


def write_dashboard() -> str:
    """Return the dashboard as JSON."""
    panels = [_placed(panel, position) for position, panel in enumerate(_panels())]
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    dashboard = {
        "uid": "twohead",
        "title": "twohead",
        "tags": ["twohead"],
        "schemaVersion": _SCHEMA_VERSION,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source]},
        "panels": panels,
    }
    return json.dumps(dashboard, indent=2)


def _panels() -> list[Panel]:
    refusals = {"refused": "refused", "expired": "expired", "cancelled": "cancelled", "failed": "failed (texts)"}
    return [
        _panel("Requests, texts, batches", {**_requests(), "texts": _rate("texts"), "batches": _rate("batches")}, "ops"),
        _panel("Truncated texts", {"truncated": _rate("truncated")}, "ops"),
        _panel("Texts that were not computed", {"answered before": _rate("remembered"), "with an equal one": _rate("shared")}, "ops"),
        _panel("Tokens", {"tokens": _rate("tokens"), "with padding": _rate("padded_tokens")}, "ops"),
        _panel("Waiting for the engine", _quantiles("queue_seconds"), "s"),
        _panel("Computing a batch", _quantiles("batch_seconds"), "s"),
        _panel("Tokens of a batch", _quantiles("batch_tokens")),
        _panel("Texts of a batch", _quantiles("batch_texts")),
        _panel("Waiting texts and tokens", {"texts": _sum("queued_texts"), "tokens": _sum("queued_tokens")}),
        _panel("Not answered, by reason", {label: _rate(name) for name, label in refusals.items()}, "ops"),
        _panel("Replicas and how busy their engines are", {"replicas": f"count({_one('version')})", "busy engines": _rate("compute_s")}),
        _panel("Version, and replicas that answer with it", {"version {{version}}": f'count_values("version", {_one("version")})'}),
        _panel("Replicas by precision", {"{{precision}}": _sum("precision", "precision")}),
        _panel("Answers by class", {"{{head}}: {{class}}": _rate("answers", "head, class")}, "ops"),
        _panel("Abstentions by head", {"{{head}}": _rate("abstained", "head")}, "ops"),
        _panel("Agreement with the candidate, by head", {"{{candidate}}: {{head}}": _agreement()}, "percentunit"),
        _panel("The candidate", _candidate(), "ops"),
        _drift("Drift of classes (population stability index)", "class_psi"),
        _drift("Drift of confidence (population stability index)", "confidence_psi"),
    ]


def _one(name: str) -> str:
    """Return the name under which a figure that is no histogram is queried."""
    (series,) = METRICS[name].series
    return series


def _sum(name: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} ({_one(name)})"


def _rate(name: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({_one(name)}[$__rate_interval]))"


def _agreement() -> str:
    return f"{_rate('agreed', 'candidate, head')} / {_rate('compared', 'candidate, head')}"


def _candidate() -> dict[str, str]:
    told = {"candidate_answers": "answered (texts)", "candidate_errors": "failed", "candidate_left_out": "not compared"}
    return {f"{{{{candidate}}}}: {label}": _rate(name, "candidate") for name, label in told.items()}


def _requests() -> dict[str, str]:
    """Every request of which a text was computed has waited, if only for a moment."""
    *_, count = METRICS["queue_seconds"].series
    return {"requests": f"sum (rate({count}[$__rate_interval]))"}


def _quantiles(name: str) -> dict[str, str]:
    bucket, total, count = METRICS[name].series
    rates = f"sum by (le) (rate({bucket}[$__rate_interval]))"
    mean = " / ".join(f"sum(rate({one}[$__rate_interval]))" for one in (total, count))
    return {"p50": f"histogram_quantile(0.5, {rates})", "p99": f"histogram_quantile(0.99, {rates})", "mean": mean}


def _drift(title: str, name: str) -> Panel:
    """Show the worst replica of each head, beside what chance alone may bring."""
    chance = _one(f"{name}_by_chance")
    panel = _panel(title, {"{{head}}": f"max by (head) ({_one(name)})", "{{head}}, by chance": f"max by (head) ({chance})"})
    defaults = panel["fieldConfig"]["defaults"]
    defaults |= {"thresholds": {"mode": "absolute", "steps": _PSI_STEPS}, "custom": {"thresholdsStyle": {"mode": "dashed"}}}
    return panel | {"description": METRICS[name].text}


def _panel(title: str, queries: dict[str, str], unit: str = "short") -> Panel:
    return {
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": _SOURCE, "expr": query, "legendFormat": label}
            for number, (label, query) in enumerate(queries.items())
        ],
    }


def _placed(panel: Panel, position: int) -> Panel:
    row, column = divmod(position, _COLUMNS)
    return panel | {"id": position + 1, "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}}
