"""cluster.dashboard: requests with and without the token, against a small HTTP server."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.connection import reach
from cluster.dashboard import answer_status, ask, list_nodes, list_state, prove_closed, require_control_service
from cluster.errors import ClusterError
from cluster.settings import ClusterSettings

TOKEN = "a" * 64
LISTS = {
    "/api/v0/nodes": b'{"result": true, "msg": "", "data": {"result": {"total": 1, "result": [{"node_id": "n1"}]}}}',
    "/api/v0/actors": b'{"result": false, "msg": "Failed to query the data source.", "data": {"result": null}}',
}


class Dashboard(ThreadingHTTPServer):
    """Answers like Ray's dashboard.

    Attributes:
        closed: Whether it wants the token.
        seen: With what it was asked for it.
        control: What it says of the control service, the last for ever.
        failures: What it says of failures of its own, first.
        may_answer: What is late waits for it.
    """

    closed = True
    seen: list[str]
    control: tuple[int, ...] = (200,)
    failures: list[bytes]
    may_answer: threading.Event

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Dashboard

    def do_GET(self) -> None:
        if self.path == "/api/gcs_healthz":
            status, *rest = self.server.control
            self.server.control = tuple(rest) or (status,)
            self._answer(status, b"success")
            return
        self.server.seen.append(self.headers.get("Authorization", ""))
        if self.server.failures:
            self._answer(500, self.server.failures.pop(0))
        elif self.path == "/late":
            self.server.may_answer.wait(30)
            self._answer(200, b"{}")
        elif self.path == "/text":
            self._answer(200, b"<html>")
        elif self.server.closed and not self.headers.get("Authorization"):
            self._answer(401, b"no")
        elif self.server.closed and self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(403, b"no")
        else:
            self._answer(200, LISTS.get(self.path, b'{"ray_version": "2"}'))

    do_POST = do_GET  # noqa: N815

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Dashboard]:
    """A dashboard on a free port, seen from an account without any token."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with Dashboard(("127.0.0.1", 0), Answers) as server:
        server.seen, server.failures, server.may_answer = [], [], threading.Event()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_closed_dashboard_is_proven_closed(dashboard: Dashboard) -> None:
    assert answer_status(dashboard.url, "POST", "/api/jobs/") == 401
    prove_closed(dashboard.url)


def test_an_open_dashboard_is_refused(dashboard: Dashboard) -> None:
    dashboard.closed = False
    with pytest.raises(ClusterError) as raised:
        prove_closed(dashboard.url)
    assert raised.value.message == f"{dashboard.url}: the Jobs API answered 200 without a token, but must answer 401"
    assert raised.value.hint == "this Ray does not keep strangers out, so it was stopped; is RAY_AUTH_MODE known to its version?"


def test_proving_sends_no_token_even_if_there_is_one(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    prove_closed(dashboard.url)
    assert dashboard.seen == [""]


def test_nothing_there_is_said() -> None:
    with pytest.raises(ClusterError) as raised:
        answer_status("http://127.0.0.1:9", "GET", "/")
    assert raised.value.message == "http://127.0.0.1:9: does not answer ([Errno 111] Connection refused)"
    assert raised.value.hint == "is the cluster running, and is the address right?"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://head:abc", "nonnumeric port: 'abc'"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("http://a..b:1", "idna"),
    ],
)
def test_what_is_no_address_is_said(url: str, why: str) -> None:
    with pytest.raises(ClusterError) as raised:
        ask(url, "/")
    assert raised.value.message.startswith(f"{url}: does not answer (")
    assert why in raised.value.message
    assert raised.value.hint == "is the cluster running, and is the address right?"


def test_a_remote_cluster_is_reached_with_the_token_of_the_environment(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with reach(ClusterSettings(address=dashboard.url)) as url:
        assert url == dashboard.url
        assert ask(url, "/anything") == {"ray_version": "2"}
    assert dashboard.seen == [f"Bearer {TOKEN}"] * 2


def test_a_remote_cluster_without_authentication_is_reached(dashboard: Dashboard) -> None:
    dashboard.closed = False
    with reach(ClusterSettings(address=dashboard.url)) as url:
        assert ask(url, "/anything") == {"ray_version": "2"}


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("b" * 64, 403)])
def test_a_missing_or_wrong_token_is_said(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, token: str | None, status: int) -> None:
    if token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(ClusterError) as raised, reach(ClusterSettings(address=dashboard.url)):
        pass
    assert raised.value.message == f"{dashboard.url}: refused the token (status {status})"
    assert raised.value.hint == "name the file with the cluster's token in RAY_AUTH_TOKEN_PATH"


def test_an_answer_that_is_no_json_is_said(dashboard: Dashboard) -> None:
    with pytest.raises(ClusterError) as raised:
        ask(dashboard.url, "/text")
    assert raised.value.message == f"{dashboard.url}/text: answered 200, but must answer JSON"
    assert raised.value.hint == "is this the dashboard of a Ray cluster?"


TRACEBACK = b'Traceback (most recent call last):\n  File "serve_head.py", line 1\nray.exceptions.RayActorError: The controller died.\n'


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (TRACEBACK, "The controller died."),
        (b'{"result": false, "msg": "Failed to query the data source.", "data": {}}', "Failed to query the data source."),
        (b'["nothing"]', '["nothing"]'),
        (b"", "nothing more"),
    ],
)
def test_what_a_server_says_of_its_failure_is_said(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, body: bytes, said: str) -> None:
    monkeypatch.setattr("cluster.dashboard._LOOK_S", 0.0)
    dashboard.closed, dashboard.failures = False, [body, body]
    with pytest.raises(ClusterError) as raised:
        ask(dashboard.url, "/nodes")
    assert raised.value.message == f"{dashboard.url}/nodes: answered 500: {said}"
    # One that passes is not even noticed.
    dashboard.failures = [body]
    assert ask(dashboard.url, "/nodes") == {"ray_version": "2"}


def test_who_does_not_answer_in_time_is_not_called_a_stranger(dashboard: Dashboard) -> None:
    with pytest.raises(ClusterError) as raised:
        ask(dashboard.url, "/late", patience_s=0.05)
    dashboard.may_answer.set()
    assert raised.value.message == f"{dashboard.url}: does not answer in time (/late)"
    assert "it may be busy" in raised.value.hint


def test_a_list_that_rays_source_does_not_give_is_said(dashboard: Dashboard) -> None:
    dashboard.closed = False
    assert list_nodes(dashboard.url) == [{"node_id": "n1"}]
    with pytest.raises(ClusterError, match=r"Failed to query the data source\."):
        list_state(dashboard.url, "actors")


def test_a_control_service_may_be_busy_but_not_away(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.dashboard._LOOK_S", 0.01)
    dashboard.control = (503, 503, 200)
    require_control_service(dashboard.url)
    monkeypatch.setattr("cluster.dashboard._LOOKS_S", 0.0)
    dashboard.control = (503,)
    with pytest.raises(ClusterError) as raised:
        require_control_service(dashboard.url)
    assert "Ray's control service does not answer its dashboard" in raised.value.message
    # One that knows no such page is not held up.
    dashboard.control = (404,)
    require_control_service(dashboard.url)


def test_a_cluster_without_its_control_service_is_not_reached(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.dashboard._LOOK_S", 0.01)
    monkeypatch.setattr("cluster.dashboard._LOOKS_S", 0.3)
    dashboard.closed, dashboard.control = False, (503,)
    with pytest.raises(ClusterError, match="control service"), reach(ClusterSettings(address=dashboard.url)):
        pass
