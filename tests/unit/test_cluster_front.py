"""cluster.front: HAProxy with Ray's own configuration, closed."""

import http.client
import importlib.util
import json
import os
import re
import runpy
import socket
import stat
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from jinja2 import ChainableUndefined, Environment

from cluster import front
from cluster.front import COMMAND_FILE, SWITCH, find_haproxy, front_environment, write_command
from cluster.session import free_port
from tests.ports import port_shift
from tests.waiting import until

# Not imported: all of Serve would come along.
SERVE = Path(str(importlib.util.find_spec("ray").origin)).parent / "serve/_private"  # type: ignore[union-attr]  # it is installed


def configuration(
    folder: Path, host: str, door: int = 8000, replica: int = 30_000, fallback: int = 8500, *, is_known: bool = True, replicas: int = 2
) -> Path:
    """Write what Ray's own template makes; before Serve has told what is deployed, it knows no application."""
    template = runpy.run_path(str(SERVE / "haproxy_templates.py"))["HAPROXY_CONFIG_TEMPLATE"]
    config = SimpleNamespace(
        frontend_host=host, frontend_port=door, metrics_port=9101, stats_port=8404, stats_uri="/stats", metrics_uri="/metrics",
        log_target="127.0.0.1:514", socket_path=str(folder / "a"), maxconn=40, nbthread=1, bufsize=16384, timeout_connect_s=5,
        timeout_client_s=5, timeout_server_s=5, timeout_http_request_s=5, timeout_http_keep_alive_s=5, timeout_queue_s=None,
        retry_on=front._RETRY_ON, retries=front._RETRIES, balance_algorithm="leastconn", grpc_enabled=False, metrics_enabled=False,
        hard_stop_after_s=None, close_spread_time_s=None, enable_hap_optimization=False, tcp_nodelay=True,
        error_file_path=str(folder / "500.http"), inject_process_id_header=False,
    )  # fmt: skip
    environment = Environment(undefined=ChainableUndefined, autoescape=False)
    environment.filters["haproxy_fmt"] = str
    routes = SimpleNamespace(status=200, routes_content_type="text/plain", routes_message="none")
    (folder / "500.http").write_text("HTTP/1.1 500 Internal Server Error\r\n\r\n")
    servers = [SimpleNamespace(name=f"replica{number}", host="127.0.0.1", port=replica + number) for number in range(replicas)]
    backend = SimpleNamespace(
        name="http-app", path_prefix="/", servers=servers, fallback_server=SimpleNamespace(name="proxy", host="127.0.0.1", port=fallback),
        app_name="app", timeout_connect_s=None, timeout_server_s=None, timeout_client_s=None, timeout_http_request_s=None,
        timeout_queue_s=None, timeout_http_keep_alive_s=None, timeout_tunnel_s=None,
    )  # fmt: skip
    checked = SimpleNamespace(health_path="/-/healthz", default_server_directive="default-server inter 5s check")
    text = environment.from_string(template).render(
        config=config,
        backends=[backend] if is_known else [],
        backends_with_health_config=[{"item": 0, "backend": backend, "health_config": checked}] if is_known else [],
        route_info=routes,
    )
    path = folder / "cfg"
    path.write_text(text + "\n")
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A session's folder with the command, whose HAProxy only tells what it was called with."""
    program = tmp_path / "told"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o700)
    monkeypatch.setattr(front, "find_haproxy", lambda: program)
    write_command(tmp_path)
    return tmp_path


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([folder / COMMAND_FILE, *arguments], capture_output=True, text=True, check=False)


def test_nothing_but_the_door_listens(folder: Path) -> None:
    path = configuration(folder, "127.0.0.1")
    opened = [line.split() for line in path.read_text().splitlines() if line.strip().startswith("bind")]
    assert [words[1] for words in opened] == [":9101", "127.0.0.1:8000", "*:8404"]
    done = call(folder, "-db", "-f", str(path), "-sf", "12")
    assert (done.returncode, done.stdout) == (0, f"-db -f {path} -sf 12\n")
    closed = path.read_text()
    assert [line.strip() for line in closed.splitlines() if line.strip().startswith("bind")] == ["bind 127.0.0.1:8000"]
    assert "mode 600 level admin" in closed
    assert "127.0.0.1:514" not in closed
    assert "default_backend default_backend" in closed


