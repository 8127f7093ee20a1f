"""A Grafana dashboard of what a server publishes, made of the same names, so that it cannot ask for a figure that is not there.

It is a plain dashboard of the JSON model that Grafana imports; its data source is chosen in Grafana. It asks `/metrics`, not Ray's own
exporters, whose names begin with `ray_`.

Sources: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/ for the model;
https://prometheus.io/docs/practices/histograms/ for quantiles.
"""

from cluster.grafana import Panel, dashboard, panel
from serving.observing.names import METRICS

_PSI_STEPS = [{"color": "green", "value": None}, {"color": "yellow", "value": 0.1}, {"color": "red", "value": 0.25}]


def write_dashboard() -> str:
    """Return the dashboard as JSON."""
    return dashboard("twohead", "twohead", _panels())


def _panels() -> list[Panel]:
    refusals = {"refused": "refused", "expired": "expired", "cancelled": "cancelled", "failed": "failed (texts)"}
    return [
        panel("Requests, texts, batches", {**_requests(), "texts": _rate("texts"), "batches": _rate("batches")}, "ops"),
        panel("Truncated texts", {"truncated": _rate("truncated")}, "ops"),
        panel("Texts that were not computed", {"answered before": _rate("remembered"), "with an equal one": _rate("shared")}, "ops"),
        panel("Tokens", {"tokens": _rate("tokens"), "with padding": _rate("padded_tokens")}, "ops"),
        panel("Waiting for the engine", _quantiles("queue_seconds"), "s"),
        panel("Computing a batch", _quantiles("batch_seconds"), "s"),
        panel("Tokens of a batch", _quantiles("batch_tokens")),
        panel("Texts of a batch", _quantiles("batch_texts")),
        panel("Waiting texts and tokens", {"texts": _sum("queued_texts"), "tokens": _sum("queued_tokens")}),
        panel("Seconds of work that wait, on the replica with most", {"seconds": f"max ({_one('queued_seconds')})"}, "s"),
        panel("Requests a second, by replica", {"{{replica}}": _sum("requests_per_second", "replica")}, "reqps"),
        panel("Not answered, by reason", {label: _rate(name) for name, label in refusals.items()}, "ops"),
        panel("Replicas and how busy their engines are", {"replicas": f"count({_one('version')})", "busy engines": _rate("compute_s")}),
        panel("Version, and replicas that answer with it", {"version {{version}}": f'count_values("version", {_one("version")})'}),
        panel("Replicas by precision", {"{{precision}}": _sum("precision", "precision")}),
        panel("Answers by class", {"{{head}}: {{class}}": _rate("answers", "head, class")}, "ops"),
        panel("Abstentions by head", {"{{head}}": _rate("abstained", "head")}, "ops"),
        panel("Agreement with the candidate, by head", {"{{candidate}}: {{head}}": _agreement()}, "percentunit"),
        panel("The candidate", _candidate(), "ops"),
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
    shown = panel(title, {"{{head}}": f"max by (head) ({_one(name)})", "{{head}}, by chance": f"max by (head) ({chance})"})
    defaults = shown["fieldConfig"]["defaults"]
    defaults |= {"thresholds": {"mode": "absolute", "steps": _PSI_STEPS}, "custom": {"thresholdsStyle": {"mode": "dashed"}}}
    return shown | {"description": METRICS[name].text}
