"""The HTTP surface: paths, statuses, problem+json; no Ray and no model in it.

`build_app` wraps anything that can answer (`Answering`), so it is tested without a cluster. What other servers' clients send is read in
`dialects`.
"""

import json
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from serving.dialects import mistral, open_inference, text_embeddings, vllm
from serving.door import (
    ASKING,
    CLIENT_ID_HEADER,
    COMPONENTS,
    DEADLINE_HEADER,
    Answering,
    answer,
    body_schema,
    client_id,
    deadline_ms,
    problems,
    read_body,
    reply,
)
from serving.errors import InvalidFields, NotReady, ServingError
from serving.explaining import MOST_SPANS, ExplainRequest, Explanation
from serving.keys.guard import Guard, Message, Receive, Scope, Send, describe
from serving.keys.ring import KeyRing
from serving.keys.scopes import Wanted
from serving.leaving import Leaving
from serving.messages import FieldProblem, Health, Prediction, PredictRequest, Problem, VersionFacts, problem
from serving.playground import ETAG, HEADERS, PAGE
from serving.reading import check_limits, parse_body
from serving.reference import CONTENT_SECURITY_POLICY, render
from serving.unforeseen import Unforeseen

API_VERSION = "1"
PREDICT = "/v1/predict"
REQUEST_ID_HEADER = "x-request-id"
PROBLEM_JSON = "application/problem+json"
METRICS_TEXT = "text/plain; version=0.0.4; charset=utf-8"

_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}$")
# Where requests come in other servers' words.
_OTHERS = ("/v2", "/predict", "/classify", "/v1/classifications")
_TITLES = {404: "not found", 405: "method not allowed", 415: "unsupported media type"}


class RequestIds:
    """Gives every request an id, the caller's own if it is a plain one.

    Args:
        app: The application inside.
        announce: Send the id with the response; Serve's proxies do that themselves.
    """

    def __init__(self, app: Any, announce: bool) -> None:
        self._app = app
        self._announce = announce

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = dict(scope["headers"]).get(REQUEST_ID_HEADER.encode(), b"").decode("latin-1")
        request_id = asked if _REQUEST_ID.match(asked) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start" and self._announce:
                message["headers"] = [*message.get("headers", ()), (REQUEST_ID_HEADER.encode(), request_id.encode())]
            await send(message)

        await self._app(scope, receive, send_with_id)


class Straight:
    """Calls one route's own function, past what FastAPI does before it: matching, dependencies, exit stacks, none of which it uses.

    A sixth of a millisecond of CPU a request. The route itself stays, for the document.

    Args:
        app: The application inside, which answers everything else.
        route: The one.
        refuse: Answers what the function refuses.
    """

    def __init__(self, app: Any, route: APIRoute, refuse: Callable[[Request, ServingError], Response]) -> None:
        self._app = app
        self._route = route
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or scope["path"] != self._route.path or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["route"] = self._route
        request = Request(scope, receive)
        try:
            response = await self._route.endpoint(request)
        except ServingError as error:
            response = self._refuse(request, error)
        await response(scope, receive, send)


def build_app(
    answering: Answering, metrics: Callable[[], Awaitable[str]], *, announce_ids: bool = True, ring: KeyRing | None = None
) -> FastAPI:
    """Make the ASGI application.

    Args:
        answering: Answers.
        metrics: Gives the text of `/metrics`.
        announce_ids: Send every request's id back in a header; false where a proxy does.
        ring: Keys that are asked for; None lets everybody in.
    """
    app = FastAPI(
        title="twohead",
        version=API_VERSION,
        summary="One text in, an answer from every head out.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # FastAPI's own would send words of errors, which may hold a text; ours are in serving.observing.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
        openapi_tags=[{"name": "answers"}, {"name": "operation"}, {"name": "other servers' words"}],
    )
    _add_answers(app, answering)
    predict = next(route for route in app.routes if isinstance(route, APIRoute) and route.path == PREDICT)
    app.add_middleware(Straight, route=predict, refuse=_refused)
    if ring is not None:
        # Looks at the routes when it is made, which is at the first request.
        app.add_middleware(_guarded, ring=ring, routes=app.routes)
    app.add_middleware(RequestIds, announce=announce_ids)
    app.add_middleware(Leaving)
    # Around all of these.
    _add_errors(app, announce_ids)
    _add_operation(app, answering, metrics)
    for dialect in (open_inference, text_embeddings, vllm, mistral):
        dialect.add(app, answering)
    _add_playground(app)
    _add_documents(app, answering, is_guarded=ring is not None)
    return app


def _guarded(app: Any, ring: KeyRing, routes: list[Any]) -> Guard:
    return Guard(app, ring, Wanted(routes), _refused)


