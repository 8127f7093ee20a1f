"""Which words an answer comes from."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.answerer import Answerer
from serving.errors import InvalidFields, ServingError
from serving.explaining import MOST_SPANS, ExplainRequest, Span, find_spans, weigh, without_each
from serving.follower import Follower
from serving.messages import Answer, HeadAnswer
from serving.predictor import Predictor, TokenizedText
from serving.settings import ServingSettings
from training.data.tokens import Tokenizer


def test_words_are_spans() -> None:
    text = " Nurse,  for our\nward "
    spans = find_spans(text)
    assert [text[span.begin : span.end] for span in spans] == ["Nurse,", "for", "our", "ward"]
    assert without_each(text, spans[:2]) == ["   for our\nward ", " Nurse,   our\nward "]
    assert find_spans(" \n") == []


@settings(deadline=None)
@given(st.text(alphabet="ab \n", max_size=600), st.integers(1, 9))
def test_spans_hold_every_word_once_and_are_few(text: str, most: int) -> None:
    spans = find_spans(text, most)
    assert len(spans) <= most
    assert " ".join(text[span.begin : span.end] for span in spans).split() == text.split()


def told(**scores: float) -> Answer:
    head = HeadAnswer(**{"class": None}, probability=max(scores.values()), scores=scores, abstained=True)
    return Answer(heads={"category": head}, tokens=3, truncated=False)


def test_a_weight_is_what_the_class_loses_without_the_span() -> None:
    found = weigh(told(sales=0.25, nurse=0.75), [told(sales=0.75, nurse=0.25), told(sales=0.2, nurse=0.8)])
    assert (found["category"].class_, found["category"].probability) == ("nurse", 0.75)
    assert found["category"].weights == [0.5, -0.05]


class Versions:
    """A registry with one version."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resolve(self, reference: str | int, /) -> int:
        return 1

    def fetch(self, version: int, target: Path, /) -> Path:
        return self.folder


def explain(checkpoint: Path, text: str, predictor: type[Predictor] = Predictor) -> Any:
    async def main() -> Any:
        answerer = Answerer(ServingSettings(), Follower(Versions(checkpoint), 1, predictor.load))
        await answerer.start()
        try:
            return (await answerer.explain(ExplainRequest(text=text))).explanation
        finally:
            await answerer.stop()

    return asyncio.run(main())


def test_weights_are_those_of_the_texts_without_the_words(tiny_checkpoint: Path) -> None:
    text = "the nurse and the driver"
    found = explain(tiny_checkpoint, text)
    predictor = Predictor.load(tiny_checkpoint, 1)
    whole, *others = predictor.compute(predictor.tokenize([text, *without_each(text, found.spans)]))
    assert [text[span.begin : span.end] for span in found.spans] == text.split()
    for head, explained in found.heads.items():
        assert explained.class_ == whole.heads[head].class_
        expected = [whole.heads[head].probability - (other.heads[head].scores or {})[explained.class_] for other in others]
        assert explained.weights == pytest.approx(expected, abs=1e-5)
        assert any(explained.weights)
    assert (found.version, found.method, found.tokens, found.truncated) == (1, "occlusion", 7, False)


def test_only_what_is_read_is_left_out(tiny_checkpoint: Path) -> None:
    # Of two hundred words of one token 62 are read, beside the special tokens.
    found = explain(tiny_checkpoint, "nurse " * 200)
    assert (len(found.spans), found.spans[-1], found.truncated, found.tokens) == (62, Span(begin=366, end=371), True, 64)
    assert explain(tiny_checkpoint, "a" * 90).spans == [Span(begin=0, end=62)]
    assert len(find_spans("a " * 200)) == 50 <= MOST_SPANS


def test_a_text_that_cannot_be_explained_is_said(tiny_checkpoint: Path) -> None:
    with pytest.raises(InvalidFields, match=r"^text: is empty"):
        explain(tiny_checkpoint, " ")

    class Breaking(Predictor):
        def compute(self, texts: Any) -> Any:
            if any(len(text) == 3 for text in texts if isinstance(text, TokenizedText)):
                raise RuntimeError
            return super().compute(texts)

    # What is left of a text is none of the caller's, and has no number.
    with pytest.raises(ServingError, match=r"^the engine failed on this text without one of its words$"):
        explain(tiny_checkpoint, "nurse nurse", Breaking)
    with pytest.raises(ServingError, match=r"^the engine failed on this text$"):
        explain(tiny_checkpoint, "nurse", Breaking)


def test_a_tokenizer_that_cuts_the_beginning_reads_all(make_encoder: Callable[..., Path]) -> None:
    from transformers import AutoTokenizer

    folder = make_encoder()
    assert Tokenizer(folder, 4).reads("the nurse and the") == len("the nurse")
    AutoTokenizer.from_pretrained(str(folder), truncation_side="left").save_pretrained(str(folder))
    assert Tokenizer(folder, 4).reads("the nurse and the") == len("the nurse and the")
