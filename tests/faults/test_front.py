"""The front under abuse: HAProxy as it is started here, raw sockets before it, and a server behind it that writes down what it sees."""

import select
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster import front
from cluster.front import COMMAND_FILE, write_command
from cluster.session import free_port
from tests.ports import port_shift
from tests.unit.test_cluster_front import configuration, wait_until_open

# In place of ten: so long a client may take.
RECEIPT_S = 1
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: door\r\nContent-Type: application/json\r\n"


@dataclass
class Door:
    """A front that is open, and what came through it.

    Attributes:
        port: On 127.0.0.1.
        seen: Method, path and body of each request.
        headers: Of each of them, names in small letters with their values.
        broken: Whether the front broke a connection to the replica off.
        silent: So many requests the replica closes the connection on, without an answer.
        free: Until it is set the replica answers nobody.
    """

    port: int
    broken: threading.Event = field(default_factory=threading.Event)
    seen: list[tuple[str, str, bytes]] = field(default_factory=list)
    headers: list[list[tuple[str, str]]] = field(default_factory=list)
    silent: int = 0
    free: threading.Event = field(default_factory=threading.Event)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10 * RECEIPT_S)

    def ask(self, *pieces: bytes) -> bytes:
        """Send raw bytes, and return all that comes until the other side closes or is silent."""
        with self.connect() as connection:
            for piece in pieces:
                connection.sendall(piece)
            return read(connection)


def read(connection: socket.socket) -> bytes:
    content = b""
    connection.settimeout(4 * RECEIPT_S)
    try:
        while piece := connection.recv(65_536):
            content += piece
            if content.endswith(b"ok"):
                break
    except (TimeoutError, ConnectionResetError):
        pass
    return content


class Server(ThreadingHTTPServer):
    """Behind the front, in place of a replica."""

    daemon_threads = True

    def __init__(self, door: Door) -> None:
        super().__init__(("127.0.0.1", 0), Replica)
        self.door = door

    def handle_error(self, *_: object) -> None:
        # A connection that the front broke off.
        self.door.broken.set()


