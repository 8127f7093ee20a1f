"""The Open Inference Protocol, version 2, over REST: texts as BYTES in, for each head its class as BYTES out, and probabilities as FP32.

Source: https://github.com/kserve/open-inference-protocol (inference_rest.md), read 2026-11.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field

from serving.dialects.heads import whole
from serving.door import ASKING, Answering, answer, body_schema, problems, read_body, reply
from serving.errors import InvalidFields, NotFound
from serving.messages import Answer, Message, PredictRequest, Texts, VersionFacts
from serving.promised import Promised
from serving.reading import parse_body

SERVER, INPUT, SCORES = "twohead", "text", ".scores"
# Two of each head, of more heads than anybody has: a body has room for a hundred thousand, and reading these takes a second.
_MOST_OUTPUTS = 1_024
_MODEL, _VERSION = "/v2/models/{model}", "/versions/{version}"


class InputTensor(Message):
    """The texts."""

    name: str = Field(description=f"`{INPUT}`.")
    shape: Annotated[list[int], Field(max_length=2, fail_fast=True)] = Field(description="[texts], or [texts, 1].")
    datatype: Literal["BYTES"]
    data: Texts
    parameters: dict[str, Any] = Field(default={}, description="Not read.")


class WantedOutput(Message):
    """An output that is asked for."""

    name: str = Field(description=f"A head, or a head with `{SCORES}` behind it.")
    parameters: dict[str, Any] = Field(default={}, description="Not read.")


class Infer(Message):
    """Texts to be read."""

    model_config = {
        "json_schema_extra": {
            "examples": [{"inputs": [{"name": INPUT, "shape": [1], "datatype": "BYTES", "data": ["Nurse for our intensive care unit."]}]}]
        }
    }

    id: str = Field(default="", description="Sent back as it came.")
    parameters: dict[str, Any] = Field(default={}, description="Not read.")
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1, fail_fast=True)]
    outputs: Annotated[list[WantedOutput], Field(max_length=_MOST_OUTPUTS, fail_fast=True)] = Field(
        default=[], description="Each once; left out: the class of every head."
    )


class OutputTensor(BaseModel):
    """One head's classes, or the probabilities of its classes."""

    name: str
    shape: list[int]
    datatype: str
    data: list[str] | list[float] = Field(description="Where a head abstains, its class is an empty text.")


class Inferred(BaseModel):
    """Answers in the order of the texts."""

    model_name: str
    model_version: str
    id: str = ""
    outputs: list[OutputTensor]


class TensorFacts(BaseModel):
    """A tensor's name, type and shape."""

    name: str
    datatype: str
    shape: list[int] = Field(description="-1: as many as there are texts.")


class ModelFacts(BaseModel):
    """What the model reads and answers."""

    name: str
    versions: list[str] = Field(description="The one that answers.")
    platform: str = SERVER
    inputs: list[TensorFacts]
    outputs: list[TensorFacts]


class ModelReady(BaseModel):
    """Whether the model can answer."""

    name: str
    ready: bool = True


class Live(BaseModel):
    """Whether the server runs."""

    live: bool = True


class Ready(BaseModel):
    """Whether the server can answer."""

    ready: bool = True


class Server(BaseModel):
    """The server itself."""

    name: str = SERVER
    version: str
    extensions: list[str] = []


