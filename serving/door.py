"""What every request about texts goes through, whatever words it is written in: body, client, deadline, timing.

Bodies are read here and not by FastAPI: too large ones are refused while they arrive, and no error repeats what was sent. It does not know
what a body says.
"""

import asyncio
from typing import Any, Protocol

from fastapi import Request, Response
from pydantic import BaseModel

from serving.answerer import Answered, Explained
from serving.errors import BadRequest, InvalidFields
from serving.explaining import ExplainRequest
from serving.keys.key import KEY_CLIENT
from serving.messages import Limits, PredictRequest, Problem, VersionFacts
from serving.promised import Promised
from serving.reading import check_limits

# Who names clients is the proxy in front; a caller that names itself anew each time only gets what nobody known gets.
CLIENT_ID_HEADER = "x-client-id"
DEADLINE_HEADER = "x-request-deadline-ms"
_MOST_CLIENT_ID = 128
_MOST_DIGITS = 18
# Where the API's document keeps what its parts refer to.
COMPONENTS = "components/schemas"


class Answering(Protocol):
    """What the routes need; `serving.answerer.Answerer` is one."""

    async def predict(self, request: PredictRequest, client: str = "", promised: Promised | None = None) -> Answered:
        """Answer a request of a client."""
        ...

    async def explain(self, request: ExplainRequest, client: str = "") -> Explained:
        """Explain a client's answer."""
        ...

    def limits(self) -> Limits:
        """Tell what a request may ask for."""
        ...

    def facts(self) -> VersionFacts:
        """Describe the version that answers."""
        ...

    def require_ready(self) -> None:
        """Raise `NotReady` while nothing can be answered."""
        ...


async def read_body(request: Request, limits: Limits) -> bytes:
    """Read a JSON body.

    Raises:
        BadRequest: 415 for another type, 413 for one that is too large, 408 for one that comes too slowly.
    """
    _require_json(request)
    declared = _whole_number(request.headers.get("content-length", ""))
    if declared is not None and declared > limits.max_body_bytes:
        raise BadRequest(f"body is {declared} bytes, but may be at most {limits.max_body_bytes}", 413)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.receipt_ms / 1000):
            async for piece in request.stream():
                body += piece
                if len(body) > limits.max_body_bytes:
                    raise BadRequest(f"body is longer than {limits.max_body_bytes} bytes", 413)
    except TimeoutError:
        raise BadRequest(f"body did not come within {limits.receipt_ms} ms", 408) from None
    return bytes(body)


async def answer(answering: Answering, request: Request, asked: PredictRequest, promised: Promised | None = None) -> Answered:
    """Answer what a request asks, within its deadline and in its client's turn, by a version that keeps to what was promised.

    Raises:
        InvalidFields: 422; see `check_limits` and `deadline_ms`.
    """
    shorter = deadline_ms(request, asked.deadline_ms)
    if shorter != asked.deadline_ms:
        asked = asked.model_copy(update={"deadline_ms": shorter})
    check_limits(asked, answering.limits())
    return await answering.predict(asked, client_id(request), promised)


def client_id(request: Request) -> str:
    """Return who asks: whose key it is, where keys are asked for, else what the caller says; "" where nobody does."""
    key = getattr(request.state, "key_id", "")
    return f"{KEY_CLIENT}{key}" if key else request.headers.get(CLIENT_ID_HEADER, "")[:_MOST_CLIENT_ID]


def deadline_ms(request: Request, asked: int | None) -> int | None:
    """Return the shorter one of the deadlines in a request's body and header.

    Raises:
        InvalidFields: 422; the header is no whole number.
    """
    header = request.headers.get(DEADLINE_HEADER)
    if header is None:
        return asked
    found = _whole_number(header)
    if not found:
        raise InvalidFields([(DEADLINE_HEADER, "must be a whole number of milliseconds, at least 1")])
    return found if asked is None else min(found, asked)


def reply(answered: Answered | Explained, content: str) -> Response:
    """Send an answer, and tell where its time went."""
    spent = answered.spent
    told = (
        f"tokenize;dur={1000 * spent.tokenize_s:.2f}, queue;dur={1000 * spent.queue_s:.2f}, compute;dur={1000 * spent.compute_s:.2f}, "
        f'batch;desc="{spent.batch_texts}", tokens;desc="{spent.batch_tokens}", version;desc="{answered.version}"'
    )
    return Response(content, media_type="application/json", headers={"server-timing": told})


def _whole_number(header: str) -> int | None:
    # Python refuses to read thousands of digits, and reads those of other scripts.
    return int(header) if header.isascii() and header.isdigit() and len(header) <= _MOST_DIGITS else None


def _require_json(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise BadRequest("content-type must be application/json", 415)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise BadRequest("content-encoding must be identity", 415)


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a body and the headers that count in the API's document, which FastAPI does not read."""
    schema = model.model_json_schema(ref_template=f"#/{COMPONENTS}/{{model}}")
    headers = [{"name": name, "in": "header", "schema": kind, "description": what} for name, kind, what in _HEADERS]
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}, "parameters": headers}


_HEADERS: tuple[tuple[str, dict[str, Any], str], ...] = (
    (DEADLINE_HEADER, {"type": "integer", "minimum": 1}, "Answer within so many milliseconds or not at all (504)."),
    (CLIENT_ID_HEADER, {"type": "string"}, "Who asks: requests of one client share one turn."),
)
_WHEN = {
    400: "The body is not JSON.",
    404: "There is no such model, version or head.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "The body breaks its schema or a limit; `errors` lists the first twenty findings, or their number where it is over a hundred.",
    500: "The server failed.",
    503: "Nothing can be answered now; `Retry-After` says when it is worth asking again.",
    504: "The deadline passed before the answer was there.",
}
ASKING = (400, 408, 413, 415, 422, 500, 503, 504)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe errors in the API's document."""
    return {status: {"description": _WHEN[status], "model": Problem} for status in statuses}