class Replica(BaseHTTPRequestHandler):
    """One connection from the front."""

    protocol_version = "HTTP/1.1"
    server: Server

    def answer(self, body: bytes) -> None:
        door = self.server.door
        if self.path != "/-/healthz":
            door.seen.append((self.command, self.path, body))
            door.headers.append([(name.lower(), value) for name, value in self.headers.items()])
            if door.silent:
                door.silent -= 1
                self.close_connection = True
                return
            door.free.wait(10 * RECEIPT_S)
        content = bytes(30_000_000) if self.path == "/large" else b"ok"
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        if self.headers.get("transfer-encoding"):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
        self.answer(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    found = Door(free_port(18_800 + port_shift()))
    found.free.set()
    monkeypatch.setattr(front, "_MOST_RECEIPT_S", RECEIPT_S)
    write_command(tmp_path)
    with Server(found) as replica:
        threading.Thread(target=replica.serve_forever, daemon=True).start()
        path = configuration(tmp_path, "127.0.0.1", found.port, replica.server_port)
        text = path.read_text().replace("timeout client 5s", f"timeout client {RECEIPT_S}s").replace("maxconn 40", "maxconn 1000")
        # Both of its replicas are this one.
        path.write_text(text.replace(f"127.0.0.1:{replica.server_port + 1}", f"127.0.0.1:{replica.server_port}"))
        with subprocess.Popen([tmp_path / COMMAND_FILE, "-db", "-f", path], stderr=subprocess.DEVNULL) as running:
            try:
                wait_until_open(found.port)
                yield found
            finally:
                running.terminate()
                replica.shutdown()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.") else 0


def test_a_good_request_goes_through(door: Door) -> None:
    assert status(door.ask(HEAD + b"Content-Length: 2\r\n\r\n{}")) == 200
    assert door.seen == [("POST", "/v1/predict", b"{}")]


@pytest.mark.parametrize("header", [b"X-Long: " + b"a" * 65_536 + b"\r\n", b"".join(b"X-%d: a\r\n" % number for number in range(500))])
def test_e17_long_or_many_headers_are_refused_before_a_replica_sees_them(door: Door, header: bytes) -> None:
    assert status(door.ask(HEAD + header + b"Content-Length: 2\r\n\r\n{}")) in (400, 431)
    assert door.seen == []


@pytest.mark.parametrize(
    "name",
    [
        *("X-Request-Timeout-Seconds", "X-Session-Id", "x_session_id"),
        *("serve_multiplexed_model_id", "Serve-Multiplexed-Model-Id", "SERVE_multiplexed-model_id"),
    ],
)
def test_e17_headers_that_serve_would_obey_do_not_reach_a_replica(door: Door, name: str) -> None:
    sent = f"{name}: mine\r\nX-Client-Id: me\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    assert status(door.ask(HEAD + sent)) == 200
    (headers,) = door.headers
    assert ("x-client-id", "me") in headers
    assert "mine" not in dict(headers).values()


@pytest.mark.parametrize("said", [b"", b"X-Request-Disconnect-Disabled: ?0\r\n", b"x-request-disconnect-disabled: ?0\r\n" * 2])
def test_e17_who_looks_for_clients_that_leave_is_not_theirs_to_say(door: Door, said: bytes) -> None:
    assert status(door.ask(HEAD + said + b"Content-Length: 2\r\n\r\n{}")) == 200
    (headers,) = door.headers
    assert [value for name, value in headers if name == "x-request-disconnect-disabled"] == ["?1"]


@pytest.mark.parametrize(
    "request_",
    [
        b"Content-Length: -1\r\n\r\n{}",
        b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
        b"Content-Length: 2, 3\r\n\r\n{}x",
        b"Content-Length: 0x2\r\n\r\n{}",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\nContent-Length: 2\r\n\r\n{}",
        b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"Bad header line\r\nContent-Length: 2\r\n\r\n{}",
        b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_e18_framing_that_can_be_read_in_two_ways_is_refused(door: Door, request_: bytes) -> None:
    assert status(door.ask(HEAD + request_)) in (400, 422, 501)
    assert door.seen == []


def test_d17_a_request_whose_replica_closes_the_connection_is_given_to_another(door: Door) -> None:
    """As one does that has kept it for long enough, or is killed."""
    door.silent = 1
    assert status(door.ask(HEAD + b"Content-Length: 2\r\n\r\n{}")) == 200
    assert door.seen == [("POST", "/v1/predict", b"{}")] * 2


def test_d17_a_request_that_no_replica_survives_is_tried_twice_and_no_more(door: Door) -> None:
    door.silent = 100
    assert status(door.ask(HEAD + b"Content-Length: 2\r\n\r\n{}")) >= 500
    assert door.seen == [("POST", "/v1/predict", b"{}")] * 2


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a replica have one request at a time, and refuse who comes where more than two wait for each."""
    for name, value in {"_MOST_AT_ONCE": 1, "_MOST_WAITING": 2, "_MOST_WAIT_S": 30}.items():
        monkeypatch.setattr(front, name, value)


@pytest.mark.usefixtures("narrow")
def test_d15_where_enough_wait_whoever_comes_is_refused_at_once_but_for_probes(door: Door) -> None:
    door.free.clear()
    with ExitStack() as stack:
        callers = [stack.enter_context(door.connect()) for _ in range(30)]
        for caller in callers:
            caller.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")
        refused: list[socket.socket] = []
        # Two are with the replicas, and five wait: for each of them 2.5, which HAProxy rounds up to more than two.
        while len(refused) < 23:
            found, _, _ = select.select([caller for caller in callers if caller not in refused], [], [], 10 * RECEIPT_S)
            assert found, f"{len(refused)} of 23 were told"
            refused += found
        probe = stack.enter_context(door.connect())
        probe.sendall(b"GET /health/live HTTP/1.1\r\nHost: door\r\n\r\n")
        for caller in refused:
            told = caller.recv(4096)
            assert told.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1\r\n" in told
            assert b"urn:twohead:problem:overloaded" in told
        door.free.set()
        for caller in [*(caller for caller in callers if caller not in refused), probe]:
            assert read(caller).startswith(b"HTTP/1.1 200 ")
    assert len(door.seen) == 8


def test_e18_a_request_inside_a_body_is_a_body(door: Door) -> None:
    """The length that is told and the chunks disagree: the chunks count, and what follows them is refused or never read."""
    inner = b"GET /metrics HTTP/1.1\r\nHost: door\r\n\r\n"
    for sent in (
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(inner) + inner + b"\r\n0\r\n\r\n",
        HEAD + b"Content-Length: %d\r\n\r\n" % len(inner) + inner,
    ):
        door.seen.clear()
        told = status(door.ask(sent))
        if b"chunked" in sent:
            assert told in (200, 400)
            assert [method for method, _, _ in door.seen] in (["POST"], [])
        else:
            assert told == 200
            assert door.seen == [("POST", "/v1/predict", inner)]


def told_while_sending(connection: socket.socket, send: bytes, every_s: float) -> bytes:
    """Send a byte now and then until the other side closes; returns what it said, and nothing where it let all of it come."""
    connection.settimeout(every_s)
    said = b""
    for byte in send:
        try:
            connection.sendall(bytes([byte]))
            if (found := connection.recv(65_536)) == b"":
                return said
            said += found
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return said
    return b""


@pytest.mark.parametrize("slow", [HEAD + b"X-Slow: " + b"a" * 500, b""], ids=["headers", "body"])
def test_e20_who_sends_a_byte_now_and_then_is_closed(door: Door, slow: bytes) -> None:
    with door.connect() as connection:
        if not slow:
            connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        # A byte at a time this would go on for minutes.
        assert status(told_while_sending(connection, slow or b"x" * 500, 0.2)) == 408
    assert door.seen == []


def test_e20_eight_hundred_who_say_nothing_shut_nobody_out(door: Door) -> None:
    held = [door.connect() for _ in range(800)]
    for connection in held:
        connection.sendall(b"POST /v1/predict HT")
    assert [status(door.ask(HEAD + b"Content-Length: 2\r\n\r\n{}")) for _ in range(20)] == [200] * 20
    # All of them are told that they were too slow, and closed.
    assert [status(read(connection)) for connection in held] == [408] * 800
    for connection in held:
        connection.close()
    assert [body for _, _, body in door.seen] == [b"{}"] * 20


def test_e20_who_does_not_read_the_answer_is_closed(door: Door) -> None:
    with door.connect() as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: door\r\n\r\n")
        # Its own side hears of that only once it reads on; the replica is free at once.
        assert door.broken.wait(60)
