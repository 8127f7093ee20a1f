"""Spans: what they tell, whose child they are, and that they never hold a text."""

import builtins
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from serving.answerer import Answered, Explained
from serving.errors import NotReady, Overloaded, ServingError
from serving.explaining import METHOD, ExplainRequest, Explanation
from serving.messages import Answer, HeadAnswer, Limits, Prediction, PredictRequest, VersionFacts
from serving.observing.tracing import Spans, Traced, add_tracing, make_tracer
from serving.promised import Promised
from serving.replica import Replica
from serving.routes import build_app
from serving.spent import Spent

SECRET = "a text of somebody"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SPENT = Spent(tokenize_s=0.001, queue_s=0.25, compute_s=0.5, batch_texts=9, batch_tokens=99)


class FakeAnswering:
    """Answers everything alike, unless it is told to fail."""

    error: Exception | None = None

    async def predict(self, request: PredictRequest, client: str = "", promised: Promised | None = None) -> Answered:
        if self.error is not None:
            raise self.error
        told = HeadAnswer(class_="nurse", probability=0.9, scores={"nurse": 0.9, "sales": 0.1})
        answers = [Answer(heads={"job": told}, tokens=4, truncated=False) for _ in request.texts or ()]
        return Answered(Prediction(version=7, answers=answers), SPENT)

    async def explain(self, request: ExplainRequest, client: str = "") -> Explained:
        return Explained(Explanation(version=7, method=METHOD, spans=[], heads={}, tokens=4, truncated=False), SPENT)

    def limits(self) -> Limits:
        return Limits(max_texts=8, max_characters=99, max_tokens=64, max_body_bytes=4096, deadline_ms=1000)

    def facts(self) -> VersionFacts:
        raise NotReady("no version is loaded yet")

    def require_ready(self) -> None:
        raise NotReady("no version is loaded yet")


Ask = Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]


async def spans_of(ask: Ask, answering: FakeAnswering | None = None) -> tuple[httpx.Response, list[Any]]:
    """Ask, where the whole process is traced, as Serve may do."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def figures() -> str:
        return ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
        app = build_app(Traced(answering or FakeAnswering()), figures)
        add_tracing(app, make_tracer())
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await ask(client)
    return response, list(exporter.get_finished_spans())


async def test_a_span_tells_all_but_the_texts() -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    response, (span,) = await spans_of(lambda client: client.post("/v1/predict", json={"texts": [SECRET, SECRET]}, headers=headers))
    assert response.status_code == 200
    facts = {"texts": 2, "tokens": 8, "queue_s": 0.25, "compute_s": 0.5, "version": 7}
    assert dict(span.attributes) == {f"twohead.{name}": value for name, value in facts.items()} | {
        "http.route": "/v1/predict",
        "http.request.method": "POST",
        "http.response.status_code": 200,
    }
    assert (span.name, span.status.status_code) == ("POST /v1/predict", StatusCode.UNSET)
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)


async def test_without_a_parent_it_begins_a_trace() -> None:
    for header in ({}, {"traceparent": "nonsense"}):
        _, (span,) = await spans_of(lambda client, header=header: client.post("/v1/explain", json={"text": SECRET}, headers=header))
        assert span.parent is None
        assert (span.name, span.attributes["twohead.texts"], span.attributes["twohead.tokens"]) == ("POST /v1/explain", 1, 4)


async def test_other_servers_words_are_traced_too() -> None:
    response, (span,) = await spans_of(lambda client: client.post("/v1/classifications", json={"model": "twohead", "input": [SECRET]}))
    assert (span.name, span.attributes["http.response.status_code"]) == ("POST /v1/classifications", response.status_code)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Overloaded("full", 1.0), 503, StatusCode.ERROR),
        (ServingError("it failed"), 500, StatusCode.ERROR),
        (RuntimeError(SECRET), 500, StatusCode.ERROR),
    ],
)
async def test_failures_have_a_status_and_no_words(error: Exception, status: int, code: StatusCode) -> None:
    answering = FakeAnswering()
    answering.error = error
    response, (span,) = await spans_of(lambda client: client.post("/v1/predict", json={"texts": [SECRET]}), answering)
    assert (response.status_code, span.attributes["http.response.status_code"], span.status.status_code) == (status, status, code)
    assert (span.events, span.status.description) == ((), None)
    assert SECRET not in span.to_json()


async def test_a_refused_body_and_an_unknown_path_are_no_failures_of_ours() -> None:
    response, (span,) = await spans_of(lambda client: client.post("/v1/predict", json={"texts": []}))
    assert (response.status_code, span.attributes["http.response.status_code"], span.status.status_code) == (422, 422, StatusCode.UNSET)
    _, (span,) = await spans_of(lambda client: client.post(f"/{SECRET}"))
    assert (span.name, span.attributes["http.response.status_code"]) == ("POST", 404)
    assert "somebody" not in span.to_json()


async def test_probes_have_no_span() -> None:
    response, spans = await spans_of(lambda client: client.get("/health/live"))
    assert (response.status_code, spans) == (200, [])


def test_without_the_package_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(name)
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ServingError, match=r"serving\.tracing is true, but opentelemetry-api is not installed") as caught:
        make_tracer()
    assert "pip install opentelemetry-api" in caught.value.hint


@pytest.mark.parametrize(("tracer", "layers"), [(None, 0), (TracerProvider().get_tracer("test"), 1)])
def test_a_replica_traces_where_it_is_asked_to(tracer: Any, layers: int) -> None:
    replica = object.__new__(Replica)
    replica._answerer, replica._tracer, replica._ring = FakeAnswering(), tracer, None
    app = replica.__serve_build_asgi_app__()
    assert len([one for one in app.user_middleware if one.cls is Spans]) == layers
