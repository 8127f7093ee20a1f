"""The floor of word counts: what it can learn, what it must say where there is nothing to learn from."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from training.errors import DataError
from training.judging import word_counts
from training.judging.metrics import Labels, Probabilities, log_loss
from training.judging.word_counts import WordCounts, word_count_probabilities
from training.search import winner
from training.search.prepared import Prepared

TEXTS = [f"{job} wanted in {town}" for town in ("Berlin", "Bonn", "Kiel", "Köln") for job in ("nurse", "driver", "teacher")]
LABELS = np.array([0, 1, 2] * 4)


def test_it_learns_words_and_pieces_of_words() -> None:
    known, unseen = word_count_probabilities(TEXTS, LABELS, 3, [TEXTS, ["Nurses!", "truckdriver", "TEACHERS in Ulm"]])
    assert known.shape == (12, 3)
    assert known.dtype == np.float32
    assert (known.argmax(axis=1) == LABELS).all()
    assert unseen.argmax(axis=1).tolist() == [0, 1, 2]
    assert known.sum(axis=1) == pytest.approx(np.ones(12), abs=1e-6)


def test_it_says_the_same_each_time_and_counts_once_for_all_heads() -> None:
    counts = WordCounts(TEXTS, [TEXTS])
    first, second = counts.probabilities(LABELS, 3)[0], counts.probabilities(LABELS // 2, 2)[0]
    assert np.array_equal(first, word_count_probabilities(TEXTS, LABELS, 3, [TEXTS])[0])
    assert np.array_equal(first, counts.probabilities(LABELS, 3)[0])
    assert second.shape == (12, 2)


def test_texts_without_a_label_teach_nothing_about_classes() -> None:
    labels = np.where(np.arange(12) < 6, LABELS, -1)
    (found,) = word_count_probabilities(TEXTS, labels, 3, [TEXTS[6:]])
    assert (found.argmax(axis=1) == LABELS[6:]).all()
    wrong = np.where(np.arange(12) < 6, LABELS, 2 - LABELS)
    assert not np.allclose(found, word_count_probabilities(TEXTS, wrong, 3, [TEXTS[6:]])[0])


def test_a_class_without_a_training_text_has_probability_zero() -> None:
    (found,) = word_count_probabilities(TEXTS, LABELS + (LABELS > 0), 5, [TEXTS])
    assert (found[:, [1, 4]] == 0).all()
    assert (found.argmax(axis=1) == LABELS + (LABELS > 0)).all()
    assert found.sum(axis=1) == pytest.approx(np.ones(12), abs=1e-6)


def test_two_classes() -> None:
    (found,) = word_count_probabilities(TEXTS, (LABELS > 0).astype(np.int64), 2, [["nurse", "driver"]])
    assert found.argmax(axis=1).tolist() == [0, 1]


def test_rare_classes_weigh_as_much_as_common_ones() -> None:
    # The words say nothing, so that only how common the classes are is left.
    (found,) = word_count_probabilities(["nurse"] * 32, np.array([0, 0] + [1] * 30), 2, [["nurse"]])
    assert found[0, 0] == pytest.approx(0.5, abs=0.01)


def floor_of(counts: WordCounts, metric: str, training: Labels, validation: Labels) -> Probabilities:
    settings = SimpleNamespace(tuning=SimpleNamespace(score_metrics={"job": metric}), heads={"job": SimpleNamespace(ordered=False)})
    dataset = SimpleNamespace(
        training=SimpleNamespace(labels={"job": training}), validation=SimpleNamespace(labels={"job": validation}), classes={"job": "ab"}
    )
    return winner._floor(cast("Prepared", SimpleNamespace(settings=settings, dataset=dataset)), counts, "job")


def test_the_floor_weighs_classes_as_is_best_for_the_metric() -> None:
    # Where "nurse" stands most texts are of the second class, but most texts of the first class have it.
    texts = ["nurse x"] * 2 + ["cook x"] + ["nurse x"] * 4 + ["cook x"] * 32
    labels = np.array([0] * 3 + [1] * 36)
    counts = WordCounts(texts, [texts, ["nurse"]])
    assert floor_of(counts, "macro_f1", labels, labels)[0].argmax() == 0
    assert floor_of(counts, "accuracy", labels, labels)[0].argmax() == 1
    # With other validation texts it is the other way.
    assert floor_of(counts, "accuracy", labels, np.array([0] * 7 + [1] * 32))[0].argmax() == 0


def test_a_log_loss_of_the_floor_has_a_temperature_too() -> None:
    # Of validation texts a third is of another class than it seems.
    labels = (LABELS > 0).astype(np.int64)
    truth = np.where(np.arange(len(TEXTS)) % 3 == 1, 0, labels)
    counts = WordCounts(TEXTS, [TEXTS, TEXTS])
    likely, plain = (floor_of(counts, metric, labels, truth) for metric in ("log_loss", "macro_f1"))
    assert log_loss(truth, likely) < log_loss(truth, plain) - 0.1


@pytest.mark.parametrize(("labels", "expected"), [([-1, -1, -1], [1 / 3, 1 / 3, 1 / 3]), ([-1, 1, 1], [0.0, 1.0, 0.0])])
def test_a_head_with_too_few_labels_answers_what_is_known(labels: list[int], expected: list[float]) -> None:
    (found,) = word_count_probabilities(TEXTS[:3], np.array(labels), 3, [["nurse", "driver"]])
    assert found == pytest.approx(np.array([expected, expected]))


def test_texts_of_nothing_but_signs_and_unknown_words() -> None:
    (found,) = word_count_probabilities(["!", "?"], np.array([0, 1]), 2, [["!", "?", "日本語"]])
    assert found.argmax(axis=1)[:2].tolist() == [0, 1]
    assert np.isfinite(found).all()


def test_blank_texts_and_empty_splits() -> None:
    with pytest.raises(DataError, match="the training texts have no words"):
        word_count_probabilities([" ", ""], np.array([0, 1]), 2, [["nurse"]])
    for labels in (LABELS, np.zeros(12, dtype=np.int64)):
        known, nothing = word_count_probabilities(TEXTS, labels, 3, [TEXTS, []])
        assert (known.shape, nothing.shape) == ((12, 3), (0, 3))


def test_words_of_one_text_only_do_not_count_where_others_remain() -> None:
    texts = [*TEXTS, "nurse zebra"]
    (found,) = word_count_probabilities(texts, np.append(LABELS, 2), 3, [["zzz", "zebra"]])
    assert found[0] == pytest.approx(found[1], abs=0.05)


def test_where_classes_are_very_many_common_features_and_some_texts_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    fit = LogisticRegression.fit
    monkeypatch.setattr(
        LogisticRegression, "fit", lambda self, vectors, *rest: (shapes.append(vectors.shape), fit(self, vectors, *rest))[1]
    )
    counts = WordCounts(TEXTS * 4, [TEXTS])
    labels = np.tile(LABELS, 4)
    counts.probabilities(labels, 3)
    assert (shapes[0][0], counts.notes) == (48, [])
    monkeypatch.setattr(word_counts, "_MOST_WEIGHTS", 3 * 40)
    (few,) = counts.probabilities(labels, 3)
    assert shapes[1] == (48, 40)
    assert (few.argmax(axis=1) == LABELS).all()
    assert "for 3 classes it learned 40 of" in counts.notes[0]
    assert "from 48 of 48 texts" in counts.notes[0]
    monkeypatch.setattr(word_counts, "_MOST_WEIGHTS", 10**9)
    monkeypatch.setattr(word_counts, "_MOST_WORK", counts._training.nnz * 3 // 2)
    counts.probabilities(labels, 3)
    assert shapes[2] == (24, shapes[0][1])
    assert "from 24 of 48 texts" in counts.notes[1]
    monkeypatch.setattr(word_counts, "_MOST_WORK", 1)
    (nothing,) = counts.probabilities(labels, 3)
    assert nothing.sum(axis=1) == pytest.approx(np.ones(12))
