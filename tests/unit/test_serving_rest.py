"""What Serve does not answer at once or at all, and what somebody else does to it meanwhile."""

import json
from typing import Any
from unittest.mock import MagicMock

import pytest

from cluster.errors import ClusterError
from cluster.settings import ClusterSettings
from serving import rollout as module
from serving import serve_rest
from serving.rollout import Rollout
from serving.settings import ServingSettings
from serving.status import closed_doors
from tests.fake_serve import LATE, OTHER, FakeServe, made, settings_of_a_free_port


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> ServingSettings:
    monkeypatch.setattr(module, "_answers", lambda client: True)
    return settings_of_a_free_port()


@pytest.mark.usefixtures("impatient")
def test_what_serve_says_is_our_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_rest, "PATIENCE_S", 0.0)
    serve = FakeServe()
    serve.error = RuntimeError("Request failed with status code 503: GCS is down.")
    with pytest.raises(ClusterError, match="Serve: Request failed with status code 503: GCS is down"):
        made(serve).status()


@pytest.mark.usefixtures("impatient")
def test_what_a_servers_traceback_ends_with_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_rest, "PATIENCE_S", 0.0)
    serve = FakeServe()
    serve.error = RuntimeError(LATE)
    with pytest.raises(ClusterError) as caught:
        made(serve).status()
    assert caught.value.message == "Serve: TimeoutError: HTTP proxies not available after 60s."


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_rest, "_PAUSE_S", 0.0)
    monkeypatch.setattr(module, "POLL_S", 0.0)


