"""A node that goes: the clouds' notices, what Ray is told then, and who is waited for."""

import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster import draining
from cluster.errors import ClusterError
from cluster.machines import notice
from cluster.machines.completing import NOTICE_PLACE, completed
from cluster.settings import ClusterSettings

NODES = [
    {"node_id": "n0", "node_ip": "10.0.0.1", "state": "ALIVE", "is_head_node": True},
    {"node_id": "n1", "node_ip": "10.0.0.2", "node_name": "two", "state": "ALIVE"},
    {"node_id": "n2", "node_ip": "10.0.0.3", "state": "DEAD"},
]


class Metadata(ThreadingHTTPServer):
    """A cloud's metadata server, which tells of nothing the first two times."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.asked: list[tuple[str, str]] = []


class _Answers(BaseHTTPRequestHandler):
    server: Metadata

    def _answer(self) -> None:
        self.server.asked.append((self.command, self.path))
        looks = sum(path != "/latest/api/token" for _, path in self.server.asked)
        knows = self.headers.get("X-aws-ec2-metadata-token") == "t" or self.headers.get("Metadata-Flavor") == "Google"
        if self.command == "PUT":
            status, text = 200, "t"
        elif not knows:
            status, text = 401, ""
        elif self.path.endswith("preempted"):
            status, text = 200, "TRUE" if looks > 2 else "FALSE"
        else:
            status, text = (200, "{}") if looks > 2 else (404, "")
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_PUT = _answer  # noqa: N815  # what http.server calls them

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(("cloud", "within"), [("aws", 110), ("gcp", 25)])
def test_a_cloud_is_asked_until_it_says_so_and_then_ray_is_told(metadata: Metadata, tmp_path: Path, cloud: str, within: int) -> None:
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\necho "$@" "$RAY_AUTH_MODE" > {tmp_path}/told\n')
    ray.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TWOHEAD_METADATA": f"http://127.0.0.1:{metadata.server_port}"}
    # As it is on a machine: the file alone, without this project.
    file = tmp_path / "notice.py"
    file.write_bytes(Path(notice.__file__).read_bytes())
    done = subprocess.run([sys.executable, str(file), cloud], env=environment, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "told").read_text().split()
    assert (told[:2], told[-1]) == (["drain-node", "--address=auto"], "token")
    assert f"--deadline-remaining-seconds={within}" in told
    assert sum(path != "/latest/api/token" for _, path in metadata.asked) == 3


def test_replicas_here_are_those_whose_processes_ray_names_so(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys; print(flush=True); sys.stdin.read()"
    # Replicas of tests that run beside this one come and go.
    name = f"ray::ServeReplica:{uuid.uuid4().hex}:Replica"
    assert name.encode().startswith(notice._REPLICA)
    monkeypatch.setattr(notice, "_REPLICA", name.encode())
    assert notice.replicas_here() == 0
    with subprocess.Popen([name, "-c", program], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as replica:
        assert replica.stdout
        replica.stdout.readline()
        assert notice.replicas_here() == 1
        replica.communicate()
    assert notice.replicas_here() == 0


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_workers_in_a_cloud_wait_for_its_notice(cloud: str) -> None:
    launcher = {
        "cluster_name": "lab",
        "provider": {"type": cloud},
        "worker_start_ray_commands": ["ray start"],
        "head_start_ray_commands": ["ray start"],
    }
    found = completed(ClusterSettings(launcher=launcher))
    assert Path(found["file_mounts"][NOTICE_PLACE]) == Path(notice.__file__)
    assert found["worker_start_ray_commands"][-1].startswith(f"nohup python3 {NOTICE_PLACE} {cloud} ")
    assert not [command for command in found["head_start_ray_commands"] if "notice" in command]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A cluster whose node `two` has two replicas, one fewer each time somebody looks, and a trial; what Ray was told is in the list.

    They move to a node whose proxy begins meanwhile.
    """
    told: list[Any] = []
    left, proxies = [2, 1], [{}, {"n2": {"status": "STARTING"}}]

    @contextmanager
    def reach(settings: ClusterSettings) -> Iterator[str]:
        yield "http://head:8265"

    def ask(url: str, path: str) -> Any:
        if path == "/api/serve/applications/":
            proxy = proxies.pop(0) if proxies else {"n2": {"status": "HEALTHY"}}
            told.append(proxy)
            replicas = [{"node_id": "n2", "state": "RUNNING"}, {"node_id": None, "state": "STARTING"}]
            return {
                "applications": {"twohead": {"deployments": {"Replica": {"replicas": replicas}}}},
                "proxies": proxy,
                "proxy_location": "EveryNode",
            }
        raise AssertionError(path)

    def list_state(url: str, what: str) -> list[dict[str, str]]:
        assert what.startswith("actors?")
        assert "filter_values=n1" in what
        if not told[1:] and len(left) == 1:
            told.append("late")
            raise ClusterError("http://head:8265: did not answer within 10 s")
        classes = ["ImplicitFunc", *["ServeReplica:twohead:Replica"] * (left.pop(0) if left else 0)]
        return [{"class_name": name} for name in classes]

    monkeypatch.setattr(draining, "reach", reach)
    monkeypatch.setattr(draining, "list_nodes", lambda url, patience_s: NODES)
    monkeypatch.setattr(draining, "list_state", list_state)
    monkeypatch.setattr(draining, "ask", ask)
    monkeypatch.setattr(draining, "_POLL_S", 0.0)
    monkeypatch.setattr(draining.ray_up, "drain", lambda settings, node_id, within_s: told.append((node_id, within_s)))
    return told


@pytest.mark.parametrize("name", ["two", "10.0.0.2"])
def test_a_node_is_emptied_of_replicas(cluster: list[Any], name: str) -> None:
    said: list[str] = []
    draining.drain(ClusterSettings(launcher={}), name, 60, said.append)
    # One answer that does not come is not the end of it.
    assert cluster == [("n1", 60), "late", {}, {"n2": {"status": "STARTING"}}, {"n2": {"status": "HEALTHY"}}]
    assert said[0] == f"{name} takes nothing new; its replicas move …"
    assert said[1].startswith(f"nothing is served from {name} any more")


def test_a_node_that_is_not_emptied_in_time_is_told(cluster: list[Any]) -> None:
    with pytest.raises(ClusterError, match="two: after 0 s 2 replicas are still there"):
        draining.drain(ClusterSettings(launcher={}), "two", 0, print)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("10.0.0.1", "node '10.0.0.1': is the head, which cannot go"),
        ("10.0.0.3", "node '10.0.0.3': is unknown; there is 10.0.0.1, 10.0.0.2"),
    ],
)
def test_a_node_that_cannot_be_emptied_is_refused(cluster: list[Any], name: str, message: str) -> None:
    with pytest.raises(ClusterError) as raised:
        draining.drain(ClusterSettings(launcher={}), name, 60, print)
    assert raised.value.message == message
    assert cluster == []


def test_a_cluster_that_was_not_started_from_here_is_not_drained_from_here() -> None:
    with pytest.raises(ClusterError, match=r"only machines of cluster\.launcher are drained from here"):
        draining.drain(ClusterSettings(), "two", 60, print)
