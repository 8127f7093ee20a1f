"""`/predict` as in text-embeddings-inference, and as Hugging Face's inference endpoints answer about classes.

Source: https://huggingface.github.io/text-embeddings-inference/ (its OpenAPI document), read 2026-11.
"""

import json
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel, Field

from serving.dialects.heads import find_head, whole
from serving.door import ASKING, Answering, answer, body_schema, problems, read_body, reply
from serving.errors import InvalidFields
from serving.messages import HeadAnswer, Limits, Message, PredictRequest, Text
from serving.promised import Promised
from serving.reading import check_limits, parse_body


class Inputs(Message):
    """Texts to be read."""

    model_config = {"json_schema_extra": {"examples": [{"inputs": "Nurse for our intensive care unit."}]}}

    inputs: Text | Annotated[list[Text | Annotated[list[Text], Field(fail_fast=True)]], Field(min_length=1, fail_fast=True)] = Field(
        description="A text; or a list of texts, each alone or as a list of one. Pairs are not read."
    )
    raw_scores: bool = Field(default=False, description="Must be false: answers are probabilities.")
    truncate: bool = Field(default=True, description="Must be true: long texts are cut.")
    truncation_direction: str = Field(default="Right", description="As the version's tokenizer cuts; not read.")


class Ranked(BaseModel):
    """A class and its probability."""

    label: str
    score: float


def add(app: FastAPI, answering: Answering) -> None:
    """Add the route."""

    @app.post(
        "/predict",
        tags=["other servers' words"],
        summary="Answer as text-embeddings-inference does",
        description="One head's classes, the most probable first: a list for one text, a list of lists for several.",
        response_model=list[Ranked] | list[list[Ranked]],
        openapi_extra=body_schema(Inputs),
        responses=problems(*ASKING, 404),
    )
    async def predict(
        request: Request, head: Annotated[str, Query(description="Which head; may be left out where the version has one.")] = ""
    ) -> Response:
        limits = answering.limits()
        asked = parse_body(Inputs, await read_body(request, limits))
        facts = answering.facts()
        chosen = find_head(facts, head, "the parameter head")
        texts = _texts(asked, limits)
        answered = await answer(answering, request, PredictRequest.model_construct(texts=texts), Promised(facts.heads))
        ranked = [_ranked(one.heads[chosen.name]) for one in whole(answered)]
        return reply(answered, json.dumps(ranked[0] if isinstance(asked.inputs, str) else ranked, ensure_ascii=False))


def _texts(asked: Inputs, limits: Limits) -> list[str]:
    inputs = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
    # Before each is looked at: a body has room for a million, and whatever is told of them is made on the loop that answers everybody.
    check_limits(PredictRequest.model_construct(texts=inputs), limits)
    findings = []
    if asked.raw_scores:
        findings.append(("raw_scores", "must be false: answers are probabilities"))
    if not asked.truncate:
        findings.append(("truncate", "must be true: texts that are too long are cut"))
    findings += [
        (f"inputs.{index}", "must be one text; pairs are not read")
        for index, one in enumerate(inputs)
        if isinstance(one, list) and len(one) != 1
    ]
    if findings:
        raise InvalidFields(findings)
    return [one if isinstance(one, str) else one[0] for one in inputs]


def _ranked(told: HeadAnswer) -> list[dict[str, Any]]:
    return [{"label": name, "score": score} for name, score in sorted((told.scores or {}).items(), key=lambda one: -one[1])]
