import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serving.engines.torch_engine import TorchEngine
from serving.errors import ServingError
from serving.messages import Windows
from serving.predictor import Predictor, probabilities
from training.checkpoint import load_model, load_tokenizer
from training.judging.abstention import ALWAYS_ABSTAIN, answered, choose_threshold
from training.manifest import read_manifest

TEXTS = ["nurse", "the sales driver and the teacher", "x " * 200, "school", "9 a b c d", "master " * 20]


def expected_scores(folder: Path, text: str) -> dict[str, np.ndarray[Any, Any]]:
    """Compute a text alone, straight from the saved model."""
    ids = load_tokenizer(folder, read_manifest(folder)).encode([text])[0]
    with torch.inference_mode():
        logits = load_model(folder)(torch.tensor([ids.tolist()]), torch.ones(1, len(ids), dtype=torch.long)).logits
    return {head: torch.softmax(values[0], dim=-1).numpy() for head, values in logits.items()}


def test_answers_equal_the_saved_model_alone_and_in_a_batch(tiny_checkpoint: Path) -> None:
    predictor = Predictor.load(tiny_checkpoint, 1)
    together = predictor.compute(predictor.tokenize(TEXTS))
    for text, answer in zip(TEXTS, together, strict=True):
        (alone,) = predictor.compute(predictor.tokenize([text]))
        for head, scores in expected_scores(tiny_checkpoint, text).items():
            assert list(answer.heads[head].scores.values()) == pytest.approx(scores, abs=1e-4)
            assert list(alone.heads[head].scores.values()) == pytest.approx(scores, abs=1e-4)
            assert answer.heads[head].probability == pytest.approx(scores.max(), abs=1e-4)
            assert answer.heads[head].class_ == list(answer.heads[head].scores)[scores.argmax()]


def test_tokens_and_truncation(tiny_checkpoint: Path) -> None:
    predictor = Predictor.load(tiny_checkpoint, 1)
    short, long = predictor.compute(predictor.tokenize(["nurse", "x " * 200]))
    assert (short.tokens, short.truncated) == (3, False)
    assert (long.tokens, long.truncated) == (64, True)


def test_classes_keep_the_manifest_order(tiny_checkpoint: Path) -> None:
    predictor = Predictor.load(tiny_checkpoint, 1)
    (answer,) = predictor.compute(predictor.tokenize(["nurse"]))
    assert {head: list(facts.scores) for head, facts in answer.heads.items()} == {
        head.name: list(head.classes) for head in predictor.manifest.heads
    }


def with_facts(predictor: Predictor, **changes: float | None) -> Predictor:
    """Change the facts of the first head."""
    first, *others = predictor.manifest.heads
    predictor.manifest = predictor.manifest.model_copy(update={"heads": (first.model_copy(update=changes), *others)})
    return predictor


def test_a_threshold_that_is_reached_exactly_is_answered(tiny_checkpoint: Path) -> None:
    predictor = Predictor.load(tiny_checkpoint, 1)
    tokens = predictor.tokenize(["nurse"])
    plain = predictor.compute(tokens)[0].heads
    (first, second) = plain
    assert [head.abstained for head in plain.values()] == [None, None]
    told = plain[first].probability
    given = with_facts(predictor, threshold=told).compute(tokens)[0].heads
    assert (given[first].class_, given[first].abstained) == (plain[first].class_, False)
    kept = with_facts(predictor, threshold=told + 1e-6).compute(tokens)[0].heads
    assert (kept[first].class_, kept[first].abstained) == (None, True)
    assert (kept[first].probability, kept[first].scores) == (told, plain[first].scores)
    assert kept[second] == plain[second]
    assert with_facts(predictor, threshold=ALWAYS_ABSTAIN).compute(tokens)[0].heads[first].class_ is None
    assert with_facts(predictor, threshold=0.0).compute(tokens)[0].heads[first].class_ == plain[first].class_


def test_the_threshold_is_of_the_calibrated_probability(tiny_checkpoint: Path) -> None:
    predictor = Predictor.load(tiny_checkpoint, 1)
    tokens = predictor.tokenize(["nurse"])
    name = predictor.manifest.heads[0].name
    told = predictor.compute(tokens)[0].heads[name].probability
    softer = with_facts(predictor, temperature=3.0, threshold=told).compute(tokens)[0].heads[name]
    assert (softer.class_, softer.abstained) == (None, True)
    assert softer.probability < told
    sharper = with_facts(predictor, temperature=0.2, threshold=told).compute(tokens)[0].heads[name]
    assert (sharper.class_ is not None, sharper.abstained) == (True, False)
    assert sharper.probability > told


