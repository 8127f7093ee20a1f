import json
import pickle
from typing import Any

import pytest

from serving.dialects.mistral import Classifications
from serving.dialects.open_inference import Infer
from serving.dialects.text_embeddings import Inputs
from serving.dialects.vllm import Classify
from serving.errors import BadRequest, InvalidFields, Overloaded
from serving.messages import Answer, HeadAnswer, Limits, Message, PredictRequest, shaped
from serving.reading import check_limits, finished_texts, parse_body

LIMITS = Limits(max_texts=3, max_characters=10, max_tokens=8, max_body_bytes=1000, deadline_ms=1000)
TEMPLATE = "{title}: {text}"


def parse_request(body: bytes, limits: Limits) -> PredictRequest:
    request = parse_body(PredictRequest, body)
    check_limits(request, limits)
    return request


def findings(body: Any) -> list[tuple[str, str]]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(InvalidFields) as caught:
        finished_texts(parse_request(content, LIMITS), TEMPLATE, LIMITS)
    assert caught.value.status == 422
    return caught.value.findings


def test_texts_and_examples() -> None:
    assert finished_texts(parse_request(b'{"texts": ["a", "b"]}', LIMITS), TEMPLATE, LIMITS) == ["a", "b"]
    request = parse_request(b'{"examples": [{"title": "a", "text": "{b}", "more": "c"}]}', LIMITS)
    assert finished_texts(request, TEMPLATE, LIMITS) == ["a: {b}"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"texts": ["ok", " \t\n"]}, [("texts.1", "is empty")]),
        ({"texts": ["", "x" * 11]}, [("texts.0", "is empty"), ("texts.1", "is longer than 10 characters")]),
        ({"texts": ["a"] * 4}, [("texts", "has 4 entries, but at most 3 are allowed")]),
        ({"texts": ["a"], "examples": []}, [("examples", "list should have at least 1 item after validation, not 0")]),
        ({"texts": ["a"], "examples": [{}]}, [("", "must have either 'texts' or 'examples'")]),
        ({}, [("", "must have either 'texts' or 'examples'")]),
        ({"texts": [1]}, [("texts.0", "must be a valid string")]),
        ({"texts": "a"}, [("texts", "must be a valid array")]),
        ([], [("", "must be an object")]),
        ({"texts": ["a"], "deadline_ms": 1001}, [("deadline_ms", "must be at most 1000")]),
        ({"texts": ["a"], "deadline_ms": "5"}, [("deadline_ms", "must be a valid integer")]),
        ({"examples": [{"title": " ", "text": "\u200b"}]}, [("examples.0", "is empty")]),
        ({"examples": [{"title": "a"}]}, [("examples.0", "lacks the field 'text', which the text template names")]),
    ],
)
def test_findings(body: Any, expected: list[tuple[str, str]]) -> None:
    assert findings(body) == expected


@pytest.mark.parametrize(
    "body", [{"secret": 1, "texts": ["a"]}, {"texts": {"secret": 1}}, {"examples": [{"secret": 1}]}, {"texts": ["secret secret"]}]
)
def test_findings_never_repeat_what_was_sent(body: Any) -> None:
    assert "secret" not in repr(findings(body))


def test_findings_are_few_for_a_body_that_is_wrong_all_over() -> None:
    limits = LIMITS.model_copy(update={"max_texts": 1000})
    with pytest.raises(InvalidFields) as caught:
        finished_texts(PredictRequest(texts=[" "] * 500), TEMPLATE, limits)
    assert len(caught.value.findings) == 20


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [
        (PredictRequest, {"texts": [0] * 5_000}, "texts.0"),
        (PredictRequest, {"examples": [{str(number): number for number in range(5_000)}]}, "examples.0"),
        (Classify, {"input": [0] * 5_000}, "input"),
        (Classifications, {"input": [0] * 5_000}, "input"),
        (Inputs, {"inputs": [0] * 5_000}, "inputs"),
        (Inputs, {"inputs": [[0] * 5_000]}, "inputs"),
        (Infer, {"inputs": [{"name": "text", "shape": ["a"] * 5_000, "datatype": "BYTES", "data": [0] * 5_000}]}, "inputs.0.shape.0"),
        (Infer, {"inputs": [{}] * 5_000}, "inputs.0.name"),
        (Infer, {"inputs": [], "outputs": [{}] * 5_000}, "inputs"),
    ],
)
def test_a_list_is_read_up_to_its_first_mistake(kind: type[Message], body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidFields) as caught:
        parse_body(kind, json.dumps(body).encode())
    assert caught.value.findings[0][0] == field
    assert len(caught.value.findings) <= 4


