"""cluster.connection: where Ray is looked for, without starting one (tests/integration does)."""

import dataclasses
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from cluster import connection as module
from cluster.connection import Connection, connect, is_in_job, reach
from cluster.errors import ClusterError
from cluster.facts import Facts
from cluster.jobs import open_jobs
from cluster.settings import ClusterSettings

FACTS = Facts("127.0.0.1:1", "http://127.0.0.1:2", "/tmp/twohead-x", "/tmp/token", (3,), "here", 5.5)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Ray was asked to connect to, with the token file that was set then; nothing is started."""
    calls: list[dict[str, Any]] = []

    @contextmanager
    def driver(**options: Any) -> Iterator[None]:
        calls.append({**options, "token_path": os.environ.get("RAY_AUTH_TOKEN_PATH")})
        yield

    @contextmanager
    def private(settings: ClusterSettings, **options: Any) -> Iterator[Connection]:
        calls.append({**options, "private": True})
        yield Connection("127.0.0.1:5", "http://127.0.0.1:6", is_private=True)

    monkeypatch.setattr(module, "_driver", driver)
    monkeypatch.setattr(module, "_private", private)
    monkeypatch.setattr(module, "_described", lambda *, is_private: Connection("there", "http://there", is_private))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    return calls


def test_without_a_cluster_a_private_ray_is_started(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    with connect(ClusterSettings(storage=str(tmp_path)), log_to_driver=True) as connection:
        assert connection.is_private
    assert asked == [{"private": True, "log_to_driver": True, "runtime_env": None}]


def test_the_cluster_of_this_machine_is_used_with_its_token(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_facts", lambda settings: FACTS)
    monkeypatch.setattr(Facts, "is_alive", lambda self: True)
    with connect(ClusterSettings()) as connection:
        assert not connection.is_private
    assert asked == [{"address": "127.0.0.1:1", "log_to_driver": False, "runtime_env": None, "token_path": "/tmp/token"}]
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ


def test_a_cluster_that_died_is_not_used(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_facts", lambda settings: FACTS)
    monkeypatch.setattr(Facts, "is_alive", lambda self: False)
    with connect(ClusterSettings()) as connection:
        assert connection.is_private


def test_inside_a_job_its_cluster_is_used_and_nothing_is_shipped_again(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert is_in_job()
    with connect(ClusterSettings(address="http://head:8265"), working_dir=tmp_path) as connection:
        assert not connection.is_private
    assert asked == [{"address": "10.0.0.1:6379", "log_to_driver": False, "token_path": None}]


class _Recorder(BaseHTTPRequestHandler):
    """Answers like a dashboard, and keeps who asked with what."""

    def do_GET(self) -> None:
        cast("Any", self.server).asked.append((self.path, self.headers["Authorization"]))
        body = b'{"version": "4", "ray_version": "2", "ray_commit": "x", "session_name": "s"}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def recorder() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Recorder)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("elsewhere", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "NETRC"])
def test_jobs_and_serve_are_asked_of_our_cluster_and_nobody_else_gets_its_token(
    elsewhere: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    token = tmp_path / "token"
    token.write_text("ours" * 8)
    monkeypatch.setattr(Facts, "is_alive", lambda self: True)
    with recorder() as (url, asked), recorder() as (other, strays):
        facts = dataclasses.replace(FACTS, dashboard_url=url, token_path=str(token))
        monkeypatch.setattr(module, "read_facts", lambda settings: facts)
        (tmp_path / "netrc").write_text("default login somebody password else\n")
        monkeypatch.setenv(elsewhere, str(tmp_path / "netrc") if elsewhere == "NETRC" else other)
        before = dict(os.environ)
        with open_jobs(ClusterSettings(storage=str(tmp_path))), reach(ClusterSettings(storage=str(tmp_path))) as place:
            ServeSubmissionClient(place)
    assert strays == []
    # The client of jobs, and Serve's.
    assert {path for path, _ in asked} == {"/api/version", "/api/ray/version"}
    assert {shown for _, shown in asked} == {f"Bearer {'ours' * 8}"}
    assert dict(os.environ) == before


def test_a_working_folder_is_shipped(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with connect(ClusterSettings(storage=str(tmp_path)), working_dir=tmp_path / "work"):
        pass
    assert asked[0]["runtime_env"]["working_dir"] == str(tmp_path / "work")


def test_a_cluster_elsewhere_takes_jobs_only(asked: list[dict[str, Any]]) -> None:
    with pytest.raises(ClusterError) as raised, connect(ClusterSettings(address="http://head:8265")):
        pass
    assert raised.value.message == "the cluster is http://head:8265, but this command needs to run inside it"
    assert (
        raised.value.hint
        == "submit it: python -m cluster submit -- python -m ... (or set cluster.address to local, and cluster.launcher to null)"
    )
    assert asked == []


def test_no_cluster_is_said(tmp_path: Path) -> None:
    with pytest.raises(ClusterError) as raised, reach(ClusterSettings(storage=str(tmp_path))):
        pass
    assert raised.value.message == "no cluster is running on this machine for this storage"
    assert raised.value.hint == "start one: python -m cluster up"


def test_the_cluster_of_this_machine_is_reached_with_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_facts", lambda settings: FACTS)
    monkeypatch.setattr(Facts, "is_alive", lambda self: True)
    with reach(ClusterSettings()) as url:
        assert url == "http://127.0.0.1:2"
        assert os.environ["RAY_AUTH_TOKEN_PATH"] == "/tmp/token"
        assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_ray_that_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def fail(**options: Any) -> None:
        raise ConnectionError("Failed to connect\nand much more")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(ClusterError) as raised, module._driver(address="10.0.0.1:6379"):
        pass
    assert raised.value.message == "Ray at 10.0.0.1:6379: Failed to connect"
    assert raised.value.hint == "`python -m cluster status` tells what is running"


@pytest.mark.parametrize(
    ("failures", "message"),
    [
        ([Exception("The current node timed out during startup.")], ""),
        ([RuntimeError("no\nmore")], "Ray at there: no"),
        ([Exception("too slow"), ValueError("wrong")], "Ray at there: wrong"),
        ([Exception("too slow"), Exception("still too slow\nand its log")], "Ray at there: still too slow"),
    ],
)
def test_a_ray_that_started_too_slowly_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, failures: list[Exception], message: str
) -> None:
    import ray

    calls: list[str] = []

    def init(**options: Any) -> None:
        calls.append("init")
        if failures:
            raise failures.pop(0)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda wait_for_processes: calls.append("shutdown"))
    if message:
        with pytest.raises(ClusterError) as raised, module._driver(address="there"):
            pass
        assert raised.value.message == message
    else:
        with module._driver(address="there"):
            assert calls == ["init", "shutdown", "init"]
    # Nothing of what came half up stays.
    assert calls[-1] == "shutdown"
    assert not failures
