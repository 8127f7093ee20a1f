import copy
import json
import socket
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from cluster.errors import ClusterError
from cluster.settings import ClusterSettings
from serving import rollout as module
from serving import serve_rest
from serving.app import APPLICATION
from serving.candidates import command
from serving.rollout import Rollout
from serving.settings import CanarySettings, ServingSettings, ShadowSettings
from serving.status import closed_doors, reason

OTHER = {"name": "other", "import_path": "other:app", "route_prefix": "/other"}
TRACEBACK = """The deployment failed to start 3 times in a row. Error:
ray::ServeReplica (pid=1)
RuntimeError: Traceback (most recent call last):
  File "serving/replica.py", line 39, in __init__
training.errors.CheckpointError: weights.safetensors: has another SHA-256
"""


# As Ray's client says what its server failed of, with a full stop after the whole answer.
LATE = """Request failed with status code 500: Traceback (most recent call last):
  File "ray/serve/_private/api.py", line 223, in serve_start_async
TimeoutError: HTTP proxies not available after 60s.
."""


class FakeServe:
    """Serve's REST interface in memory; everything deployed runs at once, with `min_replicas` replicas."""

    def __init__(self, *others: dict[str, Any], status: str = "RUNNING", message: str = "") -> None:
        self.applications = {other["name"]: copy.deepcopy(other) for other in others}
        self.http_options: dict[str, Any] = {}
        self.status, self.message = status, message
        self.puts: list[dict[str, Any]] = []
        self.is_ended = False
        self.wanted = 0
        self.error: Exception | None = None
        self.late = {"get": 0, "put": 0, "delete": 0}
        self.comes_meanwhile: dict[str, Any] | None = None
        self.undeclared: dict[str, Any] = {}
        self.capacity: float | None = None
        self.door = "HEALTHY"
        self.missed_ends = 0
        self.ending = 0
        self.deployed_at = 1.0
        self.is_deployed_anew = False
        self.goes_after_a_put = False

    def get_serve_details(self) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        self._be_late("get")
        details: dict[str, Any] = {"applications": {name: self._described(config) for name, config in self.applications.items()}}
        details["applications"] |= self.undeclared
        if self.ending and APPLICATION not in self.applications:
            # While an application ends, Serve does not tell any more as what it was deployed.
            self.ending -= 1
            ending = {"status": "DELETING", "message": "", "last_deployed_time_s": 1.0, "deployed_app_config": None, "deployments": {}}
            details["applications"][APPLICATION] = ending
        if self.http_options:
            details |= {
                "proxies": {"node": {"status": self.door}},
                "proxy_location": "EveryNode",
                "http_options": self.http_options,
                "grpc_options": {},
                "target_capacity": self.capacity,
            }
        return copy.deepcopy(details)

    def _be_late(self, method: str) -> None:
        if self.late[method]:
            self.late[method] -= 1
            raise RuntimeError(LATE)

    def _described(self, config: dict[str, Any]) -> dict[str, Any]:
        running = sum(deployment["autoscaling_config"]["min_replicas"] for deployment in config.get("deployments", ()))
        replicas = [{"state": "RUNNING", "node_id": "node"}] * running
        deployments = {"Replica": {"replicas": replicas, "message": self.message, "target_num_replicas": self.wanted}}
        told = {"status": self.status, "message": "Failed to update.", "last_deployed_time_s": self.deployed_at}
        return told | {"deployed_app_config": config, "deployments": deployments}

    def deploy_applications(self, config: dict[str, Any]) -> None:
        self.puts.append(copy.deepcopy(config))
        if self.goes_after_a_put:
            self.applications, self.http_options = {}, {}
        self._be_late("put")
        self.http_options = self.http_options or config["http_options"]
        self.applications = {application["name"]: application for application in config["applications"]}

    def delete_applications(self) -> None:
        if self.comes_meanwhile:
            self.applications[self.comes_meanwhile["name"]] = self.comes_meanwhile
        self._be_late("delete")
        if self.missed_ends:
            # Serve says nothing where its controller is late.
            self.missed_ends -= 1
            self.deployed_at += self.is_deployed_anew
            return
        self.is_ended = True
        self.applications = {}

    def _upload_working_dir_if_needed(self, runtime_env: dict[str, Any]) -> None:
        runtime_env["working_dir"] = "gcs://code.zip"


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> ServingSettings:
    monkeypatch.setattr(module, "_answers", lambda client: True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return ServingSettings(port=port, max_replicas=4)


def made(serve: FakeServe, **cluster: Any) -> Rollout:
    return Rollout(serve, ClusterSettings(storage="/registry", **cluster), lambda line: None)


def test_the_storage_of_replicas_is_absolute(settings: ServingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # They run in a copy of the folder, somewhere else.
    monkeypatch.chdir(tmp_path)
    serve = FakeServe()
    Rollout(serve, ClusterSettings(storage="here"), lambda line: None).deploy(settings, 7)
    assert serve.puts[0]["applications"][0]["args"]["storage"] == str(tmp_path / "here")


def test_deploying_keeps_other_applications(settings: ServingSettings) -> None:
    serve = FakeServe(OTHER)
    made(serve).deploy(settings, 7)
    assert [application["name"] for application in serve.puts[0]["applications"]] == ["other", "twohead"]
    status = made(serve).status()
    assert (status.state, status.running, status.min_replicas, status.max_replicas) == ("RUNNING", 1, 1, 4)
    assert (status.url, status.version, status.name) == (settings.url, 7, "production")


def test_every_deployment_of_a_candidate_is_a_trial_of_its_own(settings: ServingSettings) -> None:
    serve = FakeServe()
    tried = settings.model_copy(update={"shadow": ShadowSettings(version=8)})
    for deployed in (tried, tried, settings, settings):
        made(serve).deploy(deployed, 7)
    first, second, *without = (put["applications"][0]["args"]["trial"] for put in serve.puts)
    assert len({first, second, ""}) == 3
    # Without one nothing changes, and no replica is restarted.
    assert without == ["", ""]


def test_a_trial_begins_and_ends_between_the_replicas_that_were_asked_for(
    settings: ServingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = FakeServe(OTHER)
    said: list[str] = []
    rollout = Rollout(serve, ClusterSettings(storage="/registry"), said.append)
    tried = settings.model_copy(update={"canary": CanarySettings(version=8)})
    rollout.deploy(settings, 7)
    rollout.scale(4, 8)
    rollout.deploy(tried, 7)
    assert said == ["replicas stay from 4 to 8, as they are deployed: a trial does not change that, `scale` does"]
    monkeypatch.setattr(command, "reach", lambda cluster: nullcontext("http://head:8265"))
    monkeypatch.setattr(Rollout, "at", lambda *_: rollout)
    # Whatever the file says by now.
    command._end(ClusterSettings(), tried.model_copy(update={"min_replicas": 3, "max_queue_s": 9.0}))
    assert [application["name"] for application in serve.puts[-1]["applications"]] == ["other", "twohead"]
    status = rollout.status()
    assert (status.min_replicas, status.max_replicas, status.version) == (4, 8, 7)
    # As it was before the trial: no setting changes by the way.
    before, after = serve.puts[1], serve.puts[-1]
    assert before["applications"][1]["deployments"][0]["autoscaling_config"].pop("initial_replicas") is None
    assert after == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trial_with_no_replica_when_nobody_asks_ends_with_those_it_has(settings: ServingSettings) -> None:
    serve = FakeServe()
    tried = settings.model_copy(update={"min_replicas": 0, "shadow": ShadowSettings(version=8)})
    made(serve).deploy(tried, 7)
    serve.wanted = 3
    made(serve).end_trial(tried)
    assert wanted_after(serve.puts[-1], 3) == 3


def test_what_is_deployed_without_a_trial_has_the_bounds_of_its_settings(settings: ServingSettings) -> None:
    serve = FakeServe()
    made(serve).deploy(settings, 7)
    made(serve).scale(4, 8)
    made(serve).deploy(settings, 7)
    assert (made(serve).status().min_replicas, made(serve).status().max_replicas) == (1, 4)


def test_scaling_changes_the_numbers_and_nothing_else(settings: ServingSettings) -> None:
    serve = FakeServe(OTHER)
    rollout = made(serve)
    rollout.deploy(settings, None)
    status = rollout.scale(2, 3)
    assert (status.running, status.min_replicas, status.max_replicas) == (2, 2, 3)
    before, after = serve.puts
    for put in (before, after):
        for deployment in put["applications"][1]["deployments"]:
            for name in ("min_replicas", "initial_replicas", "max_replicas"):
                deployment["autoscaling_config"].pop(name, None)
    # Anything else that changed would restart replicas.
    assert before["applications"] == after["applications"]
    assert before["http_options"] == after["http_options"]


def wanted_after(put: dict[str, Any], before: int) -> int:
    """How many replicas Serve's controller wants after a change, by its own code, where it wanted so many before."""
    from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
    from ray.serve._private.common import DeploymentID
    from ray.serve.config import AutoscalingConfig

    (config,) = next(one for one in put["applications"] if one["name"] == "twohead")["deployments"]
    scaling = AutoscalingConfig(**config["autoscaling_config"])
    info = SimpleNamespace(
        deployment_config=SimpleNamespace(autoscaling_config=scaling, gang_scheduling_config=None),
        target_capacity=None, target_capacity_direction=None, config_changed=lambda _: True,
    )  # fmt: skip
    return DeploymentAutoscalingState(DeploymentID("Replica", "twohead")).register(info, before)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("minimum", "before", "after"), [(1, 3, 3), (1, -1, 1), (2, 1, 2), (0, 3, 3), (0, 0, 1), (0, -1, 1), (1, 9, 4)])
def test_a_changed_deployment_goes_on_with_the_replicas_it_has(settings: ServingSettings, minimum: int, before: int, after: int) -> None:
    serve = FakeServe()
    rollout = made(serve)
    if before >= 0:
        rollout.deploy(settings, None)
        serve.wanted = before
    rollout.deploy(settings.model_copy(update={"min_replicas": minimum, "deadline_ms": 9_000}), None)
    assert wanted_after(serve.puts[-1], before) == after


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("bounds", "before", "after"), [((1, 50), 1, 1), ((1, 50), 9, 9), ((4, 50), 1, 4), ((0, 2), 0, 0), ((1, 2), 8, 2)])
def test_other_bounds_start_and_end_no_replica_within_them(
    settings: ServingSettings, bounds: tuple[int, int], before: int, after: int
) -> None:
    serve = FakeServe()
    rollout = made(serve)
    rollout.deploy(settings, None)
    rollout.scale(*bounds)
    assert wanted_after(serve.puts[-1], before) == after


def test_stopping_leaves_others_running(settings: ServingSettings) -> None:
    serve = FakeServe(OTHER)
    rollout = made(serve)
    rollout.deploy(settings, None)
    assert rollout.stop()
    assert (list(serve.applications), serve.is_ended) == (["other"], False)
    assert not rollout.stop()


def test_stopping_the_last_one_ends_serve(settings: ServingSettings) -> None:
    serve = FakeServe()
    rollout = made(serve)
    rollout.deploy(settings, None)
    assert rollout.is_deployed()
    assert rollout.stop()
    assert serve.is_ended
    assert not rollout.is_deployed()


@pytest.mark.parametrize("verb", ["status", "scale"])
def test_nothing_deployed(verb: str) -> None:
    rollout = made(FakeServe(OTHER))
    with pytest.raises(ClusterError, match="nothing is deployed on this cluster"):
        rollout.status() if verb == "status" else rollout.scale(1, 2)


def test_a_taken_port_is_told_before_anything_is_deployed(settings: ServingSettings) -> None:
    serve = FakeServe()
    with socket.socket() as taken:
        taken.bind((settings.host, settings.port))
        taken.listen()
        with pytest.raises(ClusterError, match=f"127.0.0.1:{settings.port} is taken by another process"):
            made(serve).deploy(settings, None)
    assert serve.puts == []


def test_who_is_overtaken_by_another_deployment_is_told(settings: ServingSettings) -> None:
    serve = FakeServe(status="DEPLOYING")

    def overtake(line: str) -> None:
        serve.status = "RUNNING"
        made(serve).deploy(settings, 8)

    with pytest.raises(ClusterError, match="somebody deployed something else meanwhile"):
        Rollout(serve, ClusterSettings(storage="/registry"), overtake).deploy(settings, 7)
    assert made(serve).status().version == 8


def test_serve_does_not_move_to_another_port(settings: ServingSettings) -> None:
    serve = FakeServe()
    rollout = made(serve)
    rollout.deploy(settings, None)
    with pytest.raises(ClusterError, match=f"Serve listens on 127.0.0.1:{settings.port} here and cannot move to 127.0.0.1:9"):
        rollout.deploy(settings.model_copy(update={"port": 9}), None)
    assert len(serve.puts) == 1


def test_a_replica_that_cannot_start_says_why(settings: ServingSettings) -> None:
    rollout = made(FakeServe(status="DEPLOY_FAILED", message=TRACEBACK))
    with pytest.raises(ClusterError) as caught:
        rollout.deploy(settings, None)
    assert caught.value.message == "the replicas cannot start: weights.safetensors: has another SHA-256"


def test_waiting_ends(settings: ServingSettings) -> None:
    lines: list[str] = []
    rollout = Rollout(FakeServe(status="DEPLOYING", message="no node has 99 CPUs"), ClusterSettings(storage="/registry"), lines.append)
    with pytest.raises(ClusterError, match=r"does not answer after 0 s: no node has 99 CPUs"):
        rollout.deploy(settings.model_copy(update={"ready_timeout_s": 0.001}), None)


def test_ready_is_what_answers_and_not_what_serve_says(settings: ServingSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, False, True])
    monkeypatch.setattr(module, "_answers", lambda client: next(answers))
    monkeypatch.setattr(module, "POLL_S", 0.0)
    made(FakeServe()).deploy(settings, None)
    assert list(answers) == []


