"""What goes over the wire: requests, answers, problems; and the limits a request must keep.

It knows neither HTTP nor models.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer, model_validator

PROBLEM_TYPE = "urn:twohead:problem:"

Pooling = Literal["mean", "max"]


class Message(BaseModel):
    """Base of everything on the wire; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())


# The document says what `text_reason` refuses of any text.
Text = Annotated[str, Field(json_schema_extra={"pattern": r"\S"})]
# The first mistake in a list ends reading it: a body has room for a million.
Texts = Annotated[list[Text], Field(min_length=1, fail_fast=True)]
Fields = Annotated[dict[str, str], Field(fail_fast=True)]


class Limits(Message):
    """What a request may ask for."""

    max_texts: int = Field(description="Texts in a request.")
    max_characters: int = Field(description="Characters in a text.")
    max_tokens: int = Field(description="Tokens of a text that are read; longer texts are cut.")
    max_body_bytes: int = Field(description="Size of a request body.")
    deadline_ms: int = Field(description="The longest time a request may take.")
    receipt_ms: int = Field(default=20_000, description="The longest time a request body may take to come.")


class PredictRequest(Message):
    """Texts to be read: finished ones, or examples whose fields the version's own template joins."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"texts": ["Nurse for our intensive care unit, completed training required."]}],
            "oneOf": [{"required": [field], "properties": {field: {"type": "array"}}} for field in ("texts", "examples")],
        }
    )

    texts: Texts | None = Field(default=None, description="Finished texts, as the template makes them.")
    examples: Annotated[list[Fields], Field(min_length=1, fail_fast=True)] | None = Field(
        default=None, description="Instead of `texts`: fields that the version's text template joins (see `/v1/version`)."
    )
    deadline_ms: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Answer within this time or not at all (504); at most the server's own limit."
    )
    scores: bool = Field(default=True, description="Tell the probability of every class; false tells that of the named class alone.")
    top_k: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Tell the probabilities of so many classes, the most probable first, and leave the others out."
    )
    threshold: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        default=None, description="Tell the probabilities of classes that have at least this one, the most probable first."
    )

    windows: Pooling | None = Field(
        default=None,
        description="Read all of a text that is longer than the version reads, in overlapping windows, and take the mean or the largest of "
        "their logits, class by class; without it such a text is cut.",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> "PredictRequest":
        if (self.texts is None) == (self.examples is None):
            raise ValueError("must have either 'texts' or 'examples'")
        return self


def _is_none(value: object) -> bool:
    return value is None


class HeadAnswer(Message):
    """One head's answer about one text."""

    class_: str | None = Field(alias="class", description="The most probable class; null where the head abstains.")
    probability: float = Field(ge=0.0, le=1.0, description="Of the most probable class, told or not.")
    scores: dict[str, float] | None = Field(
        default=None,
        exclude_if=_is_none,
        description="Probability of every class, in the head's order; they sum to 1. `top_k` and `threshold` leave some out, `scores` all.",
    )
    abstained: bool | None = Field(
        default=None,
        exclude_if=_is_none,
        description="Whether the probability is below the head's threshold, so that no class is named; left out where it has none.",
    )


class Windows(Message):
    """How a long text was read in pieces."""

    count: int = Field(description="Windows that were read.")
    pooled: Pooling = Field(description="What was taken of their logits, class by class.")


class Answer(Message):
    """What the version says about one text."""

    heads: dict[str, HeadAnswer] = Field(description="Head → its answer; empty where there is an error.")
    tokens: int = Field(description="Tokens that were read; in windows, those of each.")
    truncated: bool = Field(description="Whether the text was longer than the version reads.")
    windows: Windows | None = Field(default=None, exclude_if=_is_none, description="How it was read, where that was asked for.")
    error: str | None = Field(
        default=None, exclude_if=_is_none, description="Why there is no answer about this text, though there is about others."
    )


class Prediction(Message):
    """Answers to a request, in the order of its texts, all from one version."""

    version: int = Field(description="The version that answered all of them.")
    answers: list[Answer] = Field(description="One a text, in the order of the request.")


class HeadFacts(Message):
    """One question a version answers."""

    name: str
    classes: list[str] = Field(description="In the order of the scores.")
    ordered: bool = Field(description="Whether the classes stand in a meaningful order.")
    temperature: float = Field(default=1.0, description="What its logits are divided by, so that probabilities are what they say.")
    threshold: float | None = Field(
        default=None, description="Below this probability the head abstains; null answers always, above 1 never."
    )


