"""The dashboard and the scrape configuration: valid, and made of figures that are published."""

import json
import re
from typing import Any

import pytest
import yaml

from cluster.console import run_command
from cluster.served import QUEUED, REQUESTS, VERSION
from serving.__main__ import make_parser
from serving.observing.names import METRICS

SERIES = {series for metric in METRICS.values() for series in metric.series}


def rendered(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run_command(make_parser(), ("render", *words)) == 0
    return capsys.readouterr().out


@pytest.fixture
def dashboard(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(rendered(capsys, "grafana"))


def test_every_figure_that_is_asked_for_is_published(dashboard: Any) -> None:
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"\b[a-z]+_\w+\b", query) if name.startswith(("twohead_", "ray_", "serve_"))}
    assert asked <= SERIES
    # And every figure is on it, histograms by each of their series.
    assert {metric.name for metric in METRICS.values() if not asked & set(metric.series)} == set()


def test_what_a_cluster_reads_of_replicas_is_published() -> None:
    assert {name.removeprefix("ray_") for name in (VERSION, REQUESTS, QUEUED)} <= SERIES


def test_labels_that_are_grouped_by_are_those_of_the_figure(dashboard: Any) -> None:
    labels = {
        series: set(metric.labels) | ({"le"} if metric.kind == "histogram" else set())
        for metric in METRICS.values()
        for series in metric.series
    }
    grouped = 0
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            for by, inner in re.findall(r"by \(([^)]*)\) \((?:rate\()?(\w+)", target["expr"]):
                # Serve itself says which replica tells a figure.
                assert set(by.split(", ")) <= labels[inner] | {"replica"}, target
                grouped += 1
            if "histogram_quantile" not in target["expr"] and "count_values" not in target["expr"]:
                shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                assert all(name in target["expr"] for name in shown)
    assert grouped >= 8


def test_panels_have_places_of_their_own(dashboard: Any) -> None:
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]}
    assert len(places) == len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in dashboard["panels"])
    for panel in dashboard["panels"]:
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_parentheses_of_queries_are_closed(dashboard: Any) -> None:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")") > 0


@pytest.mark.parametrize(("host", "target"), [("127.0.0.1", "127.0.0.1:81"), ("::1", "[::1]:81")])
def test_prometheus_asks_the_door(host: str, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    (job,) = yaml.safe_load(rendered(capsys, "prometheus", "--set", f"serving.host={host}", "--set", "serving.port=81"))["scrape_configs"]
    assert (job["metrics_path"], job["static_configs"]) == ("/metrics", [{"targets": [target]}])


@pytest.mark.parametrize(("host", "target"), [("0.0.0.0", "127.0.0.1:8000"), ("::", "[::1]:8000"), ("10.0.0.1", "10.0.0.1:8000")])
def test_prometheus_has_a_key_where_the_door_asks_for_one(host: str, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = rendered(capsys, "prometheus", "--set", f"serving.host='{host}'", "--set", "serving.require_keys=true")
    (job,) = yaml.safe_load(printed)["scrape_configs"]
    # What listens everywhere has no address of that name.
    assert job["static_configs"] == [{"targets": [target]}]
    command, _, file = printed.splitlines()[0].partition(" > ")
    assert job["authorization"] == {"credentials_file": file}
    words = command.partition("python -m serving ")[2].split()
    assert make_parser().parse_args(words).scope == ["read"]
    assert "authorization" not in rendered(capsys, "prometheus")


def test_what_is_rendered_must_be_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command(make_parser(), ("render", "datadog"))
    assert "choose from" in capsys.readouterr().err
