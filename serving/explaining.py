"""Which words an answer comes from: each is left out once, and what that takes from the probability of the class is its weight.

Words are taken together where there are many, so that the cost has a bound: as many texts as there are spans, and one more. It knows
neither models nor HTTP.

Source: Li, Monroe and Jurafsky 2016, Understanding Neural Networks through Representation Erasure (arXiv 1612.08220).
"""

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import ConfigDict, Field

from serving.messages import Answer, Message, Text
from training.judging.abstention import PROBABILITY_DECIMALS

METHOD = "occlusion"
# Each is a text to be computed.
MOST_SPANS = 64
_WORD = re.compile(r"\S+")


class ExplainRequest(Message):
    """A text whose answer is to be explained."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "Nurse for our intensive care unit, completed training required."}]})

    text: Text = Field(description="A finished text, as the template makes them.")
    deadline_ms: Annotated[int, Field(ge=1)] | None = Field(default=None, description="As in `/v1/predict`.")


class Span(Message):
    """A word, or some words together."""

    begin: int = Field(description="Its first character, counted from 0.")
    end: int = Field(description="Behind its last one.")


class HeadExplanation(Message):
    """What one head's answer comes from."""

    class_: str = Field(alias="class", description="The most probable class, told or not.")
    probability: float
    weights: list[float] = Field(description="By how much less probable it is without each span; below 0: the span speaks against it.")


class Explanation(Message):
    """Which words the answers about a text come from."""

    version: int
    method: str = Field(description="`occlusion`: each span is left out once.")
    spans: list[Span] = Field(description="Of the part that is read; words are taken together where there are many.")
    heads: dict[str, HeadExplanation]
    tokens: int = Field(description="Tokens of the text that were read.")
    truncated: bool = Field(description="Whether the text was longer than the version reads.")


def find_spans(text: str, most: int = MOST_SPANS) -> list[Span]:
    """Divide a text into words, or into runs of as many words as it takes for there to be at most so many."""
    words = [match.span() for match in _WORD.finditer(text)]
    together = -(-len(words) // most) if words else 1
    runs = [words[first : first + together] for first in range(0, len(words), together)]
    return [Span(begin=run[0][0], end=run[-1][1]) for run in runs]


def without_each(text: str, spans: Sequence[Span]) -> list[str]:
    """Return the text without each of the spans."""
    return [text[: span.begin] + text[span.end :] for span in spans]


def weigh(whole: Answer, others: Sequence[Answer]) -> dict[str, HeadExplanation]:
    """Weigh spans, for every head.

    Args:
        whole: The answer about the whole text, with the probabilities of all classes.
        others: The answers about the text without each span.

    Returns:
        Head → its most probable class, and by how much less probable it is without each span.
    """
    found = {}
    for head, told in whole.heads.items():
        scores = told.scores or {}
        best = max(scores, key=scores.__getitem__)
        without = [(other.heads[head].scores or {})[best] for other in others]
        weights = [round(scores[best] - one, PROBABILITY_DECIMALS) for one in without]
        found[head] = HeadExplanation.model_construct(class_=best, probability=scores[best], weights=weights)
    return found
