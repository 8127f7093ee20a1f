import asyncio
import errno
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from serving import client as door
from serving.client import AsyncClient, Client, is_on_this_machine
from serving.errors import AnswerError
from serving.messages import Prediction

ANSWER = {
    "heads": {"category": {"class": "sales", "probability": 0.75, "scores": {"sales": 0.75, "nurse": 0.25}}},
    "tokens": 3,
    "truncated": False,
}
PREDICTION = {"version": 7, "answers": [ANSWER]}
PROBLEM = {"type": "urn:twohead:problem:overloaded", "title": "overloaded", "status": 503, "detail": "full", "request_id": "r1"}

Reply = httpx.Response | httpx.TransportError
Ask = Callable[..., tuple[Prediction, list[httpx.Request]]]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Collect the seconds a client would have slept."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(door.time, "sleep", slept.append)
    monkeypatch.setattr(door.asyncio, "sleep", sleep)
    return slept


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, waits: list[float]) -> Ask:
    """Send one request through either client to a server with prepared replies."""

    def send(replies: list[Reply], texts: Any = ("a",), **options: Any) -> tuple[Prediction, list[httpx.Request]]:
        seen: list[httpx.Request] = []
        left = list(replies)

        def handle(received: httpx.Request) -> httpx.Response:
            seen.append(received)
            reply = left.pop(0)
            if isinstance(reply, httpx.TransportError):
                raise reply
            return reply

        keywords = {key: options.pop(key) for key in ("url", "retries", "timeout_s") if key in options}

        async def main() -> Prediction:
            async with AsyncClient(transport=httpx.MockTransport(handle), **keywords) as client:
                return await client.predict(texts, **options)

        if request.param == "async":
            return asyncio.run(main()), seen
        with Client(transport=httpx.MockTransport(handle), **keywords) as client:
            return client.predict(texts, **options), seen

    return send


def test_an_answer_is_typed(ask: Ask) -> None:
    prediction, (sent,) = ask([httpx.Response(200, json=PREDICTION)], deadline_ms=500)
    assert prediction.version == 7
    assert prediction.answers[0].heads["category"].class_ == "sales"
    assert json.loads(sent.content) == {"texts": ["a"], "deadline_ms": 500}


def test_an_abstention_is_typed(ask: Ask) -> None:
    shy = {"class": None, "probability": 0.5, "scores": {"sales": 0.5, "nurse": 0.5}, "abstained": True}
    prediction, _ = ask([httpx.Response(200, json={"version": 7, "answers": [ANSWER | {"heads": {"category": shy}}]})])
    head = prediction.answers[0].heads["category"]
    assert (head.class_, head.probability, head.abstained) == (None, 0.5, True)


def test_examples(ask: Ask) -> None:
    _, (sent,) = ask([httpx.Response(200, json=PREDICTION)], None, examples=[{"title": "a"}])
    assert json.loads(sent.content) == {"examples": [{"title": "a"}]}


def test_retry_after_is_honoured(ask: Ask, waits: list[float]) -> None:
    refused = httpx.Response(503, json=PROBLEM, headers={"retry-after": "7"})
    prediction, seen = ask([refused, refused, httpx.Response(200, json=PREDICTION)])
    assert prediction.version == 7
    assert len(seen) == 3
    assert len(waits) == 2
    assert all(7.0 <= wait <= 7.0 * 1.25 for wait in waits)


def test_without_retry_after_waits_grow(ask: Ask, waits: list[float]) -> None:
    ask([httpx.ConnectError("refused")] * 4 + [httpx.Response(200, json=PREDICTION)])
    assert len(waits) == 4
    assert waits == sorted(waits)


def test_retries_end(ask: Ask, waits: list[float]) -> None:
    with pytest.raises(AnswerError, match=r"503 overloaded: full \(request r1\)") as caught:
        ask([httpx.Response(503, json=PROBLEM)] * 3, retries=2)
    assert caught.value.status == 503
    assert len(waits) == 2


URLS = ["http://a:1", "http://b:2", "http://c:3"]


def test_another_address_is_asked_at_once(ask: Ask, waits: list[float]) -> None:
    replies: list[Reply] = [httpx.ConnectError("refused"), httpx.Response(503, json=PROBLEM, headers={"retry-after": "9"})]
    _, seen = ask([*replies, httpx.Response(200, json=PREDICTION)], url=URLS)
    assert [str(sent.url.host) for sent in seen] == ["a", "b", "c"]
    assert waits == [0.0, 0.0]


