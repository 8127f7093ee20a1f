"""Thresholds and curves against texts counted by hand, and the promise of a threshold on texts it has not seen."""

import math

import numpy as np
import pytest

from training.judging.abstention import ALWAYS_ABSTAIN, answered, choose_threshold, risk_coverage
from training.judging.metrics import Labels, Probabilities, probabilities


def answers(*pairs: tuple[float, bool]) -> tuple[Probabilities, Labels]:
    """Make answers of two classes from (probability, is right)."""
    found = np.array([[confidence, 1 - confidence] for confidence, _ in pairs], dtype=np.float32)
    return found, np.array([0 if is_right else 1 for _, is_right in pairs])


SIX = answers((0.95, True), (0.55, False), (0.85, True), (0.75, False), (0.65, True), (0.9, True))


def test_what_a_threshold_answers() -> None:
    assert answered(*SIX, 0.75) == {"coverage": 4 / 6, "precision": 0.75, "answered": 4, "count": 6}
    assert answered(*SIX, 0.750001) == {"coverage": 0.5, "precision": 1.0, "answered": 3, "count": 6}
    assert answered(*SIX, 0.0)["coverage"] == 1.0
    assert answered(*SIX, ALWAYS_ABSTAIN) == {"coverage": 0.0, "precision": None, "answered": 0, "count": 6}
    assert answered(SIX[0], np.full(6, -1), 0.5) == {"coverage": 0.0, "precision": None, "answered": 0, "count": 0}


def test_texts_without_a_label_do_not_count() -> None:
    found, labels = SIX
    more = np.vstack([found, [[0.99, 0.01]] * 50]).astype(np.float32)
    without = np.concatenate([labels, np.full(50, -1)])
    assert answered(more, without, 0.75) == answered(*SIX, 0.75)
    assert risk_coverage(more, without) == risk_coverage(*SIX)
    assert choose_threshold(more, without, precision=0.7) == choose_threshold(*SIX, precision=0.7)
    assert choose_threshold(more, without, coverage=0.5) == choose_threshold(*SIX, coverage=0.5)


def test_the_threshold_of_a_precision_takes_as_many_as_the_bound_allows() -> None:
    # Three of three right count as 3 / 4; a fourth, wrong, brings the share to 3 / 4 and the bound far below.
    assert choose_threshold(*SIX, precision=0.75) == 0.85
    assert choose_threshold(*SIX, precision=0.76) == ALWAYS_ABSTAIN
    bound = (0.75 + 1 / 8 - math.sqrt(0.75 * 0.25 / 4 + 1 / 64)) / 1.25
    assert choose_threshold(*SIX, precision=bound - 1e-9) == pytest.approx(0.65)
    # 4 of 6 right at 0.55: share 2/3, the lower end 0.466.
    assert choose_threshold(*SIX, precision=0.46) == 0.55


def test_more_texts_are_answered_where_the_same_share_is_known_better() -> None:
    found, labels = SIX
    many, many_labels = np.tile(found, (200, 1)), np.tile(labels, 200)
    assert choose_threshold(many, many_labels, precision=0.72) == 0.65
    assert choose_threshold(many, many_labels, precision=0.99) == 0.85
    assert choose_threshold(many, many_labels, precision=0.9999) == ALWAYS_ABSTAIN


def test_the_threshold_of_a_coverage_answers_at_least_that_share() -> None:
    assert choose_threshold(*SIX, coverage=0.5) == 0.85
    assert choose_threshold(*SIX, coverage=0.51) == 0.75
    assert choose_threshold(*SIX, coverage=0.999) == 0.55
    assert choose_threshold(*SIX, coverage=0.01) == 0.95


def test_equal_probabilities_are_never_parted() -> None:
    tied = answers((0.9, True), (0.8, True), (0.8, False), (0.8, True), (0.6, False))
    assert choose_threshold(*tied, coverage=0.4) == 0.8
    assert answered(*tied, 0.8)["answered"] == 4
    assert [(point["coverage"], point["threshold"]) for point in risk_coverage(*tied)] == [(0.2, 0.9), (0.8, 0.8), (1.0, 0.6)]


def test_a_probability_that_is_told_as_the_threshold_is_answered() -> None:
    found = np.array([[0.85, 0.15], [0.8499999, 0.1500001], [0.8499, 0.1501]], dtype=np.float32)
    labels = np.zeros(3, dtype=np.int64)
    assert choose_threshold(found, labels, coverage=0.3) == 0.85
    assert answered(found, labels, 0.85)["answered"] == 2


def test_no_texts_reach_nothing() -> None:
    nothing = (np.zeros((0, 3), dtype=np.float32), np.zeros(0, dtype=np.int64))
    assert choose_threshold(*nothing, precision=0.1) == ALWAYS_ABSTAIN
    assert choose_threshold(*nothing, coverage=0.1) == ALWAYS_ABSTAIN
    assert risk_coverage(*nothing) == []


@pytest.mark.parametrize("wanted", [{}, {"precision": 0.9, "coverage": 0.5}])
def test_exactly_one_thing_is_wanted(wanted: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="either precision or coverage"):
        choose_threshold(*SIX, **wanted)


def test_the_curve_starts_with_the_surest_and_ends_with_all() -> None:
    curve = risk_coverage(*SIX)
    assert [point["threshold"] for point in curve] == [0.95, 0.9, 0.85, 0.75, 0.65, 0.55]
    assert [point["risk"] for point in curve] == pytest.approx([0, 0, 0, 1 / 4, 1 / 5, 2 / 6])
    assert [point["coverage"] for point in curve] == pytest.approx([one / 6 for one in range(1, 7)])
    assert [point["coverage"] for point in risk_coverage(*SIX, points=2)] == [0.5, 1.0]
    for point in curve:
        given = answered(*SIX, point["threshold"])
        assert given["precision"] is not None
        assert (given["coverage"], 1 - given["precision"]) == pytest.approx((point["coverage"], point["risk"]))


def test_the_wanted_precision_is_mostly_kept_on_new_texts() -> None:
    generator = np.random.default_rng(5)
    kept = []
    for _ in range(100):
        logits = generator.normal(0, 2.5, (2150, 4)).astype(np.float32)
        found = probabilities(logits)
        labels = (found.astype(np.float64).cumsum(axis=1) < generator.random((2150, 1))).sum(axis=1).clip(0, 3)
        threshold = choose_threshold(found[:150], labels[:150], precision=0.9)
        if (precision := answered(found[150:], labels[150:], threshold)["precision"]) is not None:
            kept.append(precision >= 0.9)
    # Plain shares of right answers keep it 4 times in 10.
    assert len(kept) > 80
    assert 0.65 < np.mean(kept) < 0.95
