"""What word pieces say by themselves: held out from those who learned it, summed alike with padding and without, added."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse import diags
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoConfig

from training.data.labels import MISSING
from training.data.tokens import TokenTable, make_token_table, pad
from training.fit_settings import FitSettings
from training.fitting import piece_counts, word_weights
from training.fitting.piece_counts import count_both, count_pieces
from training.fitting.population import Candidate, Question, known, train_population
from training.fitting.word_weights import Asked, WordWeights, find_word_weights
from training.network.inputs import ScoredInputs, TokenInputs
from training.network.letters import spell
from training.network.model import TwoHeadBert, make_config
from training.network.packed import stream_rows
from training.network.word_pieces import WordPieces

VOCABULARY, CLASSES = 60, 3
# Pieces without letters.
MUTE = spell([""] * VOCABULARY)
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
    weights = find_word_weights(table, [Asked("job", CLASSES, labels, **changes)], folds(len(labels)), MUTE, 0)
    assert weights is not None
    return weights


def module_of(weights: WordWeights) -> WordPieces:
    return weights.module(MUTE, {"job": slice(0, CLASSES)})


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
    assert not {BEGIN, END} & set(weights.pieces.ids.tolist())
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


def test_a_copy_of_a_text_that_was_learned_from_is_held_out_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    table, labels = texts(120, 0)
    twice = table.take(np.tile(np.arange(120), 2))
    monkeypatch.setattr(word_weights, "_MOST_LEARNED", 100)
    weights = find_word_weights(twice, [Asked("job", CLASSES, np.tile(labels, 2))], np.tile(folds(120), 2), MUTE, 0)
    assert weights is not None
    first, second = np.split(weights.heads["job"].held_out, 2)
    np.testing.assert_array_equal(first, second)


def test_where_there_are_too_many_weights_the_rarest_pieces_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    table, labels = texts(300, 0)
    monkeypatch.setattr(word_weights, "_MOST_WEIGHTS", 20 * CLASSES + 1)
    weights = found(table, labels)
    has_weights = np.abs(weights.heads["job"].weights).max(axis=1) > 0
    having = np.bincount(np.concatenate([np.unique(table[place]) for place in range(len(table))]), minlength=VOCABULARY)
    standing_in = having[weights.pieces.ids]
    assert has_weights.sum() == 20
    assert standing_in[has_weights].min() >= standing_in[~has_weights].max()


def test_where_texts_times_classes_are_too_many_some_texts_are_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    table, labels = texts(300, 0)
    seen: list[int] = []
    regress = word_weights._regress
    monkeypatch.setattr(word_weights, "_regress", lambda head, way, *drawn: (seen.append(len(drawn[1])), regress(head, way, *drawn))[1])
    found(table, labels)
    assert max(seen) == 300
    seen.clear()
    tokens = int(count_pieces(table, len(MUTE)).having.sum())
    monkeypatch.setattr(word_weights, "_MOST_WORK", tokens * CLASSES // 3)
    found(table, labels)
    assert max(seen) == 100


def test_of_very_many_texts_the_same_are_drawn_as_ever_and_who_takes_fewer_takes_of_these(monkeypatch: pytest.MonkeyPatch) -> None:
    table, labels = texts(300, 0)
    draw, drawn = word_weights._draw, list[word_weights._Drawn]()

    def drawing(*asked: Any) -> Any:
        drawn.append(draw(*asked))
        return drawn[-1]

    monkeypatch.setattr(word_weights, "_draw", drawing)
    monkeypatch.setattr(word_weights, "_MOST_LEARNED", 150)
    found(table, labels)
    expected = np.random.default_rng(0).choice(np.arange(300), 150, replace=False)
    for one in drawn:
        np.testing.assert_array_equal(one.texts, np.sort(expected))
    drawn.clear()
    tokens = int(count_pieces(table, len(MUTE)).having.sum())
    monkeypatch.setattr(word_weights, "_MOST_WORK", tokens * CLASSES // 6)
    found(table, labels)
    for one in drawn:
        assert 1 < len(one.texts) <= 50
        np.testing.assert_array_equal(one.texts, np.sort(expected[: len(one.texts)]))


def test_words_that_say_nothing_are_left_out() -> None:
    table, labels = texts(300, 0, tells=False)
    by_chance = [np.random.default_rng(seed).permutation(labels) for seed in range(6)]
    weights = [find_word_weights(table, [Asked("job", CLASSES, one)], folds(300), MUTE, 0) for one in by_chance]
    # What chance makes of six tables may look like something once or twice.
    assert sum(one is None for one in weights) >= 4
    single = find_word_weights(table, [Asked("job", CLASSES, np.zeros(300, np.int64))], folds(300), MUTE, 0)
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


# Words of one to three pieces of a letter or two: what a class has in common goes over their borders.
LETTERS = [" ", " ", *(f" {one}" for one in "abcdefgh"), *"abcdefgh", *(a + b for a in "abcd" for b in "efgh")]
MUTE_LETTERS = spell([""] * len(LETTERS))
ENDINGS = ("aec", "bfd", "cga")


def written(count: int, seed: int) -> tuple[TokenTable, NDArray[np.int64]]:
    """Make texts of one word whose last letters tell the class, cut into pieces in any way."""
    chance, rows = np.random.default_rng(seed), []
    pieces = {piece: place for place, piece in enumerate(LETTERS) if place > 1}
    labels = np.arange(count) % CLASSES
    for label in labels:
        word = "".join(chance.choice(list("abcdefgh"), 3)) + ENDINGS[label]
        row, at = [0, pieces[f" {word[0]}"]], 1
        while at < len(word):
            size = 2 if word[at : at + 2] in pieces and chance.random() < 0.5 else 1
            row.append(pieces[word[at : at + size]])
            at += size
        rows.append([*row, 1])
    return make_token_table(rows, [len(row) for row in rows]), labels


def test_letters_across_borders_of_pieces_tell_where_pieces_do_not() -> None:
    spelling = spell(LETTERS)
    weights = find_word_weights(written(300, 0)[0], [Asked("job", CLASSES, written(300, 0)[1])], folds(300), spelling, 0)
    assert weights is not None
    assert weights.reads_letters
    assert weights.heads["job"].score > 0.95
    table, labels = written(300, 1)
    module = weights.module(spelling, {"job": slice(0, CLASSES)})
    said = module.of_stream(torch.from_numpy(table.ids).long(), torch.from_numpy(table.offsets))
    assert (said.numpy().argmax(axis=1) == labels).mean() > 0.95
    rows = [table[place] for place in range(len(table))]
    assert torch.allclose(module.of_padded(*(torch.from_numpy(one) for one in pad(rows, 0))), said, atol=1e-5)


def test_a_head_that_weighs_no_letters_is_not_changed_by_one_that_does() -> None:
    spelling = spell(LETTERS)
    table, labels = written(300, 0)
    # This one hangs on whether a piece is there, so that letters are no better.
    other = np.array([int(LETTERS.index("ae") in row) for row in (table[place] for place in range(300))])
    asked = [Asked("ending", CLASSES, labels), Asked("other", 2, other)]
    both = find_word_weights(table, asked, folds(300), spelling, 0)
    alone = find_word_weights(table, asked[1:], folds(300), MUTE_LETTERS, 0)
    assert both is not None
    assert alone is not None
    assert both.heads["ending"].run_weights is not None
    assert both.heads["other"].run_weights is None
    ids, begins = torch.from_numpy(table.ids).long(), torch.from_numpy(table.offsets)
    said = both.module(spelling, {"ending": slice(0, 3), "other": slice(3, 5)}).of_stream(ids, begins)[:, 3:]
    assert torch.allclose(said, alone.module(MUTE_LETTERS, {"other": slice(0, 2)}).of_stream(ids, begins), atol=1e-4)


def test_the_sum_over_letters_is_a_regression_over_their_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of several parts.
    monkeypatch.setattr("training.fitting.piece_counts._TOKENS_TOGETHER", 300)
    table, labels = written(150, 0)
    spelling = spell(LETTERS)
    weights = find_word_weights(table, [Asked("job", CLASSES, labels)], folds(150), spelling, 0)
    assert weights is not None
    runs_of = CountVectorizer(analyzer="char_wb", ngram_range=(2, 5)).build_analyzer()
    words = ["".join(LETTERS[piece] for piece in table[place]).strip() for place in range(150)]
    # Some runs share a number, and so a weight.
    numbers = [[f"run {spell([run]).runs[-1]}" for run in runs_of(word)] for word in words]
    pieces = [[f"piece {piece}" for piece in table[place][1:-1]] for place in range(150)]
    counter = CountVectorizer(analyzer=lambda row: row, min_df=2)
    found = counter.fit_transform([one + other for one, other in zip(pieces, numbers, strict=True)])
    having = np.asarray((found > 0).sum(axis=0)).ravel()
    rarities = np.where(having < 150, np.log(151 / (1 + having)), 0.0)
    vectors = diags(1 / np.sqrt(found @ rarities**2)) @ found @ diags(rarities)
    model = LogisticRegression(C=30.0, class_weight="balanced", max_iter=1000).fit(vectors, labels)
    said = weights.module(spelling, {"job": slice(0, CLASSES)}).of_stream(
        torch.from_numpy(table.ids).long(), torch.from_numpy(table.offsets)
    )
    expected = model.decision_function(vectors)
    factor = float((said.numpy() * expected).sum() / (expected * expected).sum())
    assert np.abs(said.numpy() - factor * expected).max() < 1e-3 * np.abs(expected).max()


def letters_found(table: TokenTable, labels: NDArray[np.int64]) -> WordWeights:
    weights = find_word_weights(table, [Asked("job", CLASSES, labels)], folds(len(labels)), spell(LETTERS), 0)
    assert weights is not None
    return weights


def test_letters_are_counted_in_a_table_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    table, labels = written(300, 0)
    work = int(count_both(table, spell(LETTERS)).having.sum()) * CLASSES
    draw, drawn = word_weights._draw, list[word_weights._Drawn]()

    def drawing(*asked: Any) -> Any:
        drawn.append(draw(*asked))
        return drawn[-1]

    monkeypatch.setattr(word_weights, "_draw", drawing)
    letters_found(table, labels)
    every, terms = max(len(one.texts) for one in drawn), max(len(one.terms) for one in drawn)
    # One text more than may be learned from, or one weight: a little less is learned, and not everything forgotten.
    for bound, most in (("_MOST_WORK", work - 1), ("_MOST_WEIGHTS", CLASSES * 150), ("_MOST_NUMBERS", work // CLASSES // 2)):
        drawn.clear()
        with monkeypatch.context() as patched:
            patched.setattr(word_weights, bound, most)
            weights = letters_found(table, labels)
        # The bound bites, on what is widest.
        widest = max(drawn, key=lambda one: len(one.terms))
        assert (len(widest.terms) == 150 < terms) if bound == "_MOST_WEIGHTS" else (len(widest.texts) < every == 300), bound
        assert weights.reads_letters, bound
        assert weights.heads["job"].score > 0.95, bound


def test_counts_are_alike_whether_they_are_kept_or_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    table, labels = written(150, 0)
    whole, kept = count_both(table, spell(LETTERS)), letters_found(table, labels)
    monkeypatch.setattr(piece_counts, "_TOKENS_TOGETHER", 300)
    for most in (0, 1_500):
        monkeypatch.setattr(piece_counts, "_MOST_KEPT", most)
        again = count_both(table, spell(LETTERS))
        assert len(list(again.parts())) > 1
        np.testing.assert_array_equal(again.terms.ids, whole.terms.ids)
        some = np.array([0, 7, 60, 149])
        # Not alike: the same, for they are counts.
        np.testing.assert_array_equal(again.vectors(some).toarray(), whole.vectors(some).toarray())
        np.testing.assert_allclose(letters_found(table, labels).heads["job"].held_out, kept.heads["job"].held_out, atol=1e-4)


def test_what_was_judged_is_learned_again_in_the_same_way() -> None:
    spelling, (table, labels) = spell(LETTERS), written(300, 0)
    judged = letters_found(table, labels).heads["job"]
    by_chance = np.random.default_rng(0).permutation(labels)
    asked = [Asked("job", CLASSES, by_chance), Asked("other", CLASSES, labels)]
    # Afresh, the one would be left out and the other weighed.
    afresh = find_word_weights(table, asked, folds(300), spelling, 0)
    assert afresh is not None
    assert set(afresh.heads) == {"other"}
    again = find_word_weights(table, asked, folds(300), spelling, 0, {"job": judged})
    assert again is not None
    assert set(again.heads) == {"job"}
    assert again.heads["job"].run_weights is not None
    # And one that had no letters gets none, however good they are.
    without = replace(judged, run_weights=None, inverse_penalty=1.0)
    plain = find_word_weights(table, [Asked("job", CLASSES, labels)], folds(300), spelling, 0, {"job": without})
    assert plain is not None
    assert not plain.reads_letters
    assert plain.heads["job"].inverse_penalty == 1.0
    assert find_word_weights(table, [Asked("job", CLASSES, labels)], folds(300), spelling, 0, {}) is None


def test_scores_are_judged_as_they_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    table, labels = written(300, 0)
    plain = letters_found(table, labels).heads["job"]
    measure, seen = word_weights._score, []
    monkeypatch.setattr(word_weights, "_score", lambda head, scores, shown: (seen.append(scores), measure(head, scores, shown))[1])
    again = letters_found(table, labels).heads["job"]
    # What was scored is what a model is given; each of three ways was.
    assert len(seen) == 3
    assert any(np.array_equal(one, again.held_out) for one in seen)
    assert again.score == plain.score


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