def test_where_all_addresses_refuse_it_waits(ask: Ask, waits: list[float]) -> None:
    refused = httpx.Response(503, json=PROBLEM, headers={"retry-after": "2"})
    _, seen = ask([refused] * 4 + [httpx.Response(200, json=PREDICTION)], url=URLS[:2])
    assert [str(sent.url.host) for sent in seen] == ["a", "b", "a", "b", "a"]
    assert (waits[0], waits[2]) == (0.0, 0.0)
    assert min(waits[1], waits[3]) >= 2.0


def test_who_answered_is_asked_first_the_next_time() -> None:
    seen: list[str] = []

    def handle(received: httpx.Request) -> httpx.Response:
        seen.append(received.url.host)
        if received.url.host == "a":
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json=PREDICTION)

    with Client(URLS, transport=httpx.MockTransport(handle)) as client:
        client.predict(["a"])
        client.predict(["a"])
    assert seen == ["a", "b", "b"]


def test_no_address_is_an_error() -> None:
    with pytest.raises(AnswerError, match="url is an empty list"):
        Client([])


def test_of_all_requests_one_in_ten_is_sent_again(waits: list[float]) -> None:
    asked = 0

    def handle(_: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        return httpx.Response(503, json=PROBLEM)

    with Client(transport=httpx.MockTransport(handle)) as client:
        for _ in range(500):
            with pytest.raises(AnswerError, match="503"):
                client.predict(["a"])
    # And the ten that a client begins with; of those the first request earns nothing.
    assert asked - 500 == (500 - 1) // 10 + 10


def test_a_wait_beyond_the_timeout_is_not_begun(ask: Ask, waits: list[float]) -> None:
    with pytest.raises(AnswerError, match="503"):
        ask([httpx.Response(503, json=PROBLEM, headers={"retry-after": "600"})], timeout_s=30.0)
    assert waits == []


def test_a_refused_connection_says_what_to_do(ask: Ask) -> None:
    with pytest.raises(AnswerError, match=r"http://127\.0\.0\.1:8000: refused") as caught:
        ask([httpx.ConnectError("refused")], retries=0)
    assert caught.value.hint == "is it running? python -m serving run"


def test_a_timeout_is_not_retried(ask: Ask, waits: list[float]) -> None:
    with pytest.raises(AnswerError, match="no answer in time"):
        ask([httpx.ReadTimeout("")])
    assert waits == []


def test_a_connection_that_the_system_has_given_up_is_retried(ask: Ask, waits: list[float]) -> None:
    gone = httpx.ReadTimeout("timed out")
    gone.__cause__ = TimeoutError(errno.ETIMEDOUT, "Connection timed out")
    prediction, seen = ask([gone, httpx.Response(200, json=PREDICTION)])
    assert (prediction.version, len(seen), len(waits)) == (7, 2, 1)


@pytest.mark.parametrize("status", [400, 422, 500, 504])
def test_other_errors_are_not_retried(ask: Ask, waits: list[float], status: int) -> None:
    reply = PROBLEM | {"status": status, "title": "bad request", "errors": [{"field": "texts.0", "reason": "is empty"}]}
    with pytest.raises(AnswerError, match=rf"{status} bad request: texts\.0: is empty") as caught:
        ask([httpx.Response(status, json=reply)])
    assert caught.value.status == status
    assert waits == []


def test_a_foreign_server(ask: Ask) -> None:
    with pytest.raises(AnswerError, match="the answer is not a Prediction"):
        ask([httpx.Response(200, text="<html>")])
    with pytest.raises(AnswerError, match="404 Not Found"):
        ask([httpx.Response(404, text="<html>")])


def test_one_string_is_not_a_list_of_letters(ask: Ask) -> None:
    with pytest.raises(AnswerError, match="must be a list of strings"):
        ask([], "abc")


def test_which_urls_are_here() -> None:
    for host in ("127.0.0.1", "127.0.0.2", "[::1]", "localhost", "0.0.0.0", "[::]"):
        assert is_on_this_machine(f"http://{host}:8000")
    for host in ("example.com", "10.0.0.1", "[fe80::1]"):
        assert not is_on_this_machine(f"https://{host}")


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "127.0.0.2"])
def test_no_proxy_gets_what_is_asked_on_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def listen() -> tuple[ThreadingHTTPServer, list[tuple[str, str | None]]]:
        asked: list[tuple[str, str | None]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append((self.path, self.headers["authorization"]))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        server = ThreadingHTTPServer(("0.0.0.0", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server, asked

    (proxy, proxied), (server, asked) = listen(), listen()
    try:
        for variable in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.server_port}")
        for variable in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(variable, raising=False)
        with Client(f"http://{host}:{server.server_port}", retries=0, key="secret") as client:
            client.metrics()
    finally:
        for one in (proxy, server):
            one.shutdown()
            one.server_close()
    assert (proxied, asked) == ([], [("/metrics", "Bearer secret")])