def test_serving_answers_what_the_threshold_was_chosen_to_answer(tiny_checkpoint: Path) -> None:
    predictor = Predictor.load(tiny_checkpoint, 1)
    head = predictor.manifest.heads[0]
    texts = [f"{word} {letter}" for word in ("nurse", "sales", "driver") for letter in "abcdefgh"]
    tokens = predictor.tokenize(texts)
    found = probabilities(predictor.engine.forward([one.ids for one in tokens])[head.name], 0.7)
    labels = np.arange(len(texts)) % 3
    threshold = choose_threshold(found, labels, coverage=0.5)
    told = [answer.heads[head.name] for answer in with_facts(predictor, temperature=0.7, threshold=threshold).compute(tokens)]
    assert sum(not one.abstained for one in told) == answered(found, labels, threshold)["answered"] == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: {"category": logits["category"]}, "version 1: head 'education' answers with shape None, but must with (4, 4)"),
        (
            lambda logits: logits | {"category": logits["category"][:, :2]},
            "version 1: head 'category' answers with shape (4, 2), but must with (4, 3)",
        ),
        (
            lambda logits: logits | {"category": logits["category"] * np.nan},
            "version 1: head 'category' answers something that is no number",
        ),
    ],
)
def test_warming_finds_an_engine_that_answers_wrong(tiny_checkpoint: Path, change: Any, message: str) -> None:
    predictor = Predictor.load(tiny_checkpoint, 1)
    assert predictor.warm() > 0
    engine = predictor.engine

    class Changed:
        name, device, dtype = engine.name, engine.device, engine.dtype

        def forward(self, rows: Any) -> Any:
            return change(engine.forward(rows))

    predictor.engine = Changed()
    with pytest.raises(ServingError) as caught:
        predictor.warm()
    assert caught.value.message == message


def test_the_engine_says_what_it_runs_on(tiny_checkpoint: Path) -> None:
    engine = TorchEngine(load_model(tiny_checkpoint), pad_id=0)
    assert (engine.name, engine.device != "", engine.dtype in ("float32", "bfloat16")) == ("torch", True, True)


def test_temperature_softens_and_keeps_the_order() -> None:
    logits = np.array([[1.0, 3.0, 2.0], [1000.0, -1000.0, 0.0]], dtype=np.float32)
    plain, soft = probabilities(logits, 1.0), probabilities(logits, 4.0)
    assert plain.sum(axis=1) == pytest.approx([1.0, 1.0])
    assert (plain.argsort(axis=1) == soft.argsort(axis=1)).all()
    assert soft[0].max() < plain[0].max()
    assert plain[0] == pytest.approx(torch.softmax(torch.tensor(logits[0]), dim=-1).numpy(), abs=1e-6)


def test_a_long_text_is_read_in_windows_that_miss_nothing(tiny_checkpoint: Path) -> None:
    predictor = Predictor.load(tiny_checkpoint, 1)
    most = predictor.manifest.max_tokens
    words = ["nurse", "sales", "driver", "a", "b", "c", "d"]
    for count in (1, most - 2, most - 1, 3 * most, 10 * most + 3):
        text = " ".join(words[place * place % 7] for place in range(count))
        windows = [window.ids for window in predictor.cut(text)]
        whole = predictor._tokenizer._ids([text])[0]
        assert max(map(len, windows)) <= most
        assert len(windows) == 1 or min(map(len, windows)) == most
        assert {window[0] for window in windows} == {whole[0]}
        assert {window[-1] for window in windows} == {whole[-1]}
        # Put on each other where they begin, they are the text again, and each overlaps the one before.
        inside, step = most - 2, (most - 2) - (most - 2) // 4
        begins = [min(place * step, max(len(whole) - 2 - inside, 0)) for place in range(len(windows))]
        for begin, window in zip(begins, windows, strict=True):
            assert list(window[1:-1]) == whole[1:-1][begin : begin + inside]
        assert all(later < sooner + inside for sooner, later in itertools.pairwise(begins))
        assert begins[-1] + inside >= len(whole) - 2


@pytest.mark.parametrize("how", ["mean", "max"])
def test_windows_are_pooled_by_their_logits(tiny_checkpoint: Path, how: Any) -> None:
    predictor = Predictor.load(tiny_checkpoint, 1)
    windows = predictor.cut("nurse sales driver " * 40)
    # Other texts of the batch are answered as ever.
    plain = predictor.tokenize(["nurse"])
    *found, answer = predictor.compute([*windows, *plain])
    assert answer == predictor.compute(plain)[0]
    pooled = predictor.pool(found, how, 7)
    assert pooled.windows == Windows(count=len(windows), pooled=how)
    assert (pooled.tokens, pooled.truncated) == (7, False)
    logits = predictor.engine.forward([window.ids for window in windows])
    for head in predictor.manifest.heads:
        taken = logits[head.name].mean(0) if how == "mean" else logits[head.name].max(0)
        expected = probabilities(taken[None], head.temperature)[0]
        assert list(pooled.heads[head.name].scores.values()) == pytest.approx(expected, abs=1e-4)


def test_a_short_text_in_one_window_is_answered_as_ever(tiny_checkpoint: Path) -> None:
    predictor = Predictor.load(tiny_checkpoint, 1)
    (window,), (plain,) = predictor.cut("nurse"), predictor.tokenize(["nurse"])
    assert predictor.pool(predictor.compute([window]), "mean", 3).heads == predictor.compute([plain])[0].heads