@pytest.mark.usefixtures("impatient")
def test_what_was_only_late_is_asked_again_and_said_once(settings: ServingSettings) -> None:
    serve = FakeServe()
    said: list[str] = []
    serve.late["put"] = 3
    Rollout(serve, ClusterSettings(storage="/registry"), said.append).deploy(settings, 7)
    assert (len(serve.puts), len({json.dumps(put) for put in serve.puts})) == (4, 1)
    assert said == ["Serve: TimeoutError: HTTP proxies not available after 60s; asked again"]
    serve.late["get"] = 2
    made(serve).deploy(settings, 7)
    assert serve.late["get"] == 0


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_what_becomes_late_while_a_deployment_begins_is_asked_again(
    settings: ServingSettings, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("tests.fake_serve.LATE", LATE.replace("500", str(status)))
    serve = FakeServe()
    begun = serve.deploy_applications

    def begin(config: dict[str, Any]) -> None:
        begun(config)
        serve.late["get"] = 2

    monkeypatch.setattr(serve, "deploy_applications", begin)
    made(serve).deploy(settings, 7)
    made(serve).end_trial(settings)
    assert (serve.late["get"], len(serve.puts)) == (0, 2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("late", ["get", "put"])
def test_what_stays_late_is_told_in_the_end(late: str, settings: ServingSettings) -> None:
    serve = FakeServe()
    serve.late[late] = 1_000_000
    with pytest.raises(ClusterError, match=r"HTTP proxies not available after 60s"):
        made(serve).deploy(settings.model_copy(update={"ready_timeout_s": 1.0}), 7)
    assert serve.late[late] < 1_000_000 - 1


@pytest.mark.usefixtures("impatient")
def test_who_came_between_two_tries_is_left_running(settings: ServingSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    serve = FakeServe()
    serve.late["put"] = 1
    begun = serve.deploy_applications

    def begin(config: dict[str, Any]) -> None:
        serve.applications["other"] = OTHER
        begun(config)

    monkeypatch.setattr(serve, "deploy_applications", begin)
    made(serve).deploy(settings, 7)
    assert [application["name"] for application in serve.puts[-1]["applications"]] == ["other", "twohead"]


@pytest.mark.parametrize("status", [400, 501])
def test_what_serve_refuses_is_not_asked_again(settings: ServingSettings, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    serve = FakeServe()
    put = MagicMock(side_effect=RuntimeError(f"Request failed with status code {status}: no route."))
    monkeypatch.setattr(serve, "deploy_applications", put)
    with pytest.raises(ClusterError, match=f"status code {status}: no route"):
        made(serve).deploy(settings, 7)
    assert put.call_count == 1


def test_elsewhere_it_is_ready_when_serves_proxies_are(settings: ServingSettings) -> None:
    serve = FakeServe()
    serve.door = "STARTING"
    with pytest.raises(
        ClusterError, match=rf"1 of 1 proxies of Serve do not answer yet; is port {settings.port} of their machines taken\?"
    ):
        made(serve, address="http://head:8265").deploy(settings.model_copy(update={"ready_timeout_s": 0.01}), 7)
    serve.door = "HEALTHY"
    made(serve, address="http://head:8265").deploy(settings, 7)


def test_code_that_cannot_be_uploaded_is_said(settings: ServingSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    serve = FakeServe()
    monkeypatch.setattr(serve, "_upload_working_dir_if_needed", MagicMock(side_effect=RuntimeError("no room")))
    with pytest.raises(ClusterError, match="the upload of the code: no room"):
        made(serve, address="http://head:8265").deploy(settings, 7)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("others", [(), (OTHER,)])
def test_it_has_ended_when_it_is_gone(settings: ServingSettings, others: tuple[dict[str, Any], ...]) -> None:
    serve = FakeServe(*others)
    made(serve).deploy(settings, 7)
    serve.ending = 3
    assert made(serve).stop()
    assert (serve.ending, sorted(serve.applications)) == (0, [other["name"] for other in others])


@pytest.mark.usefixtures("impatient")
def test_an_end_that_serve_ignored_is_asked_for_again(settings: ServingSettings) -> None:
    serve = FakeServe()
    made(serve).deploy(settings, 7)
    serve.missed_ends = 2
    assert made(serve).stop()
    assert serve.is_ended


def test_what_does_not_end_is_said_and_at_a_commands_end_no_failure(settings: ServingSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", -settings.deadline_ms / 1000 - 5.0 + 0.3)
    serve, said = FakeServe(), list[str]()
    made(serve).deploy(settings, 7)
    serve.ending = 1_000_000
    with pytest.raises(ClusterError, match="still ending"):
        made(serve).stop()
    assert serve.is_ended
    # As what it was deployed, Serve does not tell any more.
    Rollout(serve, ClusterSettings(storage="/registry"), said.append).stop_at_last()
    assert said == ["warning: what is served is still ending (`python -m cluster status` tells when it is gone)"]


@pytest.mark.usefixtures("impatient")
def test_who_came_before_a_second_end_is_left_running(settings: ServingSettings) -> None:
    serve = FakeServe()
    made(serve).deploy(settings, 7)
    serve.late["delete"], serve.comes_meanwhile = 1, OTHER
    assert made(serve).stop()
    assert not serve.is_ended
    assert list(serve.applications) == ["other"]


@pytest.mark.usefixtures("impatient")
def test_who_is_there_without_a_config_is_not_ended_with_all_of_serve(settings: ServingSettings) -> None:
    # As `serve.run` leaves an application; a PUT that does not name it lets it be.
    serve = FakeServe()
    made(serve).deploy(settings, 7)
    serve.undeclared = {"other": {"status": "RUNNING", "deployed_app_config": None, "deployments": {}}}
    assert made(serve).stop()
    assert not serve.is_ended
    assert serve.puts[-1]["applications"] == []


def test_a_capacity_that_somebody_lowered_stays_so(settings: ServingSettings) -> None:
    serve = FakeServe(OTHER)
    made(serve).deploy(settings, 7)
    serve.capacity = 50.0
    made(serve).scale(2, 4)
    made(serve).deploy(settings, 7)
    assert [put.get("target_capacity") for put in serve.puts] == [None, 50.0, 50.0]


@pytest.mark.usefixtures("impatient")
def test_what_is_deployed_anew_while_it_ends_stays(settings: ServingSettings) -> None:
    serve = FakeServe()
    made(serve).deploy(settings, 7)
    serve.missed_ends, serve.is_deployed_anew = 1, True
    with pytest.raises(ClusterError, match="somebody changed or put back"):
        made(serve).stop()
    assert not serve.is_ended


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("verb", ["scale", "end_trial"])
def test_serve_is_not_begun_anew_where_somebody_ended_it_meanwhile(settings: ServingSettings, verb: str) -> None:
    # With Serve's own doors, open to everybody.
    serve = FakeServe()
    made(serve).deploy(settings, 7)
    puts = len(serve.puts)
    serve.late["put"] = 1
    serve.goes_after_a_put = True
    with pytest.raises(ClusterError, match="nothing is deployed"):
        made(serve).scale(1, 2) if verb == "scale" else made(serve).end_trial(settings)
    assert len(serve.puts) == puts + 1


@pytest.mark.usefixtures("impatient")
def test_a_dashboard_that_is_late_itself_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import requests
    from ray.dashboard.modules.serve import sdk

    answers: list[int] = [503, 500]
    serve, said = FakeServe(), list[str]()

    def client(url: str) -> FakeServe:
        if not answers:
            return serve
        response = requests.Response()
        response.status_code = answers.pop()
        raise requests.HTTPError("Server Error", response=response)

    monkeypatch.setattr(sdk, "ServeSubmissionClient", client)
    assert not Rollout.at("http://here", ClusterSettings(storage="/registry"), said.append).is_deployed()
    assert said == ["the dashboard: Server Error; asked again"]


@pytest.mark.parametrize(
    ("location", "proxies", "said"),
    [
        ("EveryNode", {}, "1 of 1 proxies of Serve do not answer yet"),
        ("EveryNode", {"a": {"status": "HEALTHY"}}, ""),
        # Without a replica there it does not matter.
        ("EveryNode", {"a": {"status": "HEALTHY"}, "b": {"status": "STARTING"}}, ""),
        ("EveryNode", {"a": {"status": "STARTING"}, "b": {"status": "HEALTHY"}}, "1 of 1 proxies of Serve do not answer yet"),
        ("HeadOnly", {"head": {"status": "HEALTHY"}}, ""),
        ("HeadOnly", {"head": {"status": "UNHEALTHY"}}, "no proxy of Serve answers yet"),
        ("HeadOnly", {}, "no proxy of Serve answers yet"),
    ],
)
def test_doors_are_open_where_replicas_are(location: str, proxies: dict[str, Any], said: str) -> None:
    replicas = [{"state": "RUNNING", "node_id": "a"}, {"state": "STARTING", "node_id": "c"}]
    application = {"deployments": {"Replica": {"replicas": replicas}}}
    assert closed_doors(application, {"proxy_location": location, "proxies": proxies}) == said
    # None runs when nobody asks.
    assert bool(closed_doors({"deployments": {}}, {"proxy_location": location, "proxies": proxies})) == (
        "HEALTHY" not in [one["status"] for one in proxies.values()]
    )
