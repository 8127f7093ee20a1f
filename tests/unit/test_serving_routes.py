import asyncio
import json
import re
import traceback
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from serving.answerer import Answered, Explained
from serving.errors import DeadlineExceeded, NotReady, Overloaded, ServingError
from serving.explaining import ExplainRequest, Explanation, HeadExplanation, Span
from serving.messages import Answer, HeadAnswer, HeadFacts, Limits, Prediction, PredictRequest, VersionFacts
from serving.promised import Promised
from serving.reading import finished_texts
from serving.routes import build_app
from serving.spent import Spent
from serving.unforeseen import Unforeseen

LIMITS = Limits(max_texts=3, max_characters=100, max_tokens=8, max_body_bytes=1000, deadline_ms=1000)
JSON = {"content-type": "application/json"}


class FakeAnswering:
    """Answers every text with the same class, or raises."""

    def __init__(self, error: Exception | None = None, is_ready: bool = True) -> None:
        self.error = error
        self.is_ready = is_ready
        self.asked: list[PredictRequest] = []
        self.clients: list[str] = []
        self.explained: list[ExplainRequest] = []

    async def predict(self, request: PredictRequest, client: str = "", promised: Promised | None = None) -> Answered:
        self.clients.append(client)
        if self.error is not None:
            raise self.error
        self.asked.append(request)
        head = HeadAnswer(**{"class": "sales"}, probability=0.75, scores={"sales": 0.75, "nurse": 0.25})
        texts = finished_texts(request, "{text}", LIMITS)
        answers = [Answer(heads={"category": head}, tokens=3, truncated=False) for _ in texts]
        return Answered(Prediction(version=7, answers=answers), Spent(0.001, 0.002, 0.003, 4, 88))

    async def explain(self, request: ExplainRequest, client: str = "") -> Explained:
        self.clients.append(client)
        self.explained.append(request)
        head = HeadExplanation(**{"class": "sales"}, probability=0.75, weights=[0.5, -0.25])
        spans = [Span(begin=0, end=5), Span(begin=6, end=9)]
        explanation = Explanation(version=7, method="occlusion", spans=spans, heads={"category": head}, tokens=4, truncated=False)
        return Explained(explanation, Spent(0.001, 0.002, 0.003, 4, 88))

    def limits(self) -> Limits:
        self.require_ready()
        return LIMITS

    def facts(self) -> VersionFacts:
        self.require_ready()
        return VersionFacts(
            version=7,
            name="production",
            heads=[HeadFacts(name="category", classes=["sales", "<nurse>"], ordered=False)],
            text_template="{text}",
            limits=LIMITS,
            encoder="tiny",
            metrics={"test": {"macro_f1": float("nan")}},
            created="2026-01-01T00:00:00+00:00",
            engine="torch",
            device="cpu",
            dtype="float32",
            batch_tokens=512,
        )

    def require_ready(self) -> None:
        if not self.is_ready:
            raise NotReady("no version is loaded yet")


async def figures() -> str:
    return "twohead_batches_total 5\n"


def call(method: str, path: str, answering: FakeAnswering | None = None, **options: Any) -> httpx.Response:
    app = build_app(answering or FakeAnswering(), figures)

    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(main())