class Failure(Message):
    """A version that could not be brought into service; the one before goes on."""

    version: int | None = Field(description="Null when not even the name could be read.")
    reason: str
    at: str = Field(description="UTC, ISO 8601.")


class EngineTrial(Message):
    """How a precision did on texts whose answers are known."""

    precision: str
    tokens_per_s: float
    agreement: float | None = Field(
        description="Share of labels, over texts and heads, that are those it was published with; null where it was too slow to be asked."
    )
    shift: float | None = Field(description="How far the probability of the class that moved most moved, on average over texts and heads.")
    is_chosen: bool


class CandidateFacts(Message):
    """A version that is tried beside the one that answers, as the replica that was asked sees it."""

    role: str = Field(description="`canary` answers some requests, `shadow` only copies of them.")
    version: int
    trial: str = Field(default="", description="Tells this trial from earlier ones of the same version.")
    ready: bool
    failure: str = Field(default="", description="Why it could not be loaded.")
    errors: int = Field(description="Requests it failed on, and the version beside it did not.")
    compared: dict[str, int] = Field(description="Head → texts that it and the version that answers now were both asked about.")
    agreement: dict[str, float] = Field(description="Head → share of these for which both name the same class, or none.")


class VersionFacts(Message):
    """Which version answers, and what is known about it."""

    version: int
    name: str | None = Field(description="The name that is followed; null for a fixed version.")
    heads: list[HeadFacts]
    text_template: str = Field(description="How fields were joined into the texts it learned from.")
    limits: Limits
    encoder: str = Field(description="What its training started from.")
    metrics: dict[str, Any] = Field(description="By split, measured when it was made.")
    created: str = Field(description="UTC, ISO 8601.")
    engine: str = Field(description="What computes the forward pass.")
    device: str
    dtype: str = Field(description="How precisely the encoder computes.")
    batch_tokens: int = Field(description="Most tokens in a batch; without a setting, as few as keep the engine as fast as it can be.")
    calibration: list[EngineTrial] = Field(default=[], description="How each precision did on the version's golden texts, on this machine.")
    last_failure: Failure | None = Field(default=None, description="Of the version that the name points to; null once it could be loaded.")
    candidate: CandidateFacts | None = Field(default=None, exclude_if=_is_none, description="What is tried beside it.")

    @field_serializer("metrics")
    def _finite(self, metrics: dict[str, Any]) -> Any:
        return _without_nan(metrics)


class Health(Message):
    """Whether the replica that was asked works."""

    status: Literal["ok"] = "ok"


class FieldProblem(Message):
    """One thing that is wrong with a request."""

    field: str = Field(description="Path like `texts.3`; empty for the whole body.")
    reason: str


class Problem(Message):
    """An error, as RFC 9457 writes it."""

    type: str = Field(description="What went wrong, for programs.")
    title: str
    status: int
    detail: str
    request_id: str
    hint: str = ""
    error: str = Field(default="", description="The detail again, where clients of other servers look for it.")
    errors: list[FieldProblem] = Field(
        default=[], description="For 422: the first twenty findings, or their number where it is over a hundred; nothing that was sent."
    )


def shaped(answers: Sequence[Answer], request: PredictRequest) -> list[Answer]:
    """Leave out the probabilities that a request does not ask for."""
    if request.scores and request.top_k is None and request.threshold is None:
        return list(answers)
    return [
        answer.model_copy(update={"heads": {head: _shaped_head(told, request) for head, told in answer.heads.items()}})
        for answer in answers
    ]


def _shaped_head(told: HeadAnswer, request: PredictRequest) -> HeadAnswer:
    if not request.scores or told.scores is None:
        return told.model_copy(update={"scores": None})
    best = sorted(told.scores.items(), key=lambda one: -one[1])[: request.top_k]
    return told.model_copy(update={"scores": {name: score for name, score in best if score >= (request.threshold or 0.0)}})


def problem(kind: str, title: str, status: int, detail: str, request_id: str, **more: Any) -> Problem:
    """Describe an error; `kind` becomes the end of its type, with hyphens."""
    return Problem(type=PROBLEM_TYPE + kind.replace(" ", "-"), title=title, status=status, detail=detail, request_id=request_id, **more)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
