"""Temperatures against an exhaustive search, calibration errors against bins counted by hand."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from training.judging.calibration import (
    expected_calibration_error,
    fit_temperature,
    judged_probabilities,
    measured,
    reliability,
)
from training.judging.metrics import Labels, Probabilities, measure_head, probabilities


def drawn_logits(texts: int, classes: int, seed: int = 3) -> tuple[Probabilities, Labels]:
    """Draw logits, and labels as probable as the logits say: their own temperature is 1."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (texts, classes)).astype(np.float32)
    cumulated = probabilities(logits).astype(np.float64).cumsum(axis=1)
    labels = (cumulated < generator.random((texts, 1))).sum(axis=1).clip(0, classes - 1)
    return logits, labels


@pytest.mark.parametrize("scale", [0.2, 0.7, 1.0, 3.0])
def test_the_temperature_undoes_what_was_done_to_the_logits(scale: float) -> None:
    logits, labels = drawn_logits(20_000, 4)
    assert fit_temperature(logits * np.float32(scale), labels) == pytest.approx(scale, rel=0.05)


def test_the_temperature_is_the_best_of_a_fine_grid() -> None:
    logits, labels = drawn_logits(120, 3)
    found = fit_temperature(logits, labels)
    losses = {float(one): log_loss(labels, probabilities(logits, one), labels=[0, 1, 2]) for one in np.geomspace(0.05, 20, 601)}
    best = min(losses, key=lambda one: losses[one])
    assert found == pytest.approx(best, rel=6e-3)
    assert log_loss(labels, probabilities(logits, found), labels=[0, 1, 2]) < losses[min(losses, key=lambda one: abs(one - 1))]


def test_a_log_loss_is_judged_at_the_temperature_of_other_texts() -> None:
    logits, labels = drawn_logits(400, 3)
    labels[::7] = -1
    sharp, soft = (measured(labels, logits * np.float32(scale), 0, "log_loss").log_loss for scale in (4.0, 0.3))
    # However sure a model happens to be, once it is calibrated it is the same.
    assert sharp == pytest.approx(soft, abs=1e-4)
    raw = measure_head(labels, probabilities(logits * np.float32(4.0)), 0).log_loss
    fitted = measure_head(labels, probabilities(logits, fit_temperature(logits, labels)), 0).log_loss
    # Nor is it flattered by a temperature of its own texts.
    assert fitted < sharp < fitted + 0.02 < raw
    assert measured(labels, logits * np.float32(4.0), 0, "accuracy").log_loss == raw
    assert measured(labels, logits, 0, "log_loss").accuracy == measured(labels, logits, 0, "accuracy").accuracy


def test_what_a_text_is_judged_at_does_not_hang_on_its_own_label() -> None:
    logits, labels = drawn_logits(40, 3)
    other = labels.copy()
    other[11] = (labels[11] + 1) % 3
    first, second = (judged_probabilities(logits, one, "log_loss") for one in (labels, other))
    np.testing.assert_array_equal(first[11], second[11])
    assert np.abs(first - second).max() > 1e-4
    for few in ([], [2], [1, 0]):
        count = len(few)
        assert judged_probabilities(logits[:count], np.array(few, np.int64), "log_loss").shape == (count, 3)


def test_texts_without_a_label_do_not_count() -> None:
    logits, labels = drawn_logits(200, 3)
    more = np.vstack([logits, 50 * logits])
    assert fit_temperature(more, np.concatenate([labels, np.full(200, -1)])) == fit_temperature(logits, labels)


def test_nothing_to_learn_a_temperature_from() -> None:
    logits, _ = drawn_logits(20, 3)
    assert fit_temperature(logits, np.full(20, -1)) == 1.0
    assert fit_temperature(np.zeros((4, 3), dtype=np.float32), np.array([0, 1, 2, 0])) == 1.0
    # All right: the lower the better, without end.
    assert fit_temperature(logits, logits.argmax(axis=1)) == 1.0


def test_the_temperature_keeps_its_bounds() -> None:
    logits = np.array([[5.0, 0.0], [0.0, 5.0], [5.0, 0.0]], dtype=np.float32)
    assert fit_temperature(logits, np.array([1, 0, 1])) == pytest.approx(20, rel=1e-4)
    almost = np.array([[0.01, 0.0]] * 1 + [[30.0, 0.0]] * 9, dtype=np.float32)
    assert 0.05 <= fit_temperature(almost, np.array([1] + [0] * 9)) <= 20
    # Much too unsure, but for one of a thousand.
    unsure = np.array([[0.01, 0.0]] * 1000 + [[0.0, 0.0001]], dtype=np.float32)
    assert fit_temperature(unsure, np.zeros(1001, dtype=np.int64)) == pytest.approx(0.05, rel=1e-4)


def answers(*confidences: float) -> Probabilities:
    return np.array([[confidence, 1 - confidence] for confidence in confidences], dtype=np.float32)


def test_the_calibration_error_by_hand() -> None:
    # (0.5, 0.6]: one of two right at 0.55, a gap of 0.05; (0.9, 1.0]: one of two right at 0.96, a gap of 0.46.
    probabilities_ = answers(0.52, 0.58, 0.94, 0.98, 0.7)
    labels = np.array([0, 1, 0, 1, -1])
    assert expected_calibration_error(probabilities_, labels, bins=10) == pytest.approx((2 * 0.05 + 2 * 0.46) / 4, abs=1e-6)
    assert expected_calibration_error(probabilities_, labels, bins=1) == pytest.approx(abs(0.755 - 0.5), abs=1e-6)
    assert expected_calibration_error(answers(1.0, 1.0), np.array([0, 0])) == 0.0
    assert expected_calibration_error(answers(1.0), np.array([-1])) == 0.0


def test_calibrated_answers_have_a_smaller_error_after_the_temperature() -> None:
    logits, labels = drawn_logits(5000, 4)
    logits = logits * np.float32(3)
    before = expected_calibration_error(probabilities(logits), labels)
    after = expected_calibration_error(probabilities(logits, fit_temperature(logits, labels)), labels)
    assert before > 0.1
    assert after < 0.02


def test_the_reliability_bins() -> None:
    bins = reliability(answers(0.52, 0.58, 0.94, 1.0, 0.7), np.array([0, 1, 0, 1, -1]))
    assert [(one["low"], one["high"]) for one in bins] == [(number / 10, (number + 1) / 10) for number in range(10)]
    assert [one["count"] for one in bins] == [0, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert (bins[0]["confidence"], bins[0]["accuracy"]) == (None, None)
    assert (bins[7]["confidence"], bins[7]["accuracy"]) == (None, None)
    assert bins[5]["confidence"] == pytest.approx(0.55)
    assert bins[9]["confidence"] == pytest.approx(0.97)
    assert (bins[5]["accuracy"], bins[9]["accuracy"]) == (0.5, 0.5)


def test_a_bin_is_closed_above() -> None:
    assert [one["count"] for one in reliability(answers(0.5, 0.75), np.array([0, 0]), bins=4)] == [0, 1, 1, 0]