def test_waiting_has_an_end_in_front_of_the_replicas(folder: Path) -> None:
    path = configuration(folder, "127.0.0.1")
    call(folder, "-f", str(path))
    lines = [line.strip() for line in path.read_text().splitlines()]
    assert [line for line in lines if line.startswith("server ")] == [
        "server replica0 127.0.0.1:30000 check maxconn 512",
        "server replica1 127.0.0.1:30001 check maxconn 512",
        "server proxy 127.0.0.1:8500 check backup",
    ]
    assert [line for line in lines if line.startswith("timeout http-")] == ["timeout http-request 10s", "timeout http-keep-alive 75s"]
    assert "timeout queue 1s" in lines
    assert "http-request set-priority-class int(-1) if { path_beg /health }" in lines
    assert [line for line in lines if line.endswith("if { avg_queue gt 100 } !{ path_beg /health }")]
    assert not [line for line in lines if line.startswith("errorfile 503")]


def test_replicas_stay_while_serve_builds_their_application_anew(folder: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Replica) as replica:
        threading.Thread(target=replica.serve_forever, daemon=True).start()
        call(folder, "-f", str(configuration(folder, "127.0.0.1", replica=replica.server_port, replicas=1)))
        path = configuration(folder, "127.0.0.1", replicas=0)
        assert "server replica0" not in path.read_text()
        assert call(folder, "-f", str(path)).returncode == 0
        assert f"    server replica0 127.0.0.1:{replica.server_port} check maxconn 512\n" in path.read_text()
        replica.shutdown()
    call(folder, "-f", str(configuration(folder, "127.0.0.1", replicas=0)))
    assert "server replica0" not in path.read_text()


def test_without_memory_the_door_opens_all_the_same(folder: Path) -> None:
    path = configuration(folder, "127.0.0.1")
    (folder / "cfg.kept").mkdir()
    done = call(folder, "-f", str(path))
    assert done.returncode == 0
    assert "no replica is kept while Serve builds its application" in done.stderr
    assert "server replica0 127.0.0.1:30000 check maxconn 512" in path.read_text()


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "::", "[::]", ""])  # must be refused
def test_something_beside_the_door_open_to_every_address_is_not_started(folder: Path, host: str) -> None:
    path = configuration(folder, "127.0.0.1")
    path.write_text(path.read_text().replace("frontend http_frontend", f"frontend other\n    bind {host}:9102\nfrontend http_frontend"))
    done = call(folder, "-f", str(path))
    assert done.returncode == 1
    assert not done.stdout
    assert "beside the door it would listen on every address" in done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "10.0.0.7", "*", "0.0.0.0", "[::]"])
def test_the_door_is_started_where_serving_wants_it(folder: Path, host: str) -> None:
    assert call(folder, "-f", str(configuration(folder, host))).returncode == 0


def test_the_real_haproxy_takes_the_closed_configuration(tmp_path: Path) -> None:
    assert find_haproxy() is not None
    write_command(tmp_path)
    path = configuration(tmp_path, "127.0.0.1")
    # -c checks the configuration, and starts nothing.
    done = call(tmp_path, "-c", "-f", str(path))
    assert done.returncode == 0, done.stderr


class Replica(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None: ...


def test_connections_that_idle_shut_nobody_out(tmp_path: Path) -> None:
    """Three times as many as the door holds ask once each, and keep their connection for as long as they may."""
    write_command(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), Replica) as replica:
        threading.Thread(target=replica.serve_forever, daemon=True).start()
        door = free_port(19_400 + port_shift())
        path = configuration(tmp_path, "127.0.0.1", door, replica.server_port)
        with subprocess.Popen([tmp_path / COMMAND_FILE, "-db", "-f", path], stderr=subprocess.DEVNULL) as running:
            try:
                wait_until_open(door)
                held = [http.client.HTTPConnection("127.0.0.1", door, timeout=4) for _ in range(120)]
                told = []
                for one in held:
                    one.request("GET", "/health/live")
                    with one.getresponse() as answer:
                        told.append((answer.status, answer.read(), answer.getheader("connection")))
                for one in held:
                    one.close()
            finally:
                running.terminate()
                replica.shutdown()
    assert {one[:2] for one in told} == {(200, b"ok")}
    # The first thirty keep theirs, the others make room.
    assert [one[2] for one in told].index("close") == 30


