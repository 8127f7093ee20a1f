import re
import socket
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import ClusterError
from cluster.settings import ClusterSettings
from serving import rollout as module
from serving.candidates import command
from serving.rollout import Rollout
from serving.settings import CanarySettings, ServingSettings, ShadowSettings
from tests.fake_serve import OTHER, FakeServe, made, settings_of_a_free_port

TRACEBACK = """The deployment failed to start 3 times in a row. Error:
ray::ServeReplica (pid=1)
RuntimeError: Traceback (most recent call last):
  File "serving/replica.py", line 39, in __init__
training.errors.CheckpointError: weights.safetensors: has another SHA-256
"""


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> ServingSettings:
    monkeypatch.setattr(module, "_answers", lambda client: True)
    return settings_of_a_free_port()


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
    began = time.monotonic()
    with pytest.raises(ClusterError) as caught:
        rollout.deploy(settings.model_copy(update={"ready_timeout_s": 0.001}), None)
    found = re.search(r"does not answer after (\d+) s: no node has 99 CPUs$", caught.value.message)
    assert found
    assert int(found[1]) <= time.monotonic() - began + 0.5


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