def test_very_many_unknown_keys_are_counted_and_not_told() -> None:
    with pytest.raises(InvalidFields) as caught:
        parse_body(PredictRequest, json.dumps({f"secret{number}": 0 for number in range(101)}).encode())
    assert caught.value.findings == [("", f"has 101 mistakes; the keys are {', '.join(PredictRequest.model_fields)}")]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"texts": ["\xff"]}', b'{"texts": ["\\ud800"]}', b"[" * 100_000, b'{"texts": ["secret']
)
def test_what_is_not_json_is_400_and_not_repeated(body: bytes) -> None:
    with pytest.raises(BadRequest, match="body is not JSON") as caught:
        parse_request(body, LIMITS)
    assert caught.value.status == 400
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "abstained", "expected"),
    [
        ("sales", None, {"class": "sales", "probability": 0.6, "scores": {"sales": 0.6, "nurse": 0.4}}),
        ("sales", False, {"class": "sales", "probability": 0.6, "scores": {"sales": 0.6, "nurse": 0.4}, "abstained": False}),
        (None, True, {"class": None, "probability": 0.6, "scores": {"sales": 0.6, "nurse": 0.4}, "abstained": True}),
    ],
)
def test_an_abstention_names_no_class_and_a_head_without_a_threshold_says_nothing(
    name: str | None, abstained: bool | None, expected: dict[str, Any]
) -> None:
    answer = HeadAnswer(**{"class": name}, probability=0.6, scores={"sales": 0.6, "nurse": 0.4}, abstained=abstained)
    sent = answer.model_dump_json(by_alias=True)
    assert json.loads(sent) == expected
    assert HeadAnswer.model_validate_json(sent) == answer


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, {"sales": 0.2, "nurse": 0.5, "driver": 0.3}),
        ({"top_k": 2}, {"nurse": 0.5, "driver": 0.3}),
        ({"top_k": 9}, {"nurse": 0.5, "driver": 0.3, "sales": 0.2}),
        ({"threshold": 0.3}, {"nurse": 0.5, "driver": 0.3}),
        ({"threshold": 0.9}, {}),
        ({"top_k": 1, "threshold": 0.3}, {"nurse": 0.5}),
        ({"scores": False}, None),
        ({"scores": False, "top_k": 2}, None),
    ],
)
def test_probabilities_that_are_not_asked_for_are_left_out(asked: dict[str, Any], expected: dict[str, float] | None) -> None:
    head = HeadAnswer(**{"class": "nurse"}, probability=0.5, scores={"sales": 0.2, "nurse": 0.5, "driver": 0.3})
    answers = [Answer(heads={"category": head}, tokens=3, truncated=False), Answer(heads={}, tokens=3, truncated=False, error="failed")]
    request = parse_body(PredictRequest, json.dumps({"texts": ["a", "b"]} | asked).encode())
    told, failed = shaped(answers, request)
    scores = told.heads["category"].scores
    assert scores == expected
    assert list(scores or ()) == list(expected or ())
    assert (told.heads["category"].class_, told.heads["category"].probability) == ("nurse", 0.5)
    assert ("scores" in told.model_dump()["heads"]["category"]) == (expected is not None)
    assert failed == answers[1]
    # What another request is told is as it was.
    assert answers[0].heads["category"].scores == {"sales": 0.2, "nurse": 0.5, "driver": 0.3}


def test_errors_travel_between_processes() -> None:
    fields = pickle.loads(pickle.dumps(InvalidFields([("texts", "is empty")])))
    assert (fields.findings, fields.status) == ([("texts", "is empty")], 422)
    assert pickle.loads(pickle.dumps(Overloaded("full", 2.5))).retry_after_s == 2.5
    assert pickle.loads(pickle.dumps(BadRequest("too large", 413))).status == 413