def asked(folder: Path, path: Path, door: int, headers: dict[str, str]) -> tuple[int, dict[str, str], dict[str, object]]:
    """Ask HAProxy itself, started with a configuration; returns status, headers and body."""
    with subprocess.Popen([folder / COMMAND_FILE, "-db", "-f", path], stderr=subprocess.DEVNULL) as running:
        try:
            wait_until_open(door)
            connection = http.client.HTTPConnection("127.0.0.1", door, timeout=30)
            connection.request("POST", "/v1/predict", headers=headers)
            with connection.getresponse() as answer:
                told = answer.status, dict(answer.getheaders()), json.loads(answer.read())
            connection.close()
        finally:
            running.terminate()
    return told


def test_before_anything_is_known_nothing_is_said_to_be_absent(tmp_path: Path) -> None:
    write_command(tmp_path)
    door = free_port(19_450 + port_shift())
    status, head, body = asked(tmp_path, configuration(tmp_path, "127.0.0.1", door, is_known=False), door, {})
    assert (status, head["content-type"], head["retry-after"]) == (503, "application/problem+json", "1")
    assert body["request_id"] == head["x-request-id"]


def test_what_is_not_deployed_is_absent_once_something_is(folder: Path) -> None:
    path = configuration(folder, "127.0.0.1")
    call(folder, "-f", str(path))
    assert "http-request return status 404" in path.read_text()


@pytest.mark.parametrize(
    ("sent", "is_kept"), [("mine-1.x", True), ("two words", False), ('"quoted', False), ("x" * 65, False), (None, False)]
)
def test_who_finds_no_replica_is_told_so_with_an_id(tmp_path: Path, sent: str | None, is_kept: bool) -> None:
    write_command(tmp_path)
    door = free_port(19_450 + port_shift())
    # Nobody listens at the replicas' ports.
    path = configuration(tmp_path, "127.0.0.1", door, free_port(19_460 + port_shift()), free_port(19_470 + port_shift()))
    status, head, body = asked(tmp_path, path, door, {} if sent is None else {"x-request-id": sent})
    assert (status, head["content-type"], head["retry-after"]) == (503, "application/problem+json", "1")
    assert body["request_id"] == head["x-request-id"]
    assert (body["request_id"] == sent) == is_kept
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", head["x-request-id"])
    assert (body["status"], body["title"]) == (503, "overloaded")


def wait_until_open(port: int) -> None:
    def is_open() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
        except ConnectionRefusedError:
            return False
        return True

    until(f"something listens on {port}", is_open, every_s=0.05)


def test_only_the_owner_reads_and_runs(folder: Path) -> None:
    path = configuration(folder, "127.0.0.1")
    call(folder, "-f", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / COMMAND_FILE).stat().st_mode) == 0o700


def test_variables_name_files_of_the_session(folder: Path) -> None:
    found = front_environment(folder, 8501)
    assert found[SWITCH] == "1"
    assert found["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"] == "8501"
    assert {Path(value).parent for value in found.values() if "/" in value} == {folder, folder.parent}
    known = (SERVE / "constants.py").read_text()
    assert [name for name in found if f'"{name}"' not in known] == []


def test_a_replica_that_stands_still_is_given_requests_for_a_few_seconds_only(folder: Path) -> None:
    found = front_environment(folder, 8501)
    every_s = int(found["RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER"].removesuffix("s"))
    # Just answered, and then each check in vain takes the time between two (its limit), and the next one follows after a quarter second.
    failed = int(found["RAY_SERVE_HAPROXY_HEALTH_CHECK_FALL"])
    assert every_s + failed * every_s + (failed - 1) * 0.25 < 5
    # One that is merely busy misses one check, or two.
    assert failed * every_s >= 3


def test_nobody_reads_a_line_about_every_request_unless_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = "RAY_SERVE_HAPROXY_METRICS_ENABLED"
    assert front_environment(folder, 8501)[switch] == "0"
    monkeypatch.setenv(switch, "1")
    assert front_environment(folder, 8501)[switch] == "1"


def test_sockets_have_room_in_the_longest_folder() -> None:
    folder = Path("/" + "r" * 17) / "twohead-abcdefgh"
    # Ray puts a node's id between, HAProxy a process's id and `.tmp` behind.
    assert len(str(folder / ("n" * 56) / "a")) + len(".4194304.tmp") <= 107


def test_without_the_package_serves_own_proxy_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert find_haproxy() is None
    write_command(tmp_path)
    assert front_environment(tmp_path, 8500) == {SWITCH: "0"}


def test_rays_switch_keeps_its_own_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, SWITCH, "0")
    assert find_haproxy() is None
