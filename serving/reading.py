"""Reads requests: bytes to a message, what a request may ask for, the texts it asks about.

Bytes are parsed in one pass (pydantic's JSON parser: bounded nesting, strict UTF-8), and whatever is wrong with a request is told without
repeating what was sent. It knows neither HTTP nor models.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from serving.errors import BadRequest, InvalidFields
from serving.messages import Limits, Message, PredictRequest
from training.template import is_blank, template_columns, template_parts

# Telling each takes longer than reading the body did, on the loop that answers everybody.
_MOST_MISTAKES = 100
# Whoever composes a batch looks at all that waits, on the loop that answers everybody. The largest body of ordinary words makes 3,300
# pieces of 192 tokens; of signs that are a token each, 14,000.
_MOST_WINDOWS = 4_096

Finding = tuple[str, str]
MessageT = TypeVar("MessageT", bound=Message)


def parse_body(kind: type[MessageT], body: bytes) -> MessageT:
    """Read a message; what was sent is in no error.

    Raises:
        BadRequest: 400 for a body that is not JSON.
        InvalidFields: 422, with the first findings, or how many there are.
    """
    try:
        return kind.model_validate_json(body, strict=True)
    except ValidationError as error:
        if error.error_count() > _MOST_MISTAKES:
            raise InvalidFields([("", f"has {error.error_count()} mistakes; the keys are {', '.join(kind.model_fields)}")]) from None
        findings = error.errors(include_url=False, include_input=False, include_context=False)
        if findings[0]["type"] == "json_invalid":
            raise BadRequest(f"body is not JSON: {_position(findings[0]['msg'])}", 400) from None
        raise InvalidFields([(_path(finding["loc"], kind), _reason(finding, kind)) for finding in findings]) from None


def check_limits(request: PredictRequest, limits: Limits) -> None:
    """Check what can be checked without a version.

    Raises:
        InvalidFields: 422; too many texts, or a deadline that is too long.
    """
    if findings := [*_count_findings(request, limits), *_deadline_findings(request, limits)]:
        raise InvalidFields(findings)


def check_windows(count: int) -> None:
    """Check how many pieces the texts of a request were cut into.

    Raises:
        InvalidFields: 422; they are too many.
    """
    if count > _MOST_WINDOWS:
        found = f"cuts the texts into {count} pieces, but at most {_MOST_WINDOWS} are allowed"
        raise InvalidFields([("windows", f"{found}; send less text in a request, or without windows")])


def finished_texts(request: PredictRequest, template: str, limits: Limits) -> list[str]:
    """Return the texts to read, joining fields where examples were given.

    Raises:
        InvalidFields: 422; a field of the template is missing, or a text is empty or too long.
    """
    if request.texts is not None:
        texts, field = request.texts, "texts"
    else:
        examples = request.examples or []
        if missing := [finding for index, example in enumerate(examples) if (finding := _missing_field(index, example, template))]:
            raise InvalidFields(missing)
        texts, field = [joined(example, template) for example in examples], "examples"
    findings = [(f"{field}.{index}", reason) for index, text in enumerate(texts) if (reason := text_reason(text, limits.max_characters))]
    if findings:
        raise InvalidFields(findings)
    return texts


def text_reason(text: str, max_characters: int) -> str:
    """Tell why a text is not read; "" where it is."""
    if len(text) > max_characters:
        return f"is longer than {max_characters} characters"
    return "" if text.strip() else "is empty"


def _count_findings(request: PredictRequest, limits: Limits) -> list[Finding]:
    field = "texts" if request.texts is not None else "examples"
    count = len(request.texts or request.examples or ())
    return [(field, f"has {count} entries, but at most {limits.max_texts} are allowed")] if count > limits.max_texts else []


def _deadline_findings(request: PredictRequest, limits: Limits) -> list[Finding]:
    if request.deadline_ms is None or request.deadline_ms <= limits.deadline_ms:
        return []
    return [("deadline_ms", f"must be at most {limits.deadline_ms}")]


def _missing_field(index: int, example: Mapping[str, str], template: str) -> Finding | None:
    missing = [column for column in template_columns(template) if column not in example]
    return (f"examples.{index}", f"lacks the field {missing[0]!r}, which the text template names") if missing else None


def joined(example: Mapping[str, str], template: str) -> str:
    """Join fields into the text that a template makes of them; "" where all are blank, as in training."""
    if all(is_blank(example[column]) for column in template_columns(template)):
        return ""
    return "".join(literal + (example[column] if column else "") for literal, column, _ in template_parts(template))


def _path(location: Sequence[int | str], kind: type[BaseModel]) -> str:
    # Other keys are the caller's own words, and may be a text that somebody put in the wrong place.
    return ".".join(str(part) for part in location if isinstance(part, int) or part in _names(kind))


@lru_cache
def _names(kind: type[BaseModel]) -> frozenset[str]:
    """Return the keys of a message and of what is inside it."""
    schema = kind.model_json_schema()
    return frozenset(name for part in (schema, *schema.get("$defs", {}).values()) for name in part.get("properties", ()))


def _reason(finding: Any, kind: type[BaseModel]) -> str:
    if finding["type"] == "extra_forbidden":
        return f"has an unknown key; the keys are {', '.join(kind.model_fields)}"
    message = str(finding["msg"]).removeprefix("Value error, ").replace("Input should", "must")
    return message[:1].lower() + message[1:]


def _position(message: str) -> str:
    # The parser's own words and a position; it never quotes the document.
    return message.removeprefix("Invalid JSON: ")
