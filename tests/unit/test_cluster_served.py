"""cluster.served: what exporters tell of replicas, as Ray writes it."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cluster.served import exporters, read_figures, summed

PAGE = """\
# HELP ray_twohead_version The version that answers.
# TYPE ray_twohead_version gauge
ray_twohead_version{Component="core_worker",application="twohead",deployment="Replica",replica="a",otel_scope_name=""} 3.0
ray_twohead_version{application="twohead",deployment="Replica",replica="b"} 4.0
ray_twohead_requests_per_second{application="twohead",deployment="Replica",replica="a"} 10.26
ray_twohead_requests_per_second{application="twohead",deployment="Replica",replica="b"} 2e+01
ray_twohead_queued_seconds{application="twohead",deployment="Replica",replica="a"} 0.004
ray_twohead_queued_seconds{application="twohead",deployment="Replica",replica="b"} 1.25
ray_twohead_queued_tokens{application="twohead",deployment="Replica",replica="b"} 9.0
"""


@pytest.fixture
def address() -> Iterator[str]:
    class Exporter(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = PAGE.encode()
            self.send_response(200 if self.path == "/metrics" else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Exporter)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_figures_of_replicas_are_put_together(address: str) -> None:
    # Port 9 of this machine answers nobody.
    figures = read_figures([address, "127.0.0.1:9"])
    told = {"versions": [3, 4], "requests_per_second": 30.3, "queued_seconds": 1.25}
    assert summed(["a", "b", "gone"], figures) == told
    # A replica that ended is on its exporter's page for a while.
    assert summed(["a"], figures) == {"versions": [3], "requests_per_second": 10.3, "queued_seconds": 0.0}
    assert summed(["c"], figures) == {"versions": [], "requests_per_second": None, "queued_seconds": None}


def test_only_nodes_with_replicas_are_asked() -> None:
    nodes = [{"raylet": {"nodeManagerAddress": f"10.0.0.{number}", "metricsExportPort": 5}} for number in (1, 2)]
    assert exporters([*nodes, {"raylet": None}, {"raylet": {"nodeManagerAddress": "10.0.0.3"}}], ["10.0.0.2", "10.0.0.3"]) == ["10.0.0.2:5"]
