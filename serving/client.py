"""The Python door to a served version: `Client` and, for asyncio, `AsyncClient`.

    with Client("http://127.0.0.1:8000") as client:
        for answer in client.predict(["Nurse for our intensive care unit"]).answers:
            print(answer.heads["category"].class_)

Asking twice does no harm, so a request is sent again when the server is full or was not reached; how long to wait is the
server's word (Retry-After). It knows no Ray and needs none.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from serving.errors import AnswerError
from serving.explaining import Explanation
from serving.messages import Prediction, Problem, VersionFacts

DEFAULT_URL = "http://127.0.0.1:8000"
# Waits between attempts when the server names none: doubled each time, up to the last.
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 5.0
_RETRIED = (502, 503)

MessageT = TypeVar("MessageT", bound=BaseModel)


class _Attempts:
    """When to ask again, and when to give up."""

    def __init__(self, retries: int, timeout_s: float) -> None:
        self._left = retries
        self._wait_s = _FIRST_WAIT_S
        self._deadline = time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        """Time that is left for the next attempt."""
        return max(self._deadline - time.monotonic(), 0.001)

    def after_response(self, response: httpx.Response) -> float | None:
        """Return the seconds to wait before asking again; None takes this response."""
        if response.status_code not in _RETRIED:
            return None
        asked = response.headers.get("retry-after", "")
        return self._next(float(asked) if asked.isdigit() else None)

    def after_failure(self, error: httpx.TransportError) -> float | None:
        """Return the seconds to wait before asking again; None gives up."""
        return None if isinstance(error, httpx.TimeoutException) else self._next(None)

    def _next(self, asked_s: float | None) -> float | None:
        # Callers refused together should not come back together.
        wait_s = (asked_s if asked_s is not None else self._wait_s) * random.uniform(1.0, 1.25)  # noqa: S311  # no secret
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
        if self._left <= 0 or time.monotonic() + wait_s > self._deadline:
            return None
        self._left -= 1
        return wait_s


class Client:
    """Asks a served version.

    Args:
        url: Where it is.
        timeout_s: For one request, waits and retries included.
        retries: How often a request is sent again after 502, 503 or a broken connection.
        transport: In place of the network, for tests.
    """

    def __init__(
        self, url: str = DEFAULT_URL, timeout_s: float = 60.0, retries: int = 5, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._url, self._timeout_s, self._retries = url, timeout_s, retries
        self._http = httpx.Client(base_url=url, transport=transport, trust_env=not is_on_this_machine(url))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(
        self, texts: Sequence[str] | None = None, *, examples: Sequence[Mapping[str, str]] | None = None, deadline_ms: int | None = None
    ) -> Prediction:
        """Ask about finished texts, or about examples whose fields the version's template joins.

        Args:
            texts: Finished texts.
            examples: Instead of texts: fields by name.
            deadline_ms: Answer within this time or not at all.

        Raises:
            AnswerError: The server refused, failed or was not reached.
        """
        return _parsed(Prediction, self._send("POST", "/v1/predict", _body(texts, examples, deadline_ms)))

    def explain(self, text: str, *, deadline_ms: int | None = None) -> Explanation:
        """Ask which words the answers about a text come from.

        Args:
            text: A finished text.
            deadline_ms: Answer within this time or not at all.

        Raises:
            AnswerError: See `predict`.
        """
        return _parsed(Explanation, self._send("POST", "/v1/explain", _explain_body(text, deadline_ms)))

    def version(self) -> VersionFacts:
        """Ask which version answers, with its heads and limits.

        Raises:
            AnswerError: See `predict`.
        """
        return _parsed(VersionFacts, self._send("GET", "/v1/version", None))

    def metrics(self) -> str:
        """Return the figures of all replicas, as Prometheus reads them.

        Raises:
            AnswerError: See `predict`.
        """
        return _accepted(self._send("GET", "/metrics", None)).text

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        attempts = _Attempts(self._retries, self._timeout_s)
        while True:
            try:
                response = self._http.request(method, path, json=body, timeout=attempts.left_s)
            except httpx.TransportError as error:
                wait_s = attempts.after_failure(error)
                if wait_s is None:
                    raise _unreachable(self._url, error) from error
            else:
                wait_s = attempts.after_response(response)
                if wait_s is None:
                    return _accepted(response)
            time.sleep(wait_s)


class AsyncClient:
    """Asks a served version from asyncio; see `Client`."""

    def __init__(
        self, url: str = DEFAULT_URL, timeout_s: float = 60.0, retries: int = 5, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._url, self._timeout_s, self._retries = url, timeout_s, retries
        # httpx would keep at most 100 connections; how many requests run at once is the caller's choice.
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.AsyncClient(base_url=url, transport=transport, limits=limits, trust_env=not is_on_this_machine(url))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(
        self, texts: Sequence[str] | None = None, *, examples: Sequence[Mapping[str, str]] | None = None, deadline_ms: int | None = None
    ) -> Prediction:
        """Ask about texts or examples; see `Client.predict`."""
        return _parsed(Prediction, await self._send("POST", "/v1/predict", _body(texts, examples, deadline_ms)))

    async def explain(self, text: str, *, deadline_ms: int | None = None) -> Explanation:
        """Ask which words the answers come from; see `Client.explain`."""
        return _parsed(Explanation, await self._send("POST", "/v1/explain", _explain_body(text, deadline_ms)))

    async def version(self) -> VersionFacts:
        """Ask which version answers; see `Client.version`."""
        return _parsed(VersionFacts, await self._send("GET", "/v1/version", None))

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        attempts = _Attempts(self._retries, self._timeout_s)
        while True:
            try:
                response = await self._http.request(method, path, json=body, timeout=attempts.left_s)
            except httpx.TransportError as error:
                wait_s = attempts.after_failure(error)
                if wait_s is None:
                    raise _unreachable(self._url, error) from error
            else:
                wait_s = attempts.after_response(response)
                if wait_s is None:
                    return _accepted(response)
            await asyncio.sleep(wait_s)


def is_on_this_machine(url: str) -> bool:
    """Tell whether a URL names this machine, where no proxy of the environment leads."""
    return httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")


def _body(texts: Sequence[str] | None, examples: Sequence[Mapping[str, str]] | None, deadline_ms: int | None) -> dict[str, Any]:
    if isinstance(texts, str):
        raise AnswerError("texts is one string, but must be a list of strings", hint='predict(["…"])')
    body = {
        "texts": None if texts is None else list(texts),
        "examples": None if examples is None else [dict(example) for example in examples],
        "deadline_ms": deadline_ms,
    }
    return {key: value for key, value in body.items() if value is not None}


def _explain_body(text: str, deadline_ms: int | None) -> dict[str, Any]:
    return {"text": text} | ({} if deadline_ms is None else {"deadline_ms": deadline_ms})


def _parsed(kind: type[MessageT], response: httpx.Response) -> MessageT:
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise AnswerError(
            f"{response.url}: the answer is not a {kind.__name__} ({error.error_count()} findings)",
            response.status_code,
            "is this a twohead server of this client's version?",
        ) from None


def _accepted(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    try:
        told = Problem.model_validate_json(response.content)
    except ValidationError:
        raise AnswerError(f"{response.url}: {response.status_code} {response.reason_phrase}", response.status_code) from None
    findings = "; ".join(f"{finding.field or 'body'}: {finding.reason}" for finding in told.errors)
    raise AnswerError(f"{told.status} {told.title}: {findings or told.detail} (request {told.request_id})", told.status, told.hint)


def _unreachable(url: str, error: httpx.TransportError) -> AnswerError:
    reason = "no answer in time" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
    return AnswerError(f"{url}: {reason}", hint="is it running? python -m serving run")