def add(app: FastAPI, answering: Answering) -> None:
    """Add the routes."""
    _add_health(app, answering)
    told: dict[str, Any] = {"tags": ["other servers' words"], "responses": problems(404, 503)}
    asking: dict[str, Any] = {"tags": told["tags"], "openapi_extra": body_schema(Infer), "responses": problems(*ASKING, 404)}
    only = f"With `{_VERSION}` before the end, only by that version. {SERVER} is a name of every model."

    @app.get(_MODEL, summary="Describe the model", **told)
    @app.get(_MODEL + _VERSION, include_in_schema=False)
    async def metadata(model: str, version: str = "") -> ModelFacts:
        return _metadata(_served(answering, model, version), model)

    @app.get(f"{_MODEL}/ready", summary="Tell whether the model can answer", **told)
    @app.get(f"{_MODEL}{_VERSION}/ready", include_in_schema=False)
    async def ready(model: str, version: str = "") -> ModelReady:
        _served(answering, model, version)
        answering.require_ready()
        return ModelReady(name=model)

    @app.post(f"{_MODEL}/infer", summary="Answer by the Open Inference Protocol", description=only, response_model=Inferred, **asking)
    @app.post(f"{_MODEL}{_VERSION}/infer", include_in_schema=False)
    async def infer(request: Request, model: str, version: str = "") -> Response:
        asked = parse_body(Infer, await read_body(request, answering.limits()))
        facts = _served(answering, model, version)
        texts, wanted = _texts(asked), _wanted(asked, facts)
        promised = Promised(facts.heads, facts.version if version else None)
        answered = await answer(answering, request, PredictRequest.model_construct(texts=texts), promised)
        content: dict[str, Any] = {"model_name": model, "model_version": str(answered.prediction.version)}
        content |= {"id": asked.id} if asked.id else {}
        answers = whole(answered)
        return reply(answered, json.dumps(content | {"outputs": [_output(name, answers) for name in wanted]}, ensure_ascii=False))


def _add_health(app: FastAPI, answering: Answering) -> None:
    tags: list[Any] = ["other servers' words"]

    @app.get("/v2", tags=tags, summary="Describe the server")
    async def server() -> Server:
        return Server(version=app.version)

    @app.get("/v2/health/live", tags=tags, summary="Tell whether the server runs")
    async def live() -> Live:
        return Live()

    @app.get("/v2/health/ready", tags=tags, summary="Tell whether the server can answer", responses=problems(503))
    async def ready() -> Ready:
        answering.require_ready()
        return Ready()


def _served(answering: Answering, model: str, version: str) -> VersionFacts:
    facts = answering.facts()
    names = [SERVER, *([facts.name] if facts.name else [])]
    if model not in names:
        raise NotFound(f"there is no model of that name; it is served as {' and '.join(names)}")
    if version and version != str(facts.version):
        raise NotFound(f"that version is not served; version {facts.version} is")
    return facts


def _metadata(facts: VersionFacts, model: str) -> ModelFacts:
    classes = [TensorFacts(name=head.name, datatype="BYTES", shape=[-1]) for head in facts.heads]
    scores = [TensorFacts(name=head.name + SCORES, datatype="FP32", shape=[-1, len(head.classes)]) for head in facts.heads]
    inputs = [TensorFacts(name=INPUT, datatype="BYTES", shape=[-1])]
    return ModelFacts(name=model, versions=[str(facts.version)], inputs=inputs, outputs=classes + scores)


def _texts(asked: Infer) -> list[str]:
    tensor = asked.inputs[0]
    findings = []
    if tensor.name != INPUT:
        findings.append(("inputs.0.name", f"must be {INPUT}"))
    if tensor.shape not in ([len(tensor.data)], [len(tensor.data), 1]):
        findings.append(("inputs.0.shape", f"must be [{len(tensor.data)}], as data has so many texts"))
    if findings:
        raise InvalidFields(findings)
    return tensor.data


def _wanted(asked: Infer, facts: VersionFacts) -> Sequence[str]:
    heads = [head.name for head in facts.heads]
    known = {*heads, *(head + SCORES for head in heads)}
    findings, seen, allowed = [], set[str](), ", ".join(sorted(known))
    for index, one in enumerate(asked.outputs):
        if one.name not in known:
            findings.append((f"outputs.{index}.name", f"must be one of {allowed}"))
        elif one.name in seen:
            # Each is written out on the loop that answers everybody.
            findings.append((f"outputs.{index}.name", "must stand once"))
        seen.add(one.name)
    if findings:
        raise InvalidFields(findings)
    return [one.name for one in asked.outputs] or heads


def _output(name: str, answers: list[Answer]) -> dict[str, Any]:
    if name in answers[0].heads:
        return {"name": name, "shape": [len(answers)], "datatype": "BYTES", "data": [one.heads[name].class_ or "" for one in answers]}
    rows = [list((one.heads[name.removesuffix(SCORES)].scores or {}).values()) for one in answers]
    return {"name": name, "shape": [len(rows), len(rows[0])], "datatype": "FP32", "data": [value for row in rows for value in row]}
