"""A span of OpenTelemetry for every request about texts, where `serving.tracing` asks for it; without it nothing of this is on the way.

A span begins and ends at the door, continues what the header `traceparent` names, and tells how many texts and tokens a request had,
where its time went, which version answered and with what status; never a text, nor words of an error, which may hold one. Where spans go
is decided by the tracer provider of the process: Serve sets one where `RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH` names an exporter; without
one they go nowhere.

Source: https://opentelemetry.io/docs/specs/semconv/http/http-spans/ for names and statuses.
"""

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from serving.answerer import Answered, Explained
from serving.door import Answering
from serving.errors import ServingError
from serving.explaining import ExplainRequest
from serving.messages import Limits, PredictRequest, VersionFacts
from serving.promised import Promised

if TYPE_CHECKING:
    from fastapi import FastAPI
    from opentelemetry.trace import Span, Tracer

PREFIX = "twohead."

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def make_tracer() -> "Tracer":
    """Return the process's tracer.

    Raises:
        ServingError: The package is not installed.
    """
    try:
        from opentelemetry import trace
    except ImportError:
        hint = "pip install opentelemetry-api opentelemetry-sdk, or serving.tracing: false"
        raise ServingError("serving.tracing is true, but opentelemetry-api is not installed", hint) from None
    return trace.get_tracer("twohead")


def add_tracing(app: "FastAPI", tracer: "Tracer") -> None:
    """Begin a span for every request about texts that an application answers; its `Answering` must be `Traced`."""
    app.add_middleware(Spans, tracer=tracer)


class Traced:
    """Answers, and tells the current span about it.

    Args:
        answering: Answers.
    """

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    async def predict(self, request: PredictRequest, client: str = "", promised: Promised | None = None) -> Answered:
        """Answer a request of a client."""
        answered = await self._answering.predict(request, client, promised)
        answers = answered.prediction.answers
        _tell(answered, len(answers), sum(answer.tokens for answer in answers))
        return answered

    async def explain(self, request: ExplainRequest, client: str = "") -> Explained:
        """Explain a client's answer."""
        explained = await self._answering.explain(request, client)
        _tell(explained, 1, explained.explanation.tokens)
        return explained

    def limits(self) -> Limits:
        """Tell what a request may ask for."""
        return self._answering.limits()

    def facts(self) -> VersionFacts:
        """Describe the version that answers."""
        return self._answering.facts()

    def require_ready(self) -> None:
        """Raise `NotReady` while nothing can be answered."""
        self._answering.require_ready()


class Spans:
    """Begins and ends the span of each request that may have texts in its body.

    Args:
        app: The application inside.
        tracer: Makes spans.
    """

    def __init__(self, app: Any, tracer: "Tracer") -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._tracer = tracer
        self._kind = SpanKind.SERVER
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        # Of a caller that went away there is none.
        status: int | None = None

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"] if name.startswith(b"trace")}
        whole = self._propagator.extract(headers)
        # Neither the path nor an exception is kept: both may hold a text.
        with self._tracer.start_as_current_span("POST", whole, self._kind, record_exception=False, set_status_on_exception=False) as span:
            try:
                await self._app(scope, receive, send_and_note)
            finally:
                # An answer that broke off is raised; a caller that went away raises no `Exception`.
                _end(span, scope, 500 if isinstance(sys.exception(), Exception) else status)


def _tell(answered: Answered | Explained, texts: int, tokens: int) -> None:
    from opentelemetry import trace

    spent = answered.spent
    facts = {"texts": texts, "tokens": tokens, "queue_s": spent.queue_s, "compute_s": spent.compute_s, "version": answered.version}
    trace.get_current_span().set_attributes({PREFIX + name: value for name, value in facts.items()})


def _end(span: "Span", scope: Scope, status: int | None) -> None:
    from opentelemetry.trace import StatusCode

    route = getattr(scope.get("route"), "path", None)
    if route is not None:
        span.update_name(f"POST {route}")
        span.set_attribute("http.route", route)
    span.set_attribute("http.request.method", "POST")
    if status is not None:
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(StatusCode.ERROR)
