"""cluster.kept: which replicas stay in HAProxy's configuration while Serve names none."""

import http.server
import json
import socket
import threading
from pathlib import Path

import pytest

from cluster import kept
from cluster.kept import complete, main, takes_requests

BACKEND = """\
frontend door
    bind 127.0.0.1:8000
    use_backend {name} if is_{name}
backend default_backend
    http-request return status 404
backend {name}
    option httpchk GET /-/healthz
# A remark in a section.
    default-server inter 5s
{servers}    server proxy 127.0.0.1:8500 check backup
listen stats
    bind 127.0.0.1:8404
"""
ONE, TWO = "    server one 127.0.0.1:30000 check observe layer4", "    server two 127.0.0.1:30001 check observe layer4"


def text(*servers: str, name: str = "http-app") -> str:
    return BACKEND.format(name=name, servers="".join(f"{one}\n" for one in servers))


def everybody(address: str, path: str) -> bool:
    assert (address.partition(":")[0], path) == ("127.0.0.1", "/-/healthz")
    return True


def nobody_asked(address: str, path: str) -> bool:
    raise AssertionError((address, path))


def test_a_configuration_with_replicas_stays_as_it_is() -> None:
    assert complete(text(ONE, TWO), {"http-app": [ONE]}, nobody_asked) == (text(ONE, TWO), {"http-app": [ONE, TWO]})


def test_replicas_that_live_are_kept_in_their_backend() -> None:
    known = {"http-app": [ONE, TWO]}
    told, found = complete(text(), known, everybody)
    assert told == text().replace("listen stats", f"{ONE}\n{TWO}\nlisten stats")
    assert found == known
    # And once more, where Serve goes on to name none.
    assert complete(text(), found, everybody) == (told, known)


def test_replicas_that_go_are_not_kept_and_forgotten() -> None:
    told, found = complete(text(), {"http-app": [ONE, TWO]}, lambda address, _: address.endswith(":30001"))
    assert told == text().replace("listen stats", f"{TWO}\nlisten stats")
    assert found == {"http-app": [TWO]}
    assert complete(text(), found, lambda *_: False) == (text(), {})


def test_an_application_that_was_taken_away_is_forgotten() -> None:
    assert complete(text(name="http-other"), {"http-app": [ONE]}, nobody_asked) == (text(name="http-other"), {})


def test_a_port_that_another_application_has_by_now_is_not_taken() -> None:
    both = text() + text(ONE.replace("one", "theirs"), name="http-other")
    assert complete(both, {"http-app": [ONE]}, nobody_asked)[0] == both


def test_without_memory_nothing_is_kept(tmp_path: Path) -> None:
    configuration, memory = tmp_path / "cfg", tmp_path / "kept"
    for damaged in (None, "", "{", "[1"):
        configuration.write_text(text())
        if damaged is not None:
            memory.write_text(damaged)
        main(configuration, memory)
        assert configuration.read_text() == text()
        assert json.loads(memory.read_text()) == {}


class Told(http.server.BaseHTTPRequestHandler):
    """Answers with the status that its path ends in."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.rpartition("/")[2]))
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def test_who_answers_takes_requests_unless_it_says_that_it_goes() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Told) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        assert takes_requests(address, "/200")
        assert not takes_requests(address, "/503")
        server.shutdown()
    assert not takes_requests(address, "/200")


def test_who_listens_and_is_too_busy_to_answer_takes_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_PATIENCE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert takes_requests(f"127.0.0.1:{silent.getsockname()[1]}", "/200")
    monkeypatch.setattr(kept, "_PATIENCE_S", 30.0)
    with socket.create_server(("127.0.0.1", 0)) as rude:
        threading.Thread(target=lambda: rude.accept()[0].close(), daemon=True).start()
        assert not takes_requests(f"127.0.0.1:{rude.getsockname()[1]}", "/200")
