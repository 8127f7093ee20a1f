"""cluster.launcher: what can be checked without starting Ray (tests/integration starts it)."""

import dataclasses
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import launcher as module
from cluster.errors import ClusterError
from cluster.facts import Facts, facts_folder, read_facts, write_facts
from cluster.launcher import down, up
from cluster.session import free_port
from cluster.settings import ClusterSettings

FACTS = Facts("127.0.0.1:1", "http://127.0.0.1:2", "/tmp/twohead-unit-x", "/tmp/twohead-unit-x/token", (3,), socket.gethostname(), 5.5)


def test_up_is_for_this_machine() -> None:
    with pytest.raises(ClusterError) as raised:
        up(ClusterSettings(address="http://head:8265"))
    assert raised.value.message == "cluster.address is http://head:8265, but `up` starts a cluster on this machine"
    assert raised.value.hint == "set cluster.address to local, or describe the machines in cluster.launcher: cluster/examples has some"


def test_up_finds_the_cluster_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ClusterSettings(storage=str(tmp_path))
    write_facts(settings, FACTS)
    monkeypatch.setattr(Facts, "is_alive", lambda self: True)
    launch = up(settings)
    assert (launch.facts, launch.is_new) == (FACTS, False)


@pytest.mark.parametrize("verb", [up, down])
def test_the_cluster_of_another_machine_is_left_alone(tmp_path: Path, verb: Any) -> None:
    settings = ClusterSettings(storage=str(tmp_path))
    write_facts(settings, dataclasses.replace(FACTS, host="elsewhere"))
    with pytest.raises(ClusterError) as raised:
        verb(settings)
    assert raised.value.message == f"the cluster of {tmp_path}/cluster was started on elsewhere, but this is {socket.gethostname()}"
    assert raised.value.hint == ("end it there with `down`, or set another cluster.storage here; if elsewhere is gone, delete facts.json")


def test_a_storage_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError) as raised:
        up(ClusterSettings(storage=str(tmp_path / "file")))
    assert raised.value.message == f"{tmp_path}/file/cluster: Not a directory"
    assert raised.value.hint == "cluster.storage must be a folder that you can write"


def test_down_without_a_cluster_writes_nothing(tmp_path: Path) -> None:
    assert down(ClusterSettings(storage=str(tmp_path / "none"))) is None
    assert not (tmp_path / "none").exists()


def _ray_start(monkeypatch: pytest.MonkeyPatch, result: Any) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def run(command: list[str], **options: Any) -> Any:
        calls.append({"command": command, **options})
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(subprocess, "run", run)
    return calls


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (subprocess.CompletedProcess([], 1, "", "Traceback\nValueError: no\n"), "`ray start` ended with exit code 1: ValueError: no"),
        (subprocess.CompletedProcess([], 1, "", ""), "`ray start` ended with exit code 1: no output"),
        (subprocess.TimeoutExpired("ray", 120), "`ray start` did not end within 120 s"),
    ],
)
def test_a_start_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: Any, message: str) -> None:
    settings = ClusterSettings(storage=str(tmp_path))
    calls = _ray_start(monkeypatch, result)
    with pytest.raises(ClusterError) as raised:
        up(settings, lambda line: None)
    assert raised.value.message == message
    assert read_facts(settings) is None
    assert sorted(entry.name for entry in facts_folder(settings).iterdir()) == ["lock"]
    assert not Path(calls[0]["env"]["TWOHEAD_SESSION"]).exists()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Exception: The current node timed out during startup. This could happen because …\n", "The current node timed out"),
        ("11:02:01 ERROR services.py:1431 -- Failed to start the dashboard \nException:\nLoaded 3.\n", "Failed to start the dashboard"),
    ],
)
def test_a_start_that_ray_gave_up_is_tried_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, told: str) -> None:
    slow = subprocess.CompletedProcess([], 1, "", said)
    settings = ClusterSettings(storage=str(tmp_path))
    calls = _ray_start(monkeypatch, slow)
    lines: list[str] = []
    with pytest.raises(ClusterError, match=f"`ray start` ended with exit code 1: {told}"):
        up(settings, lines.append)
    sessions = [call["env"]["TWOHEAD_SESSION"] for call in calls]
    assert len(set(sessions)) == len(calls) == 2
    assert not any(Path(session).exists() for session in sessions)
    assert "trying once more" in lines[1]
    assert sorted(entry.name for entry in facts_folder(settings).iterdir()) == ["lock"]


def test_ray_is_started_closed_and_with_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    calls = _ray_start(monkeypatch, subprocess.CompletedProcess([], 1, "", ""))
    with pytest.raises(ClusterError):
        up(ClusterSettings(storage=str(tmp_path), num_cpus=3, num_gpus=0, object_store_bytes=90_000_000), lambda line: None)
    command, env = calls[0]["command"], calls[0]["env"]
    assert command[:5] == [sys.executable, "-m", "ray.scripts.scripts", "start", "--head"]
    for option in ("--dashboard-host=127.0.0.1", "--port=0", "--num-cpus=3", "--num-gpus=0", "--object-store-memory=90000000"):
        assert option in command
    assert (env["RAY_AUTH_MODE"], env["RAY_AUTH_TOKEN_PATH"]) == ("token", str(tmp_path / "cluster/token"))
    assert "RAY_ADDRESS" not in env


def test_a_cluster_that_lets_strangers_in_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _ray_start(monkeypatch, subprocess.CompletedProcess([], 0, "", ""))
    monkeypatch.setattr(module, "_wait_for_node", lambda url, deadline: None)

    def open_door(url: str) -> None:
        raise ClusterError("open")

    monkeypatch.setattr(module, "prove_closed", open_door)
    settings = ClusterSettings(storage=str(tmp_path))
    with pytest.raises(ClusterError, match=r"^open$"):
        up(settings, lambda line: None)
    assert read_facts(settings) is None


def test_what_a_dead_cluster_left_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ClusterSettings(storage=str(tmp_path))
    left = tmp_path / "twohead-left"
    left.mkdir()
    write_facts(settings, dataclasses.replace(FACTS, session_folder=str(left), pids=(2**22 + 1,)))
    _ray_start(monkeypatch, subprocess.CompletedProcess([], 1, "", ""))
    lines: list[str] = []
    with pytest.raises(ClusterError):
        up(settings, lines.append)
    assert not left.exists()
    assert lines[0] == "clearing away what is left of a cluster that died"


def test_a_cluster_that_does_not_get_ready_is_said() -> None:
    with pytest.raises(ClusterError) as raised:
        module._wait_for_node("http://127.0.0.1:9", 0.0)
    assert raised.value.message == "http://127.0.0.1:9: the cluster was not ready within 120 s (no answer yet)"
    assert raised.value.hint == "is the machine overloaded?"


def test_the_next_free_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) > port
    assert free_port(port) == port


def test_no_free_port_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(self: socket.socket, address: Any) -> None:
        raise OSError

    monkeypatch.setattr(socket.socket, "bind", busy)
    with pytest.raises(ClusterError) as raised:
        free_port(8265)
    assert raised.value.message == "no port from 8265 to 8314 is free"
    assert raised.value.hint == "set cluster.dashboard_port to another one"
