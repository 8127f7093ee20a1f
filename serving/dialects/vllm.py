"""`/classify` as in vLLM, which infinity answers alike: one head, probabilities in the order of its classes.

Source: https://docs.vllm.ai/en/latest/models/pooling_models.html (classification API), read 2026-11.
"""

import json
import time
import uuid
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field

from serving.dialects.heads import find_head, whole
from serving.door import ASKING, Answering, answer, body_schema, problems, read_body, reply
from serving.messages import Answer, HeadFacts, Message, PredictRequest, Text, Texts
from serving.promised import Promised
from serving.reading import parse_body


class Classify(Message):
    """Texts to be read."""

    model_config = {"json_schema_extra": {"examples": [{"model": "category", "input": "Nurse for our intensive care unit."}]}}

    model: str = Field(default="", description="Which head; may be left out where the version has one.")
    input: Text | Texts = Field(description="A text or a list of texts.")


class Classified(BaseModel):
    """One text's answer."""

    index: int
    label: str | None = Field(description="The most probable class; null where the head abstains.")
    probs: list[float]
    num_classes: int


class Usage(BaseModel):
    """What was read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class Classification(BaseModel):
    """Answers in the order of the texts."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Classified]
    usage: Usage


def add(app: FastAPI, answering: Answering) -> None:
    """Add the route."""

    @app.post(
        "/classify",
        tags=["other servers' words"],
        summary="Answer as vLLM and infinity do",
        response_model=Classification,
        openapi_extra=body_schema(Classify),
        responses=problems(*ASKING, 404),
    )
    async def classify(request: Request) -> Response:
        asked = parse_body(Classify, await read_body(request, answering.limits()))
        facts = answering.facts()
        head = find_head(facts, asked.model, "model")
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        answered = await answer(answering, request, PredictRequest.model_construct(texts=texts), Promised(facts.heads))
        return reply(answered, json.dumps(_classification(head, whole(answered)), ensure_ascii=False))


def _classification(head: HeadFacts, answers: list[Answer]) -> dict[str, Any]:
    tokens = sum(one.tokens for one in answers)
    data = []
    for index, one in enumerate(answers):
        told = one.heads[head.name]
        data.append({"index": index, "label": told.class_, "probs": list((told.scores or {}).values()), "num_classes": len(head.classes)})
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    told_by = {"id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": head.name}
    return told_by | {"data": data, "usage": usage}
