"""The Python door to a served version: `Client` and, for asyncio, `AsyncClient`.

    with Client("http://127.0.0.1:8000") as client:
        for answer in client.predict(["Nurse for our intensive care unit"]).answers:
            print(answer.heads["category"].class_)

Asking twice does no harm, so a request is sent again when the server is full or was not reached, to another address where there is one;
how long to wait is the server's word (Retry-After). It knows no Ray and needs none.
"""

import asyncio
import ipaddress
import os
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from serving import lost_hosts
from serving.errors import AnswerError
from serving.explaining import Explanation
from serving.messages import Prediction, Problem, VersionFacts
from serving.retrying import Attempts, Shared

DEFAULT_URL = "http://127.0.0.1:8000"
# A machine that lost its power says nothing at all. The second call to it goes out after 1 s.
CONNECT_S = 3.0
# Where commands find their key: on a command line it would be seen by everybody on the machine.
KEY_VARIABLE = "TWOHEAD_KEY"
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout)

MessageT = TypeVar("MessageT", bound=BaseModel)


class Client:
    """Asks a served version.

    Args:
        url: Where it is; of several addresses that lead to the same, one that failed is not asked first again before it has answered.
        timeout_s: For one request, waits and retries included.
        retries: How often a request is sent again after 502, 503 or a broken connection; of all requests, one in ten.
        transport: In place of the network, for tests.
        key: Where keys are asked for; else that of the environment variable TWOHEAD_KEY, if it is set.
    """

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        timeout_s: float = 60.0,
        retries: int = 5,
        transport: httpx.BaseTransport | None = None,
        key: str | None = None,
    ) -> None:
        self._urls, self._timeout_s, self._retries = _urls(url), timeout_s, retries
        self._shared = Shared(len(self._urls))
        headers = key_headers(key)
        self._http = [
            httpx.Client(
                base_url=one,
                headers=headers,
                transport=transport or lost_hosts.transport(one),
                trust_env=not is_on_this_machine(one),
            )
            for one in self._urls
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        for http in self._http:
            http.close()

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
        attempts = Attempts(self._retries, self._timeout_s, self._shared)
        while True:
            asked = attempts.address
            try:
                response = self._http[asked].request(method, path, json=body, timeout=_timeout(attempts.share_s))
            except httpx.TransportError as error:
                wait_s = attempts.after_failure(is_sent=not isinstance(error, _UNSENT), is_late=lost_hosts.is_late(error))
                if wait_s is None:
                    raise _unreachable(self._urls[asked], error) from error
            else:
                wait_s = attempts.after_response(response.status_code, response.headers.get("retry-after", ""))
                if wait_s is None:
                    return _accepted(response)
            time.sleep(wait_s)


class AsyncClient:
    """Asks a served version from asyncio; see `Client`."""

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        timeout_s: float = 60.0,
        retries: int = 5,
        transport: httpx.AsyncBaseTransport | None = None,
        key: str | None = None,
    ) -> None:
        self._urls, self._timeout_s, self._retries = _urls(url), timeout_s, retries
        self._shared = Shared(len(self._urls))
        # httpx would keep at most 100 connections; how many requests run at once is the caller's choice.
        limits = httpx.Limits(max_connections=None)
        self._http = [
            httpx.AsyncClient(
                base_url=one,
                headers=key_headers(key),
                transport=transport or lost_hosts.async_transport(one, limits),
                limits=limits,
                trust_env=not is_on_this_machine(one),
            )
            for one in self._urls
        ]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        for http in self._http:
            await http.aclose()

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
        attempts = Attempts(self._retries, self._timeout_s, self._shared)
        while True:
            asked = attempts.address
            try:
                response = await self._http[asked].request(method, path, json=body, timeout=_timeout(attempts.share_s))
            except httpx.TransportError as error:
                wait_s = attempts.after_failure(is_sent=not isinstance(error, _UNSENT), is_late=lost_hosts.is_late(error))
                if wait_s is None:
                    raise _unreachable(self._urls[asked], error) from error
            else:
                wait_s = attempts.after_response(response.status_code, response.headers.get("retry-after", ""))
                if wait_s is None:
                    return _accepted(response)
            await asyncio.sleep(wait_s)


def _urls(url: str | Sequence[str]) -> list[str]:
    urls = [url] if isinstance(url, str) else list(url)
    if not urls:
        raise AnswerError("url is an empty list, but must have an address", hint='Client("http://127.0.0.1:8000")')
    return urls


def key_headers(key: str | None = None) -> dict[str, str]:
    """Return what tells the server a key: this one, or that of the environment variable TWOHEAD_KEY."""
    held = key or os.environ.get(KEY_VARIABLE, "")
    return {"authorization": f"Bearer {held}"} if held else {}


def is_on_this_machine(url: str) -> bool:
    """Tell whether a URL names this machine, where no proxy of the environment leads: a loopback address, or "every address"."""
    host = httpx.URL(url).host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified


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


def _timeout(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(seconds, CONNECT_S))


def _unreachable(url: str, error: httpx.TransportError) -> AnswerError:
    reason = "no answer in time" if lost_hosts.is_late(error) else str(error) or type(error).__name__
    return AnswerError(f"{url}: {reason}", hint="is it running? python -m serving run")
