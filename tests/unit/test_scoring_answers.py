from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from serving.errors import ScoringError
from serving.messages import Answer, HeadAnswer
from serving.predictor import Predictor, TokenizedText
from serving.scoring.answers import Scorer, answer_schema, answered, divide, make_texts

POISON = 666


class LetterModel:
    """Takes a letter for a token and answers with the first; breaks on texts with an exclamation mark, or on all."""

    pads, batch_tokens = True, 8

    def __init__(self, is_broken: bool = False) -> None:
        self.is_broken = is_broken
        self.batches: list[list[int]] = []

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        if any("?" in text for text in texts):
            raise ValueError(texts)
        return [TokenizedText(np.array([POISON if letter == "!" else ord(letter) for letter in text]), len(text) > 8) for text in texts]

    def compute(self, texts: Sequence[TokenizedText]) -> list[Answer]:
        self.batches.append([len(text) for text in texts])
        if self.is_broken or any(POISON in text.ids for text in texts):
            raise RuntimeError("cannot")
        first = [chr(text.ids[0]) for text in texts]
        heads = [{"letter": HeadAnswer(class_=None if one == "s" else one, probability=0.5, scores={"a": 0.5, "b": 0.25})} for one in first]
        return [Answer(heads=told, tokens=len(text), truncated=text.truncated) for told, text in zip(heads, texts, strict=True)]


def told(answers: Sequence[Answer | str]) -> list[str | None]:
    return [one if isinstance(one, str) else one.error or one.heads["letter"].class_ for one in answers]


def test_each_text_is_answered_in_its_place_and_bad_ones_fail_alone() -> None:
    texts = ["aaa", "b!", "", "c", "d" * 9, "e" * 11, None, "f?", "s"]
    found = Scorer(LetterModel(), max_characters=10).score(texts)
    assert told(found) == [
        *["a", "the engine failed on this text", "is empty", "c", "d", "is longer than 10 characters"],
        *["is no text", "the tokenizer failed on this text", None],
    ]


@pytest.mark.parametrize("poisoned", range(32))
def test_of_32_texts_the_poisoned_one_fails(poisoned: int) -> None:
    found = told(Scorer(LetterModel(), 10).score(["!" if index == poisoned else "a" for index in range(32)]))
    assert found.pop(poisoned) == "the engine failed on this text"
    assert found == ["a"] * 31


def test_a_broken_engine_is_no_block_of_errors() -> None:
    assert told(Scorer(LetterModel(), 10).score(["!", "!!"])) == ["the engine failed on this text"] * 2
    with pytest.raises(ScoringError, match="the engine fails on every text"):
        Scorer(LetterModel(is_broken=True), 10).score(["a", "b"])
    assert Scorer(LetterModel(is_broken=True), 10).score(["", None]) == ["is empty", "is no text"]


def test_an_engine_that_breaks_in_the_middle_of_a_block_is_no_error_of_the_rows_behind() -> None:
    class Breaks(LetterModel):
        def compute(self, texts: Sequence[TokenizedText]) -> list[Answer]:
            # As a GPU does for good after an illegal access.
            self.is_broken = len(self.batches) >= 3
            return super().compute(texts)

    assert told(Scorer(Breaks(), 10).score(["a" * 8] * 3)) == ["a"] * 3
    with pytest.raises(ScoringError, match="the engine fails on every text"):
        Scorer(Breaks(), 10).score(["a" * 8] * 5)


def test_batches_are_of_similar_length_and_bounded() -> None:
    model = LetterModel()
    Scorer(model, 100).score(["a" * length for length in (1, 9, 2, 4, 1, 3)])
    assert model.batches == [[9], [4, 3], [2, 1, 1]]
    assert list(divide({7: 3, 8: 3, 9: 2}, 8, pads=False)) == [[7, 8, 9]]
    assert list(divide({7: 3, 8: 3, 9: 2}, 8, pads=True)) == [[7, 8], [9]]
    assert list(divide({}, 8, pads=True)) == []
    model = LetterModel()
    Scorer(model, 100, batch_tokens=4).score(["a"] * 8)
    assert model.batches == [[1] * 4] * 2


def test_texts_are_made_as_training_makes_them() -> None:
    rows = pa.table({"title": ["a", None, "b", " "], "n": [1, 2, None, None], "many": [["x"], [], None, None]})
    # A row without anything in it is no example in training either.
    assert make_texts(rows, None, "{title}: {n}") == ["a: 1", ": 2", "b: ", ""]
    assert make_texts(rows, "n", "{title}") == ["1", "2", "", ""]
    assert make_texts(rows, "many", "{title}") == [None, None, "", ""]


def test_answers_are_the_predictors_own(tiny_checkpoint: Path) -> None:
    predictor = Predictor.load(tiny_checkpoint, 3)
    texts = ["nurse", "the sales driver and the teacher", "x " * 200, ""]
    heads = {head.name: head.classes for head in predictor.manifest.heads}
    rows = pa.table({"id": [1, 2, 3, 4]})
    table = answered(rows, Scorer(predictor, 1_000).score(texts), 3, answer_schema(heads, with_scores=True))
    alone = [predictor.compute(predictor.tokenize([text]))[0] for text in texts[:3]]
    assert table.column_names == [
        *["id", "category", "category_probability", "category_scores", "education", "education_probability", "education_scores"],
        *["tokens", "truncated", "version", "error"],
    ]
    for row, answer in zip(table.to_pylist()[:3], alone, strict=True):
        assert (row["tokens"], row["truncated"], row["version"], row["error"]) == (answer.tokens, answer.truncated, 3, None)
        for head in heads:
            assert row[head] == answer.heads[head].class_
            assert row[f"{head}_scores"] == pytest.approx(list(answer.heads[head].scores.values()), abs=1e-5)
    failed = dict.fromkeys(table.column_names) | {"id": 4, "version": 3, "error": "is empty"}
    assert table.to_pylist()[3] == failed


def test_a_head_that_abstains_is_null() -> None:
    schema = answer_schema({"letter": ["a", "b"]}, with_scores=False)
    (row,) = answered(pa.table({"id": [1]}), Scorer(LetterModel(), 10).score(["s"]), 1, schema).to_pylist()
    assert row == {"id": 1, "letter": None, "letter_probability": 0.5, "tokens": 1, "truncated": False, "version": 1, "error": None}
