"""Other servers' words: what their clients send is read, and what they expect comes back."""

import asyncio
from typing import Any

import httpx
import pytest

from serving.answerer import Answered
from serving.door import Answering
from serving.messages import Answer, HeadAnswer, HeadFacts, Limits, Prediction, PredictRequest, VersionFacts
from serving.promised import Promised
from serving.reading import finished_texts
from serving.routes import build_app
from serving.spent import Spent

LIMITS = Limits(max_texts=3, max_characters=20, max_tokens=8, max_body_bytes=1000, deadline_ms=1000)
HEADS = [
    HeadFacts(name="category", classes=["sales", "nurse"], ordered=False),
    HeadFacts(name="education", classes=["none", "school", "master"], ordered=True, threshold=0.9),
]


class TwoHeads:
    """Answers every text alike; the head `education` abstains. `bad` texts have an error."""

    def __init__(self, heads: int = 2) -> None:
        self.heads = HEADS[:heads]
        self.asked: list[tuple[list[str], int | None, str]] = []
        self.promised: list[Promised | None] = []

    async def predict(self, request: PredictRequest, client: str = "", promised: Promised | None = None) -> Answered:
        texts = finished_texts(request, "{text}", LIMITS)
        self.asked.append((texts, request.deadline_ms, client))
        self.promised.append(promised)
        told = {
            "category": HeadAnswer(**{"class": "nurse"}, probability=0.75, scores={"sales": 0.25, "nurse": 0.75}),
            "education": HeadAnswer(**{"class": None}, probability=0.5, scores={"none": 0.2, "school": 0.3, "master": 0.5}, abstained=True),
        }
        failed = Answer(heads={}, tokens=3, truncated=False, error="the engine failed on text 1")
        good = Answer(heads={head.name: told[head.name] for head in self.heads}, tokens=3, truncated=False)
        return Answered(
            Prediction(version=7, answers=[failed if text == "bad" else good for text in texts]), Spent(0.001, 0.002, 0.003, 4, 88)
        )

    def limits(self) -> Limits:
        return LIMITS

    def facts(self) -> VersionFacts:
        return VersionFacts(
            version=7, name="production", heads=self.heads, text_template="{text}", limits=LIMITS, encoder="tiny", metrics={},
            created="now", engine="torch", device="cpu", dtype="float32", batch_tokens=512,
        )  # fmt: skip

    def require_ready(self) -> None:
        return


async def figures() -> str:
    return ""


def call(method: str, path: str, answering: Answering | None = None, **options: Any) -> httpx.Response:
    app = build_app(answering or TwoHeads(), figures)

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(main())


RANKED = [{"label": "nurse", "score": 0.75}, {"label": "sales", "score": 0.25}]


@pytest.mark.parametrize(
    ("inputs", "texts", "expected"),
    [("a", ["a"], RANKED), (["a", "b"], ["a", "b"], [RANKED, RANKED]), ([["a"], ["b"]], ["a", "b"], [RANKED, RANKED])],
)
def test_text_embeddings_inference(inputs: Any, texts: list[str], expected: Any) -> None:
    answering = TwoHeads()
    response = call("POST", "/predict?head=category", answering, json={"inputs": inputs, "raw_scores": False})
    assert (response.status_code, response.json()) == (200, expected)
    assert answering.asked == [(texts, None, "")]
    assert 'version;desc="7"' in response.headers["server-timing"]


def test_vllm() -> None:
    body = call("POST", "/classify", json={"model": "education", "input": ["a", "b"]}).json()
    told = {"label": None, "probs": [0.2, 0.3, 0.5], "num_classes": 3}
    assert body["data"] == [{"index": 0} | told, {"index": 1} | told]
    assert (body["object"], body["model"], body["usage"]["prompt_tokens"]) == ("list", "education", 6)
    assert call("POST", "/classify", json={"model": "category", "input": "a"}).json()["data"][0]["label"] == "nurse"


def test_mistral_tells_every_head() -> None:
    body = call("POST", "/v1/classifications", json={"model": "jobs", "input": ["a"]}).json()
    scores = {"category": {"scores": {"sales": 0.25, "nurse": 0.75}}, "education": {"scores": {"none": 0.2, "school": 0.3, "master": 0.5}}}
    assert (body["model"], body["results"]) == ("jobs", [scores])


def tensor(*texts: str, **changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)} | changes]}


@pytest.mark.parametrize("path", ["/v2/models/production", "/v2/models/twohead", "/v2/models/production/versions/7"])
def test_open_inference(path: str) -> None:
    name = path.split("/")[3]
    body = call("POST", f"{path}/infer", json=tensor("a", "b") | {"id": "one"}).json()
    assert {key: body[key] for key in ("model_name", "model_version", "id")} == {"model_name": name, "model_version": "7", "id": "one"}
    assert body["outputs"] == [
        {"name": "category", "shape": [2], "datatype": "BYTES", "data": ["nurse", "nurse"]},
        {"name": "education", "shape": [2], "datatype": "BYTES", "data": ["", ""]},
    ]
    wanted = {"outputs": [{"name": "education.scores"}, {"name": "category"}]}
    outputs = call("POST", f"{path}/infer", json=tensor("a", "b", shape=[2, 1]) | wanted).json()["outputs"]
    assert outputs[0] == {"name": "education.scores", "shape": [2, 3], "datatype": "FP32", "data": [0.2, 0.3, 0.5] * 2}
    assert [output["name"] for output in outputs] == ["education.scores", "category"]
    described = call("GET", path).json()
    assert (described["name"], described["versions"], described["inputs"][0]["datatype"]) == (name, ["7"], "BYTES")
    assert {output["name"] for output in described["outputs"]} == {"category", "category.scores", "education", "education.scores"}
    assert call("GET", f"{path}/ready").json() == {"name": name, "ready": True}