def problem(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == response.status_code
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["type"].startswith("urn:twohead:problem:")
    return body


def test_a_client_that_is_named_is_passed_on() -> None:
    answering = FakeAnswering()
    for headers in ({}, {"x-client-id": "acme"}, {"x-client-id": "a" * 500}):
        assert call("POST", "/v1/predict", answering, json={"texts": ["a"]}, headers=headers).status_code == 200
    assert answering.clients == ["", "acme", "a" * 128]


def test_answer_and_timing() -> None:
    response = call("POST", "/v1/predict", json={"texts": ["a", "b"]})
    assert response.status_code == 200
    answer = {
        "heads": {"category": {"class": "sales", "probability": 0.75, "scores": {"sales": 0.75, "nurse": 0.25}}},
        "tokens": 3,
        "truncated": False,
    }
    assert response.json() == {"version": 7, "answers": [answer, answer]}
    assert (
        response.headers["server-timing"]
        == 'tokenize;dur=1.00, queue;dur=2.00, compute;dur=3.00, batch;desc="4", tokens;desc="88", version;desc="7"'
    )


@pytest.mark.parametrize(
    ("options", "status", "detail"),
    [
        ({"content": b"{", "headers": JSON}, 400, "body is not JSON: EOF while parsing an object at line 1 column 1"),
        ({"json": {"texts": ["a" * 2000]}}, 413, "body is 2014 bytes, but may be at most 1000"),
        ({"content": b"{}"}, 415, "content-type must be application/json"),
        ({"content": b"x", "headers": JSON | {"content-encoding": "gzip"}}, 415, "content-encoding must be identity"),
        ({"json": {"texts": ["a", " "]}}, 422, "texts.1: is empty"),
    ],
)
def test_refused_bodies(options: dict[str, Any], status: int, detail: str) -> None:
    response = call("POST", "/v1/predict", **options)
    assert response.status_code == status
    assert problem(response)["detail"] == detail


def test_a_body_without_length_is_cut_off_at_the_limit() -> None:
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 500
            yield b" " * 500

    response = call("POST", "/v1/predict", content=pieces(), headers=JSON)
    assert response.status_code == 413
    assert problem(response)["detail"] == "body is longer than 1000 bytes"
    assert sent == 1500


def test_findings_name_fields_and_repeat_nothing() -> None:
    response = call("POST", "/v1/predict", json={"texts": ["secret" * 20, " "]})
    assert problem(response)["errors"] == [
        {"field": "texts.0", "reason": "is longer than 100 characters"},
        {"field": "texts.1", "reason": "is empty"},
    ]
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("method", "path", "status", "title"),
    [
        ("GET", "/nope", 404, "not found"),
        ("GET", "/v1/predict", 405, "method not allowed"),
        ("POST", "/health/live", 405, "method not allowed"),
    ],
)
def test_unknown_paths_and_methods_are_problems(method: str, path: str, status: int, title: str) -> None:
    response = call(method, path)
    assert response.status_code == status
    assert problem(response)["title"] == title
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (Overloaded("full", 3.6), 503, "4"),
        (Overloaded("full", 0.01), 503, "1"),
        (NotReady("no version is loaded yet"), 503, "1"),
        (DeadlineExceeded("too late"), 504, None),
        (ServingError("the engine failed on text 0"), 500, None),
    ],
)
def test_serving_errors_carry_their_status(error: ServingError, status: int, retry_after: str | None) -> None:
    response = call("POST", "/v1/predict", FakeAnswering(error), json={"texts": ["a"]})
    assert response.status_code == status
    assert problem(response)["detail"] == error.message
    assert response.headers.get("retry-after") == retry_after


def test_an_unforeseen_error_tells_the_caller_nothing_but_its_id(caplog: pytest.LogCaptureFixture) -> None:
    response = call("POST", "/v1/predict", FakeAnswering(RuntimeError("secret text")), json={"texts": ["secret text"]})
    assert response.status_code == 500
    assert problem(response)["request_id"] in caplog.text
    assert "secret" not in response.text + caplog.text
    # What was raised where, all the same.
    assert "RuntimeError" in caplog.text
    assert "raise self.error" in caplog.text


