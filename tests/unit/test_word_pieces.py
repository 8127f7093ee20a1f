"""What word pieces say by themselves: held out from those who learned it, summed alike with padding and without, added."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from transformers import AutoConfig

from training.data.labels import MISSING
from training.data.tokens import TokenTable, make_token_table, pad
from training.fit_settings import FitSettings
from training.fitting.population import Candidate, Question, known, train_population
from training.fitting.word_weights import Asked, WordWeights, find_word_weights
from training.network.inputs import ScoredInputs, TokenInputs
from training.network.model import TwoHeadBert, make_config
from training.network.packed import stream_rows
from training.network.word_pieces import WordPieces

VOCABULARY, CLASSES = 60, 3
BEGIN, END = 1, 2


def texts(count: int, seed: int, tells: bool = True) -> tuple[TokenTable, NDArray[np.int64]]:
    """Make texts between marks of beginning and end; pieces 10 to 12 tell the class, which is random where they tell nothing."""
    chance = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    rows = []
    for label in labels:
        said = [10 + label] if tells and chance.random() < 0.8 else []
        rows.append([BEGIN, *chance.permutation([*said, *chance.integers(20, VOCABULARY, chance.integers(1, 8))]), END])
    return make_token_table(rows, [len(row) for row in rows]), labels


def folds(count: int) -> NDArray[np.int64]:
    return np.arange(count) // CLASSES % 4


def found(table: TokenTable, labels: NDArray[np.int64], **changes: Any) -> WordWeights:
    weights = find_word_weights(table, [Asked("job", CLASSES, labels, **changes)], folds(len(labels)), VOCABULARY, 0)
    assert weights is not None
    return weights


def module_of(weights: WordWeights) -> WordPieces:
    module = WordPieces(VOCABULARY, CLASSES)
    weights.fill(module, {"job": slice(0, CLASSES)})
    return module


def scores(weights: WordWeights, table: TokenTable) -> NDArray[np.float32]:
    said: NDArray[np.float32] = module_of(weights).of_stream(torch.from_numpy(table.ids).long(), torch.from_numpy(table.offsets)).numpy()
    return said


def test_words_that_tell_the_class_are_found() -> None:
    weights = found(*texts(300, 0))
    table, labels = texts(300, 1)
    # Four in five texts have a word that tells.
    assert (scores(weights, table).argmax(axis=1) == labels).mean() > 0.8
    assert weights.heads["job"].score > 0.8


def test_the_sum_is_a_logistic_regression_over_tfidf() -> None:
    table, labels = texts(200, 0)
    counts = np.zeros((len(table), VOCABULARY))
    for place in range(len(table)):
        np.add.at(counts[place], table[place], 1)
    having = (counts > 0).sum(axis=0)
    rarities = np.where((having >= 2) & (having < len(table)), np.log((1 + len(table)) / (1 + having)), 0.0)
    # Where a text names no piece twice, the length is the usual one.
    vectors = counts * rarities / np.sqrt((counts * rarities**2).sum(axis=1, keepdims=True))
    weights = found(table, labels)
    said, logits = scores(weights, table), []
    for penalty in (1.0, 10.0):
        model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=1000).fit(vectors, labels)
        logits.append(model.decision_function(vectors))
    # Up to the one factor by which held-out scores are trusted.
    factors = [float((said * one).sum() / (one * one).sum()) for one in logits]
    assert min(np.abs(said - factor * one).max() for factor, one in zip(factors, logits, strict=True)) < 0.05


def test_marks_that_stand_in_every_text_weigh_nothing() -> None:
    weights = found(*texts(60, 0))
    assert not {BEGIN, END} & set(weights.pieces.tolist())
    module = module_of(weights)
    assert not module.weights[[0, BEGIN, END]].any()
    # A text of which nothing is known gets the constants.
    alone = module.of_stream(torch.tensor([BEGIN, END]), torch.tensor([0, 2]))
    assert torch.equal(alone[0], module.constants)


def test_held_out_scores_are_of_who_has_not_learned_from_the_text() -> None:
    table, labels = texts(120, 0)
    other = labels.copy()
    own = folds(len(labels)) == 1
    other[own] = (other[own] + 1) % CLASSES
    first, second = (found(table, one).heads["job"] for one in (labels, other))
    # What a fold's own labels are changes how far scores are trusted, not what they say.
    said, again = (one.held_out[own] for one in (first, second))
    factor = float((said * again).sum() / (again * again).sum())
    assert np.abs(said - factor * again).max() < 1e-3
    assert np.abs(first.held_out[~own] - factor * second.held_out[~own]).max() > 0.05


def test_words_that_say_nothing_are_left_out() -> None:
    table, labels = texts(300, 0, tells=False)
    chance = np.random.default_rng(5)
    weights = find_word_weights(table, [Asked("job", CLASSES, chance.permutation(labels))], folds(300), VOCABULARY, 0)
    assert weights is None or np.abs(weights.heads["job"].held_out).max() < 0.3
    single = find_word_weights(table, [Asked("job", CLASSES, np.zeros(300, np.int64))], folds(300), VOCABULARY, 0)
    assert single is None


def test_texts_without_a_label_are_scored_and_a_class_without_texts_is_never_the_answer() -> None:
    table, labels = texts(90, 0)
    labels = np.where(labels == 2, MISSING, labels)
    weights = found(table, labels)
    held_out = weights.heads["job"].held_out
    assert np.abs(held_out[labels == MISSING]).max() > 0
    assert not (scores(weights, texts(90, 1)[0]).argmax(axis=1) == 2).any()


def test_very_many_texts_are_learned_from_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.fitting.word_weights._MOST_LEARNED", 150)
    table, labels = texts(300, 0)
    held_out = found(table, labels).heads["job"].held_out
    assert (held_out.argmax(axis=1) == labels).mean() > 0.75


@pytest.fixture
def model(make_encoder: Callable[..., Path]) -> TwoHeadBert:
    heads: list[dict[str, Any]] = [
        {"name": "job", "classes": ["a", "b", "c"], "hidden_size": 0, "dropout": 0.0, "word_pieces": True},
        {"name": "plain", "classes": ["x", "y"], "hidden_size": 0, "dropout": 0.0},
        {"name": "level", "classes": ["x", "y", "z"], "hidden_size": 4, "dropout": 0.0, "loss": "corn", "word_pieces": True},
    ]
    torch.manual_seed(0)
    made = TwoHeadBert(make_config(AutoConfig.from_pretrained(str(make_encoder("bert"))), "mean", heads)).eval()
    assert made.word_pieces is not None
    torch.nn.init.uniform_(made.word_pieces.weights, 0.0, 1.0)
    torch.nn.init.normal_(made.word_pieces.constants)
    model: TwoHeadBert = made
    return model


@torch.no_grad()
def test_scores_are_added_with_padding_and_without(model: TwoHeadBert) -> None:
    assert model.word_pieces is not None
    rows = [np.array(row, np.int32) for row in ([2, 5, 6, 3], [2, 7, 3], [2, 5, 5, 8, 9, 3])]
    ids, mask = (torch.from_numpy(one) for one in pad(rows, 0))
    packed, (stream, packing) = model(ids, mask).logits, stream_rows(rows, torch.device("cpu"))
    streamed = model(stream, packing=packing).logits
    said = model.word_pieces.of_padded(ids, mask)
    pooled = model(ids, mask).pooled
    given = model(pooled=pooled, piece_scores=said).logits
    for name, head in zip(model.head_names, model.heads, strict=True):
        expected = head(pooled) + said[:, model.scored[name]] if name in model.scored else head(pooled)
        for logits in (packed, streamed, given):
            assert torch.allclose(logits[name], expected, atol=1e-5)
    assert model.scored == {"job": slice(0, 3), "level": slice(3, 6)}
    with pytest.raises(ValueError, match="job, level read word pieces too: give input_ids, or piece_scores"):
        model(pooled=pooled)


def test_they_are_saved_do_not_train_and_heads_begin_with_them(model: TwoHeadBert, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = TwoHeadBert.from_pretrained(tmp_path).state_dict()
    assert {name for name in again if "word_pieces" in name} == {"word_pieces.weights", "word_pieces.constants"}
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    assert not [name for name, _ in model.named_parameters() if "word_pieces" in name]
    model.begin_with_scores()
    weights = dict(model.named_parameters())
    assert not weights["heads.0.output.weight"].any()
    assert weights["heads.1.output.weight"].any()


def test_inputs_bring_scores_along() -> None:
    table, _ = texts(6, 0)
    given = torch.arange(18.0).view(6, 3)
    inputs = ScoredInputs(TokenInputs(table, 0), given)
    batch = inputs.batch(np.array([4, 1]))
    assert torch.equal(batch["piece_scores"], given[[4, 1]])
    assert batch["input_ids"].shape[0] == 2
    assert np.array_equal(inputs.lengths, table.lengths)


def test_a_head_that_can_add_nothing_adds_nothing() -> None:
    _, labels = texts(120, 0)
    noise = torch.randn(120, 8, generator=torch.Generator().manual_seed(0))
    said = 6 * np.eye(CLASSES, dtype=np.float32)[labels]
    features = known(noise, labels, folds(120), said)
    (outcome,) = train_population(
        [Candidate(0, 0.0, "softmax", 0.03)], Question("job", CLASSES), features, FitSettings(epochs=3, patience=2)
    )
    assert (outcome.score, outcome.epoch) == (1.0, 0)
    assert not outcome.state["output.weight"].any()
