"""Texts to answers to columns: what a version says about the rows of a block, whatever is wrong with one of them.

Texts are computed beside others of similar length, in batches as large as the model wants them. A text that is empty or too long is told so
as over HTTP, and one that breaks the engine fails alone; either reason stands in its row. It does not know where rows come from and go to.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from serving.errors import ScoringError
from serving.messages import Answer
from serving.predictor import TokenizedText
from serving.reading import joined, text_reason
from training.data.formats import as_string
from training.template import template_columns

log = logging.getLogger(__name__)

# What is answered about a text, or why it is not read.
Found = Answer | str
ItemT = TypeVar("ItemT")
DoneT = TypeVar("DoneT")

_ABOUT_ALL = pa.schema([("tokens", pa.int32()), ("truncated", pa.bool_()), ("version", pa.int32()), ("error", pa.string())])
_PLAIN = "a"


class Model(Protocol):
    """What answers; `serving.predictor.Predictor` does."""

    @property
    def pads(self) -> bool:
        """Whether it computes padding like tokens."""
        ...

    @property
    def batch_tokens(self) -> int:
        """Tokens that make a batch as fast as any."""
        ...

    def tokenize(self, texts: Sequence[str], /) -> list[TokenizedText]:
        """Turn texts into tokens."""
        ...

    def compute(self, texts: Sequence[TokenizedText], /) -> Sequence[Any]:
        """Answer about a batch, in its order, with an `Answer` each."""
        ...


class Scorer:
    """Answers about many texts with one version.

    Args:
        model: Answers.
        max_characters: Of a text.
        batch_tokens: Most tokens in a batch; None: as the model says.
    """

    def __init__(self, model: Model, max_characters: int, batch_tokens: int | None = None) -> None:
        self._model = model
        self._max_characters = max_characters
        self._batch_tokens = batch_tokens or model.batch_tokens
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="engine")

    def score(self, texts: Sequence[str | None]) -> list[Found]:
        """Answer about texts, in their order; None is no text.

        Raises:
            ScoringError: The engine fails on some of them, and then on a plain one as well.
        """
        found: dict[int, Found] = {}
        readable: dict[int, str] = {}
        for index, text in enumerate(texts):
            reason = "is no text" if text is None else text_reason(text, self._max_characters)
            if text is None or reason:
                found[index] = reason
            else:
                readable[index] = text
        tokens: dict[int, TokenizedText] = {}
        for index, made in zip(readable, self._each(self._model.tokenize, list(readable.values())), strict=True):
            if made is None:
                found[index] = "the tokenizer failed on this text"
            else:
                tokens[index] = made
        found |= self._answers(tokens)
        return [found[index] for index in range(len(texts))]

    def _answers(self, tokens: Mapping[int, TokenizedText]) -> dict[int, Answer]:
        found: dict[int, Answer] = {}
        for batch in divide({index: len(text) for index, text in tokens.items()}, self._batch_tokens, pads=self._model.pads):
            computed = self._each(self._model.compute, [tokens[index] for index in batch])
            found |= {index: answer or _failed(tokens[index]) for index, answer in zip(batch, computed, strict=True)}
        if any(answer.error for answer in found.values()):
            # An engine may break in the middle of a block, and what is written down is taken for done when scoring goes on.
            self._require_engine()
        return found

    def _require_engine(self) -> None:
        if self._each(self._model.compute, self._model.tokenize([_PLAIN])) == [None]:
            raise ScoringError("the engine fails on every text", "score again: what is done is kept")

    def _each(self, run: Callable[[Sequence[ItemT]], Sequence[DoneT]], items: Sequence[ItemT]) -> list[DoneT | None]:
        """Run for all items; where that fails, halve them until only those fail, as None, that fail alone."""
        if not items:
            return []
        done = self._engine.submit(run, items)
        # wait() takes no error out of the future, so that whatever is raised is looked at below.
        wait([done])
        error = done.exception()
        if error is None and len(results := done.result()) == len(items):
            return list(results)
        if len(items) > 1:
            half = len(items) // 2
            return [*self._each(run, items[:half]), *self._each(run, items[half:])]
        # The error's own words may quote the text, so only its type is told.
        log.error("a text failed: %s", type(error).__name__ if error else "no answer")
        return [None]


def divide(lengths: Mapping[int, int], batch_tokens: int, *, pads: bool) -> Iterator[list[int]]:
    """Divide texts into batches of similar length, the longest first; a text longer than a batch is one of its own.

    Args:
        lengths: Tokens by text.
        batch_tokens: Most tokens in a batch, padding included where there is any.
        pads: Texts are padded up to the longest of a batch.
    """
    batch: list[int] = []
    tokens = 0
    # The longest first: what memory cannot hold fails at once.
    for index in sorted(lengths, key=lambda index: -lengths[index]):
        cost = lengths[batch[0]] if pads and batch else lengths[index]
        if batch and tokens + cost > batch_tokens:
            yield batch
            batch, tokens, cost = [], 0, lengths[index]
        batch.append(index)
        tokens += cost
    if batch:
        yield batch


def make_texts(rows: pa.Table, column: str | None, template: str) -> list[str | None]:
    """Make a text of each row, as training does; None where a cell is none.

    Args:
        rows: With the columns that are needed.
        column: The one that holds finished texts; None: the template joins columns.
        template: Of the version.
    """
    needed = [column] if column is not None else template_columns(template)
    cells = [[as_string(value) for value in rows.column(name).to_pylist()] for name in needed]
    return [_text(dict(zip(needed, row, strict=True)), column, template) for row in zip(*cells, strict=True)]


def _text(fields: Mapping[str, str | None], column: str | None, template: str) -> str | None:
    whole = {name: value for name, value in fields.items() if value is not None}
    if len(whole) < len(fields):
        return None
    return joined(whole, template) if column is None else whole[column]


def answer_schema(heads: Mapping[str, Sequence[str]], *, with_scores: bool) -> pa.Schema:
    """Describe the columns of answers.

    Args:
        heads: Head → its classes.
        with_scores: Whether there are the probabilities of all classes, in the head's order.
    """
    fields: list[tuple[str, pa.DataType]] = []
    for head in heads:
        fields += [(head, pa.string()), (f"{head}_probability", pa.float64())]
        fields += [(f"{head}_scores", pa.list_(pa.float64()))] if with_scores else []
    return pa.schema([*fields, *_ABOUT_ALL])


def answered(rows: pa.Table, found: Sequence[Found], version: int, schema: pa.Schema) -> pa.Table:
    """Put what was found beside the rows, in the columns of a schema that `answer_schema` made."""
    told = pa.Table.from_pylist([_told(one, version) for one in found], schema)
    return pa.Table.from_arrays([*rows.columns, *told.columns], schema=pa.schema([*rows.schema, *schema]))


def _told(found: Found, version: int) -> dict[str, Any]:
    if isinstance(found, str):
        return {"version": version, "error": found}
    row: dict[str, Any] = {"tokens": found.tokens, "truncated": found.truncated, "version": version, "error": found.error}
    for head, answer in found.heads.items():
        scores = list(answer.scores.values()) if answer.scores else None
        row |= {head: answer.class_, f"{head}_probability": answer.probability, f"{head}_scores": scores}
    return row


def _failed(text: TokenizedText) -> Answer:
    return Answer(heads={}, tokens=len(text), truncated=text.truncated, error="the engine failed on this text")
