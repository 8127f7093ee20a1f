"""`/v1/classifications` as Mistral's classifiers answer: every head's probabilities for every text.

Source: https://docs.mistral.ai/api (classifications), read 2026-11.
"""

import json
import uuid

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field

from serving.dialects.heads import whole
from serving.door import ASKING, Answering, answer, body_schema, problems, read_body, reply
from serving.messages import Message, PredictRequest, Text, Texts
from serving.reading import parse_body


class Classifications(Message):
    """Texts to be read."""

    model_config = {"json_schema_extra": {"examples": [{"model": "twohead", "input": ["Nurse for our intensive care unit."]}]}}

    model: str = Field(default="", description="Sent back as it came; all heads answer.")
    input: Text | Texts = Field(description="A text or a list of texts.")


class Scores(BaseModel):
    """Class → probability."""

    scores: dict[str, float]


class Results(BaseModel):
    """Answers in the order of the texts."""

    id: str
    model: str
    results: list[dict[str, Scores]] = Field(description="For each text, head → its classes' probabilities.")


def add(app: FastAPI, answering: Answering) -> None:
    """Add the route."""

    @app.post(
        "/v1/classifications",
        tags=["other servers' words"],
        summary="Answer as Mistral's classifiers do",
        response_model=Results,
        openapi_extra=body_schema(Classifications),
        responses=problems(*ASKING),
    )
    async def classifications(request: Request) -> Response:
        asked = parse_body(Classifications, await read_body(request, answering.limits()))
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        answered = await answer(answering, request, PredictRequest.model_construct(texts=texts))
        results = [{head: {"scores": told.scores} for head, told in one.heads.items()} for one in whole(answered)]
        return reply(
            answered, json.dumps({"id": f"class-{uuid.uuid4().hex}", "model": asked.model, "results": results}, ensure_ascii=False)
        )
