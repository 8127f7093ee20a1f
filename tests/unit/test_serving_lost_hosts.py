"""serving.lost_hosts: which options a connection has, and who goes through a proxy.

What the options do, `tests/cluster/test_lost_host.py` tries.
"""

import errno
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from serving import lost_hosts


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Patient(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that hangs up before it has read all."""


@pytest.fixture
def url() -> Iterator[str]:
    with Patient(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def require_options(found: socket.socket) -> None:
    assert len(lost_hosts.socket_options()) >= 2
    for level, name, value in lost_hosts.socket_options():
        assert found.getsockopt(level, name) == value


def test_a_connection_asks_whether_the_other_machine_is_still_there(url: str) -> None:
    with httpx.Client(transport=lost_hosts.transport(url)) as client, client.stream("GET", url) as response:
        require_options(response.extensions["network_stream"].get_extra_info("socket"))


async def test_one_of_asyncio_does_too(url: str) -> None:
    transport = lost_hosts.async_transport(url, httpx.Limits(max_connections=None))
    async with httpx.AsyncClient(transport=transport) as client, client.stream("GET", url) as response:
        require_options(response.extensions["network_stream"].get_extra_info("socket"))


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
def test_where_a_proxy_stands_between_httpx_makes_the_connection(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "http://proxy:3128")
    assert lost_hosts.transport("https://texts.example") is None
    assert lost_hosts.async_transport("https://texts.example", httpx.Limits()) is None
    monkeypatch.setenv("NO_PROXY", "texts.example")
    assert lost_hosts.transport("https://texts.example") is not None


@pytest.mark.parametrize(("number", "is_late"), [(errno.ETIMEDOUT, False), (None, True)])
def test_what_the_system_gave_up_is_not_late(url: str, monkeypatch: pytest.MonkeyPatch, number: int | None, is_late: bool) -> None:
    def recv(self: socket.socket, size: int) -> bytes:
        raise TimeoutError(number, "timed out") if number else TimeoutError("timed out")

    with httpx.Client(transport=lost_hosts.transport(url)) as client:
        # Only the client reads so.
        monkeypatch.setattr(socket.socket, "recv", recv, raising=False)
        with pytest.raises(httpx.ReadTimeout) as raised:
            client.get(url)
    assert lost_hosts.is_late(raised.value) is is_late