async def test_an_answer_that_breaks_off_is_no_whole_one_and_is_told_without_words(caplog: pytest.LogCaptureFixture) -> None:
    async def breaks_off(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise error

    error = RuntimeError("secret text")
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    app = Unforeseen(breaks_off, lambda request: "job-17", lambda request: Response())
    with pytest.raises(ServingError, match="job-17 broke off") as caught:
        await app({"type": "http"}, None, send)  # type: ignore[arg-type]
    assert sent == ["http.response.start"]
    said = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "RuntimeError" in said
    assert "secret" not in said


@pytest.mark.parametrize(("sent", "is_kept"), [("job-17.a_b", True), ("x" * 65, False), ("a b", False), ("", False)])
def test_request_ids(sent: str, is_kept: bool) -> None:
    response = call("GET", "/nope", headers={"x-request-id": sent})
    assert (problem(response)["request_id"] == sent) == is_kept


def test_health_and_version_before_and_after_loading() -> None:
    loading = FakeAnswering(is_ready=False)
    assert call("GET", "/health/live", loading).status_code == 200
    for path in ("/health/ready", "/v1/version"):
        assert problem(call("GET", path, loading))["detail"] == "no version is loaded yet"
        assert call("GET", path).status_code == 200
    assert problem(call("POST", "/v1/predict", loading, json={"texts": ["a"]}))["status"] == 503
    facts = call("GET", "/v1/version").json()
    assert (facts["version"], facts["limits"]["max_texts"], facts["metrics"]) == (7, 3, {"test": {"macro_f1": None}})


def test_metrics_are_for_prometheus() -> None:
    response = call("GET", "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert response.text == "twohead_batches_total 5\n"


def test_the_document_names_every_status_as_problem_json() -> None:
    document = call("GET", "/openapi.json").json()
    ours = {"/v1/predict", "/v1/explain", "/v1/version", "/health/live", "/health/ready", "/metrics"}
    open_inference = {"/v2/models/{model}" + end for end in ("", "/ready", "/infer")}
    others = {"/predict", "/classify", "/v1/classifications", "/v2", "/v2/health/live", "/v2/health/ready", *open_inference}
    assert set(document["paths"]) == ours | others
    responses = document["paths"]["/v1/predict"]["post"]["responses"]
    assert set(responses) == {"200", "400", "408", "413", "415", "422", "500", "503", "504"}
    assert all(list(response["content"]) == ["application/problem+json"] for status, response in responses.items() if status != "200")


@pytest.mark.parametrize("is_ready", [True, False])
def test_the_page_needs_nothing_from_elsewhere(is_ready: bool) -> None:
    response = call("GET", "/docs", FakeAnswering(is_ready=is_ready))
    assert response.status_code == 200
    for path in ("/v1/predict", "/v1/version", "/health/live", "/health/ready", "/metrics"):
        assert f"<code>{path}</code>" in response.text
    for foreign in ("<script", "https://", "@import", "url(", "<nurse>"):
        assert foreign not in response.text
    assert ("&lt;nurse&gt;" in response.text) == is_ready
    assert "default-src 'none'" in response.headers["content-security-policy"]


@pytest.mark.parametrize("is_ready", [True, False])
def test_the_page_for_people_is_sent_again_only_if_it_changed(is_ready: bool) -> None:
    response = call("GET", "/", FakeAnswering(is_ready=is_ready))
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'sha256-")
    assert (response.headers["cache-control"], response.headers["x-content-type-options"]) == ("no-cache", "nosniff")
    tag = response.headers["etag"]
    for sent, status in ((tag, 304), (f'"other", W/{tag}', 304), ('"other"', 200)):
        again = call("GET", "/", headers={"if-none-match": sent})
        assert (again.status_code, again.headers["etag"], bool(again.content)) == (status, tag, status == 200)


def test_an_explanation() -> None:
    answering = FakeAnswering()
    headers = {"x-client-id": "acme", "x-request-deadline-ms": "200"}
    response = call("POST", "/v1/explain", answering, json={"text": "hello you", "deadline_ms": 300}, headers=headers)
    assert response.json() == {
        "version": 7,
        "method": "occlusion",
        "spans": [{"begin": 0, "end": 5}, {"begin": 6, "end": 9}],
        "heads": {"category": {"class": "sales", "probability": 0.75, "weights": [0.5, -0.25]}},
        "tokens": 4,
        "truncated": False,
    }
    assert 'version;desc="7"' in response.headers["server-timing"]
    assert (answering.explained[0].deadline_ms, answering.clients) == (200, ["acme"])
    assert call("POST", "/v1/explain", answering, json={"text": "a", "deadline_ms": 9_999}).status_code == 422
    assert call("POST", "/v1/explain", answering, json={"texts": ["a"]}).status_code == 422


@pytest.mark.parametrize(("header", "body", "expected"), [("400", None, 400), ("400", 300, 300), ("200", 300, 200), (None, 300, 300)])
def test_the_shorter_deadline_counts(header: str | None, body: int | None, expected: int) -> None:
    answering = FakeAnswering()
    headers = {"x-request-deadline-ms": header} if header else {}
    more = {"deadline_ms": body} if body else {}
    assert call("POST", "/v1/predict", answering, json={"texts": ["a"]} | more, headers=headers).status_code == 200
    assert answering.asked[0].deadline_ms == expected


@pytest.mark.parametrize(
    ("header", "field"),
    [("soon", "x-request-deadline-ms"), ("0", "x-request-deadline-ms"), ("9" * 5_000, "x-request-deadline-ms"), ("1001", "deadline_ms")],
)
def test_a_deadline_that_is_none_is_said(header: str, field: str) -> None:
    response = call("POST", "/v1/predict", json={"texts": ["a"]}, headers={"x-request-deadline-ms": header})
    assert response.status_code == 422
    assert [finding["field"] for finding in problem(response)["errors"]] == [field]


def test_the_examples_of_the_document_are_requests_that_work() -> None:
    document = call("GET", "/openapi.json").json()
    tried = 0
    for path, operations in document["paths"].items():
        body = operations.get("post", {}).get("requestBody")
        for example in body["content"]["application/json"]["schema"]["examples"] if body else ():
            answer = call("POST", path.format(model="production", version="7"), content=json.dumps(example), headers=JSON)
            assert answer.status_code == 200, path
            tried += 1
    assert tried == 6


def test_all_that_the_document_refers_to_is_in_it() -> None:
    text = call("GET", "/openapi.json").text
    document = json.loads(text)
    for reference in set(re.findall(r'"\$ref":"#/([^"]+)"', text)):
        found = document
        for part in reference.split("/"):
            found = found[part]
    assert "$defs" not in text
    assert "HTTPValidationError" not in str(document["paths"])