def _add_answers(app: FastAPI, answering: Answering) -> None:
    @app.post(
        PREDICT,
        tags=["answers"],
        summary="Answer about texts",
        description="All texts are answered by one version, in their order. Send them one by one or together: the server batches them. "
        f"Requests with the same header `{CLIENT_ID_HEADER}` share one turn: however many they are, others do not wait for all of them. "
        f"`{DEADLINE_HEADER}` says the same as `deadline_ms`; the shorter one counts.",
        response_model=Prediction,
        openapi_extra=body_schema(PredictRequest),
        responses=problems(*ASKING),
    )
    async def predict(request: Request) -> Response:
        asked = parse_body(PredictRequest, await read_body(request, answering.limits()))
        answered = await answer(answering, request, asked)
        return reply(answered, answered.prediction.model_dump_json(by_alias=True))

    @app.post(
        "/v1/explain",
        tags=["answers"],
        summary="Tell which words an answer comes from",
        description="Each word is left out once, and what that takes from the probability of the class is its weight. "
        f"Words are taken together where there are more than {MOST_SPANS}; so many texts are computed, in their turn.",
        response_model=Explanation,
        openapi_extra=body_schema(ExplainRequest),
        responses=problems(*ASKING),
    )
    async def explain(request: Request) -> Response:
        limits = answering.limits()
        asked = parse_body(ExplainRequest, await read_body(request, limits))
        asked = asked.model_copy(update={"deadline_ms": deadline_ms(request, asked.deadline_ms)})
        check_limits(PredictRequest.model_construct(texts=[asked.text], deadline_ms=asked.deadline_ms), limits)
        explained = await answering.explain(asked, client_id(request))
        return reply(explained, explained.explanation.model_dump_json(by_alias=True))

    @app.get(
        "/v1/version",
        tags=["answers"],
        summary="Describe the version that answers",
        response_model=VersionFacts,
        responses=problems(503),
    )
    async def version() -> VersionFacts:
        return answering.facts()


def _add_operation(app: FastAPI, answering: Answering, metrics: Callable[[], Awaitable[str]]) -> None:
    @app.get("/health/live", tags=["operation"], summary="Tell whether the replica runs", response_model=Health)
    async def live() -> Health:
        return Health()

    @app.get(
        "/health/ready",
        tags=["operation"],
        summary="Tell whether the replica can answer",
        description="Ready only after the version answered a real batch.",
        response_model=Health,
        responses=problems(503),
    )
    async def ready() -> Health:
        answering.require_ready()
        return Health()

    @app.get(
        "/metrics",
        tags=["operation"],
        summary="Give the figures of all replicas to Prometheus",
        response_class=PlainTextResponse,
        responses=problems(503),
    )
    async def prometheus() -> Response:
        return Response(await metrics(), media_type=METRICS_TEXT)


def _add_playground(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def playground(request: Request) -> Response:
        if ETAG in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=HEADERS)
        return HTMLResponse(PAGE, headers=HEADERS)


def _add_documents(app: FastAPI, answering: Answering, *, is_guarded: bool) -> None:
    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        try:
            facts = answering.facts()
        except NotReady:
            facts = None
        content = render(app.openapi(), str(request.base_url).rstrip("/"), facts)
        return HTMLResponse(content, headers={"content-security-policy": CONTENT_SECURITY_POLICY})

    # What is kept as the document is what /openapi.json and /docs show.
    document = app.openapi()
    for path in document["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                # FastAPI's guess for every route with a name in its path; any text is one.
                del operation["responses"]["422"]
            for content in operation.get("requestBody", {}).get("content", {}).values():
                document["components"]["schemas"] |= content["schema"].pop("$defs", {})
            for status, response in operation["responses"].items():
                if status >= "400":
                    response["content"] = {PROBLEM_JSON: next(iter(response["content"].values()))}
    if is_guarded:
        describe(document, {PROBLEM_JSON: {"schema": {"$ref": f"#/{COMPONENTS}/{Problem.__name__}"}}})


def _add_errors(app: FastAPI, announce_ids: bool) -> None:
    async def known(request: Request, error: Exception) -> Response:
        if not isinstance(error, ServingError):
            raise error
        return _refused(request, error)

    async def of_http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        title = _TITLES.get(error.status_code, "bad request")
        detail = f"{request.method} {title}" if error.status_code == 405 else title
        return _problem(request, title, error.status_code, detail, dict(error.headers or {}))

    def unforeseen(request: Request) -> Response:
        # This answer is made outside of RequestIds.
        headers = {REQUEST_ID_HEADER: _request_id(request)} if announce_ids else {}
        return _problem(request, ServingError.title, 500, "the request failed; the server's log names its request_id", headers)

    app.add_exception_handler(ServingError, known)
    app.add_exception_handler(HTTPException, of_http)
    app.add_middleware(Unforeseen, name=_request_id, respond=unforeseen)


def _refused(request: Request, error: ServingError) -> Response:
    more: dict[str, Any] = {}
    if isinstance(error, InvalidFields):
        more["errors"] = [FieldProblem(field=field, reason=reason) for field, reason in error.findings]
    return _problem(request, error.title, error.status, error.message, error.headers, hint=error.hint, **more)


def _problem(request: Request, title: str, status: int, detail: str, headers: dict[str, str], **more: Any) -> Response:
    more |= {"error": detail} if request.url.path.startswith(_OTHERS) else {}
    content = problem(title, title, status, detail, _request_id(request), **more).model_dump(exclude_defaults=True)
    return Response(json.dumps(content, ensure_ascii=False), status, {**headers}, PROBLEM_JSON)


def _request_id(request: Request) -> str:
    return str(getattr(request.state, "request_id", ""))
