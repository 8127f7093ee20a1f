"""Requests that are wrong, too large, too deep or strange, at the routes themselves, as a client of every dialect would send them."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from serving.answerer import Answered
from serving.errors import NotReady
from serving.messages import Answer, HeadAnswer, HeadFacts, Limits, Prediction, PredictRequest, VersionFacts
from serving.promised import Promised
from serving.reading import finished_texts
from serving.routes import build_app
from serving.spent import Spent

LIMITS = Limits(max_texts=32, max_characters=20_000, max_tokens=64, max_body_bytes=2_097_152, deadline_ms=1000)
CLASSES = ["sales", "nurse"]
JSON = {"content-type": "application/json"}
SECRET = "Maria Muster, born 1.1.1980"
# Path, and a body about a text.
ASKED: dict[str, Callable[[Any], Any]] = {
    "/v1/predict": lambda text: {"texts": [text]},
    "/predict": lambda text: {"inputs": text},
    "/classify": lambda text: {"input": text, "model": "category"},
    "/v1/classifications": lambda text: {"input": text},
    "/v2/models/twohead/infer": lambda text: {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}]},
}


class Fake:
    """Answers every text alike, after the checks that the real one makes."""

    def __init__(self, *, is_ready: bool = True, error: Exception | None = None) -> None:
        self.is_ready, self.error = is_ready, error

    async def predict(self, request: PredictRequest, client: str = "", promised: Promised | None = None) -> Answered:
        texts = finished_texts(request, "{text}", LIMITS)
        if self.error is not None:
            raise self.error
        head = HeadAnswer(**{"class": "nurse"}, probability=0.75, scores={"sales": 0.25, "nurse": 0.75})
        answers = [Answer(heads={"category": head}, tokens=3, truncated=False) for _ in texts]
        return Answered(Prediction(version=7, answers=answers), Spent(0.001, 0.002, 0.003, 4, 88))

    def limits(self) -> Limits:
        return LIMITS

    def facts(self) -> VersionFacts:
        return VersionFacts(
            version=7, name="production", heads=[HeadFacts(name="category", classes=CLASSES, ordered=False)], text_template="{text}",
            limits=LIMITS, encoder="tiny", metrics={}, created="now", engine="torch", device="cpu", dtype="float32", batch_tokens=512,
        )  # fmt: skip

    def require_ready(self) -> None:
        if not self.is_ready:
            raise NotReady("no version is loaded yet")


async def figures() -> str:
    return ""


def call(method: str, path: str, answering: Fake | None = None, **options: Any) -> httpx.Response:
    app = build_app(answering or Fake(), figures)  # type: ignore[arg-type]

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(main())


def infer(**changes: Any) -> httpx.Response:
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}
    return call("POST", "/v2/models/production/infer", json={"inputs": [tensor | changes]})


@pytest.mark.parametrize("path", sorted(ASKED))
def test_every_surface_answers_a_good_request(path: str) -> None:
    assert call("POST", path, json=ASKED[path]("nurse")).status_code == 200


def test_e1_the_open_inference_surface_tells_what_it_is() -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/production/ready", "/v2", "/v2/models/production"):
        assert call("GET", path).status_code == 200
    told = call("GET", "/v2/models/production").json()
    assert (told["name"], told["versions"], [one["name"] for one in told["inputs"]]) == ("production", ["7"], ["text"])
    assert [one["name"] for one in told["outputs"]] == ["category", "category.scores"]


def test_e2_what_is_not_ready_says_so() -> None:
    for path in ("/v2/health/ready", "/v2/models/production/ready", "/health/ready"):
        assert call("GET", path, Fake(is_ready=False)).status_code == 503


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/production/versions/8", "/v2/models/..%2fetc/ready"])
def test_e3_unknown_models_are_404_in_both_sides_words(path: str) -> None:
    response = call("GET", path)
    assert response.status_code == 404
    assert response.json()["error"] == response.json()["detail"]


def test_e4_an_id_comes_back() -> None:
    body = ASKED["/v2/models/twohead/infer"]("a") | {"id": "42"}
    assert call("POST", "/v2/models/twohead/infer", json=body).json()["id"] == "42"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"datatype": "FP32"}, "inputs.0.datatype"),
        ({"shape": [3]}, "inputs.0.shape"),
        ({"shape": [-2]}, "inputs.0.shape"),
        ({"shape": []}, "inputs.0.shape"),
        ({"shape": [10**30]}, "inputs.0.shape"),
        ({"data": None}, "inputs.0.data"),
        ({"name": "other"}, "inputs.0.name"),
    ],
)
def test_e5_a_tensor_that_does_not_fit_is_refused_by_its_field(changes: dict[str, Any], field: str) -> None:
    response = infer(**changes)
    # The native surface's status, as every body that breaks its schema.
    assert response.status_code == 422
    assert field in response.json()["error"]


@pytest.mark.parametrize("path", sorted(ASKED))
def test_e6_a_body_over_the_limit_is_read_no_further(path: str) -> None:
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65_536
            yield b" " * 65_536

    assert call("POST", path, content=pieces(), headers=JSON).status_code == 413
    assert sent <= LIMITS.max_body_bytes + 65_536
    declared = call("POST", path, content=b"{}", headers=JSON | {"content-length": str(LIMITS.max_body_bytes + 1)})
    assert declared.status_code == 413


@pytest.mark.parametrize("path", sorted(ASKED))
def test_e20_a_body_that_comes_a_byte_at_a_time_is_given_up(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    monkeypatch.setattr(Fake, "limits", lambda _: LIMITS.model_copy(update={"receipt_ms": 50}))
    response = call("POST", path, content=pieces(), headers=JSON)
    assert (response.status_code, response.json()["detail"]) == (408, "body did not come within 50 ms")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip", "GZIP"])
def test_e7_a_compressed_body_is_not_unpacked(encoding: str) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    assert call("POST", "/v1/predict", content=bomb, headers=JSON | {"content-encoding": encoding}).status_code == 415


@pytest.mark.parametrize("path", sorted(ASKED))
@pytest.mark.parametrize("depth", [101, 100_000])
def test_e8_a_body_that_is_nested_deeply_is_refused(path: str, depth: int) -> None:
    for content in ("[" * depth + "]" * depth, '{"texts": ' + "[" * depth + "]" * depth + "}", '{"a":' * depth + "1" + "}" * depth):
        assert call("POST", path, content=content, headers=JSON).status_code in (400, 422)


@pytest.mark.parametrize(
    "content", [b'{"texts": ["\xff\xfe"]}', b'{"texts": ["\xed\xa0\x80"]}', b"\xff\xfe{\x00}\x00", b'{"texts": ["\\ud800"]}']
)
def test_e10_what_is_not_utf_8_is_400(content: bytes) -> None:
    response = call("POST", "/v1/predict", content=content, headers=JSON)
    assert response.status_code == 400
    assert "not JSON" in response.json()["detail"]


@pytest.mark.parametrize("path", sorted(ASKED))
def test_e11_a_nul_is_a_character_as_others_and_reaches_no_log(path: str, caplog: pytest.LogCaptureFixture) -> None:
    assert call("POST", path, json=ASKED[path]("a\u0000b")).status_code == 200
    assert call("POST", path, content=json.dumps(ASKED[path]("a")).encode().replace(b'"a"', b'"\x00"'), headers=JSON).status_code == 400
    assert "\x00" not in caplog.text


@pytest.mark.parametrize("path", sorted(ASKED))
def test_e14_a_text_of_a_million_characters_is_refused_before_it_is_read(path: str) -> None:
    response = call("POST", path, json=ASKED[path]("x" * 1_000_000))
    assert response.status_code == 422
    assert "20000 characters" in response.text.replace(",", "")
    assert "xxx" not in response.text


def test_e15_more_texts_than_allowed_are_refused() -> None:
    response = call("POST", "/v1/predict", json={"texts": ["a"] * 33})
    assert (response.status_code, "32" in response.json()["detail"]) == (422, True)


@pytest.mark.parametrize("body", [{"texts": []}, {"texts": None}, {}, {"texts": [""], "examples": []}])
def test_e16_nothing_is_refused(body: dict[str, Any]) -> None:
    assert call("POST", "/v1/predict", json=body).status_code == 422


def test_e21_methods_and_types() -> None:
    wrong = call("DELETE", "/v1/predict")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert call("POST", "/v1/predict", content=b"{}", headers={"content-type": kind}).status_code == 415


@pytest.mark.parametrize("path", sorted(ASKED))
@pytest.mark.parametrize("text", [{"name": SECRET}, 3.5, [[SECRET]], None])
def test_e22_what_was_sent_is_in_no_refusal(path: str, text: Any) -> None:
    response = call("POST", path, json=ASKED[path](text) | {SECRET: SECRET})
    assert 400 <= response.status_code < 500
    assert "Muster" not in response.text
    assert '"input":' not in response.text


@pytest.mark.parametrize("path", sorted(ASKED))
def test_e23_what_breaks_inside_is_told_by_its_id_alone(path: str, caplog: pytest.LogCaptureFixture) -> None:
    # Nothing is raised to whoever runs the application, who would log it with its words.
    response = call("POST", path, Fake(error=ValueError(f"cannot read {SECRET} at /srv/app.py")), json=ASKED[path](SECRET))
    assert response.status_code == 500
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert response.json()["request_id"] in caplog.text
    for said in (response.text, caplog.text):
        assert "Muster" not in said
        assert "/srv" not in said
        assert "Traceback" not in said