def test_open_inference_tells_of_the_server() -> None:
    assert call("GET", "/v2/health/live").json() == {"live": True}
    assert call("GET", "/v2/health/ready").json() == {"ready": True}
    assert call("GET", "/v2").json()["name"] == "twohead"


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/predict", {"inputs": "a"}, 404, None),
        ("/predict?head=mood", {"inputs": "a"}, 404, None),
        ("/predict?head=category", {"inputs": []}, 422, "inputs"),
        ("/predict?head=category", {"inputs": [["a", "b"]]}, 422, "inputs.0"),
        ("/predict?head=category", {"inputs": "a", "raw_scores": True}, 422, "raw_scores"),
        ("/predict?head=category", {"inputs": "a", "truncate": False}, 422, "truncate"),
        ("/classify", {"model": "mood", "input": "a"}, 404, None),
        ("/classify", {"model": "category", "input": ["a"] * 4}, 422, "texts"),
        ("/classify", {"model": "category", "input": ["a" * 30]}, 422, "texts.0"),
        ("/v1/classifications", {"model": "x"}, 422, "input"),
        ("/v2/models/other/infer", tensor("a"), 404, None),
        ("/v2/models/production/versions/6/infer", tensor("a"), 404, None),
        ("/v2/models/production/infer", tensor("a", name="ids"), 422, "inputs.0.name"),
        ("/v2/models/production/infer", tensor("a", shape=[2]), 422, "inputs.0.shape"),
        ("/v2/models/production/infer", tensor("a", datatype="FP32"), 422, "inputs.0.datatype"),
        ("/v2/models/production/infer", tensor("a", shape=[1, 1, 1]), 422, "inputs.0.shape"),
        ("/v2/models/production/infer", tensor("a") | {"outputs": [{"name": "mood"}]}, 422, "outputs.0.name"),
        ("/v2/models/production/infer", tensor("a") | {"outputs": [{"name": "category"}] * 2}, 422, "outputs.1.name"),
    ],
)
def test_what_is_not_offered_is_said_in_words_both_sides_know(path: str, body: dict[str, Any], status: int, field: str | None) -> None:
    response = call("POST", path, json=body)
    told = response.json()
    assert (response.status_code, told["status"]) == (status, status)
    assert told["error"] == told["detail"]
    assert "mood" not in response.text
    if field:
        assert field in [finding["field"] for finding in told["errors"]]


@pytest.mark.parametrize(("count", "field"), [(1_000, "outputs.1.name"), (100_000, "outputs")])
def test_one_request_does_not_have_an_output_written_out_very_often(count: int, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TwoHeads, "limits", lambda _: LIMITS.model_copy(update={"max_body_bytes": 4_000_000}))
    answering = TwoHeads()
    response = call("POST", "/v2/models/production/infer", answering, json=tensor("a") | {"outputs": [{"name": "category.scores"}] * count})
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, field)
    assert answering.asked == []


@pytest.mark.parametrize("wrong", [[], ["a", "b"]])
def test_inputs_are_counted_before_anything_is_said_of_each(wrong: list[str]) -> None:
    response = call("POST", "/predict?head=category", json={"inputs": [wrong] * 4})
    assert (response.status_code, response.json()["detail"]) == (422, "texts: has 4 entries, but at most 3 are allowed")


def test_a_version_with_one_head_needs_no_name_of_it() -> None:
    assert call("POST", "/predict", TwoHeads(1), json={"inputs": "a"}).json() == RANKED
    assert call("POST", "/classify", TwoHeads(1), json={"input": "a"}).json()["model"] == "category"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict?head=category", {"inputs": ["a", "bad"]}),
        ("/classify", {"model": "category", "input": ["a", "bad"]}),
        ("/v1/classifications", {"input": ["a", "bad"]}),
        ("/v2/models/production/infer", tensor("a", "bad")),
    ],
)
def test_where_a_dialect_knows_no_error_of_one_text_the_request_fails(path: str, body: dict[str, Any]) -> None:
    response = call("POST", path, json=body)
    assert (response.status_code, response.json()["error"]) == (500, "the engine failed on text 1")


def test_deadline_and_client_count_in_every_dialect() -> None:
    answering = TwoHeads()
    headers = {"x-request-deadline-ms": "400", "x-client-id": "acme"}
    asking: list[tuple[str, dict[str, Any]]] = [
        ("/predict?head=category", {"inputs": "a"}),
        ("/classify", {"model": "category", "input": "a"}),
        ("/v1/classifications", {"input": "a"}),
        ("/v2/models/production/infer", tensor("a")),
    ]
    for path, body in asking:
        assert call("POST", path, answering, json=body, headers=headers).status_code == 200
    assert answering.asked == [(["a"], 400, "acme")] * 4


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/predict?head=category", {"inputs": "a"}, Promised(HEADS)),
        ("/classify", {"model": "category", "input": "a"}, Promised(HEADS)),
        ("/v1/classifications", {"input": "a"}, None),
        ("/v2/models/production/infer", tensor("a"), Promised(HEADS)),
        ("/v2/models/production/versions/7/infer", tensor("a"), Promised(HEADS, 7)),
    ],
)
def test_whoever_answers_has_the_heads_that_were_told_and_the_version_that_was_named(
    path: str, body: dict[str, Any], expected: Promised | None
) -> None:
    answering = TwoHeads()
    assert call("POST", path, answering, json=body).status_code == 200
    assert answering.promised == [expected]
