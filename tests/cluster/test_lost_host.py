"""A machine that loses its power before it has answered: nothing of Ray's runs here."""

import json
import subprocess
import textwrap
import time
from collections.abc import Iterator

import pytest

from tests.cluster.conftest import require_hosts
from tests.cluster.hosts import SOURCE, Host, hosts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2_400)]

PORT = 8080
# Takes a request, says so, and answers only where it may.
SERVER = """
    import sys
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            print("asked", flush=True)
            if sys.argv[2] == "silent":
                sys.stdin.read()
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"here")

    with ThreadingHTTPServer((sys.argv[1], 8080), Handler) as server:
        print("listening", flush=True)
        server.serve_forever()
"""
CLIENT = """
    import asyncio, json, sys, time
    from serving.client import AsyncClient, Client

    timeout_s, *urls = json.loads(sys.argv[2])

    def ask():
        with Client(urls, timeout_s=timeout_s) as client:
            return client.metrics()

    async def ask_async():
        async with AsyncClient(urls, timeout_s=timeout_s) as client:
            return (await client._send("GET", "/metrics", None)).text

    began = time.monotonic()
    said = ask() if sys.argv[1] == "Client" else asyncio.run(ask_async())
    print(json.dumps({"said": said, "after_s": time.monotonic() - began}))
"""


@pytest.fixture
def made() -> Iterator[dict[str, Host]]:
    require_hosts()
    with hosts("one", "two", "laptop") as found:
        yield found


def begin(host: Host, program: str, *words: str) -> "subprocess.Popen[str]":
    command = host.command("python", "-c", textwrap.dedent(program), *words, environment={"PYTHONPATH": str(SOURCE)})
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_who_waits_for_a_machine_that_is_gone_asks_another_long_before_its_patience_ends(made: dict[str, Host]) -> None:
    one, two = (begin(made[name], SERVER, made[name].address, how) for name, how in (("one", "silent"), ("two", "open")))
    try:
        for server in (one, two):
            assert server.stdout
            assert server.stdout.readline() == "listening\n"
        urls = [f"http://{made[name].address}:{PORT}" for name in ("one", "two")]
        clients = {}
        for kind in ("Client", "AsyncClient"):
            # Ten minutes for each address: only the connection can tell that the first is gone.
            clients[kind] = begin(made["laptop"], CLIENT, kind, json.dumps([1200, *urls]))
            assert one.stdout
            # One after the other: so it is known that each of them waits there.
            assert one.stdout.readline() == "asked\n"
        made["one"].lose()
        deadline = time.monotonic() + 60
        ended = {kind: (client, *client.communicate(timeout=deadline - time.monotonic())) for kind, client in clients.items()}
        for kind, (client, out, err) in ended.items():
            assert client.returncode == 0, f"{kind}: {err}"
            told = json.loads(out)
            print(f"{kind}: asked another {told['after_s']:.1f} s after it began")
            assert told["said"] == "here", kind
    finally:
        for name, server in (("one", one), ("two", two)):
            # With its host it ends; a signal would reach only what entered it.
            made[name].lose()
            server.communicate(timeout=60)