def test_code_is_read_in_place_here_and_uploaded_elsewhere(settings: ServingSettings) -> None:
    here, elsewhere = FakeServe(), FakeServe()
    made(here).deploy(settings, None)
    made(elsewhere, address="http://head:8265").deploy(settings, None)
    assert here.puts[0]["applications"][0]["runtime_env"]["working_dir"] == f"local://{module.CODE_ROOT}"
    assert elsewhere.puts[0]["applications"][0]["runtime_env"]["working_dir"] == "gcs://code.zip"
    assert "excludes" not in elsewhere.puts[0]["applications"][0]["runtime_env"]


def test_what_serve_says_is_our_error() -> None:
    serve = FakeServe()
    serve.error = RuntimeError("Request failed with status code 503: GCS is down.")
    with pytest.raises(ClusterError, match="Serve: Request failed with status code 503: GCS is down"):
        made(serve).status()


def test_what_a_servers_traceback_ends_with_is_said() -> None:
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
    monkeypatch.setattr(f"{__name__}.LATE", LATE.replace("500", str(status)))
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
    ("message", "shown"),
    [
        (LATE, "TimeoutError: HTTP proxies not available after 60s."),
        # A task's error as Ray writes it: coloured, and without the word.
        (
            '\x1b[36mray::Controller.deploy()\x1b[39m (pid=7)\n  File "a.py", line 3, in deploy\nValueError: no route.\n.',
            "ValueError: no route.",
        ),
        ("no node has\n 99 CPUs", "no node has 99 CPUs"),
    ],
)
def test_a_reason_is_what_was_raised(message: str, shown: str) -> None:
    assert reason(message) == shown


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
