"""Losses with missing labels, and scores against scikit-learn's definitions worked out by hand."""

import math

import numpy as np
import pytest
import torch

from training.loss import head_loss, inverse_sqrt_weights, normalise_weights, total_loss
from training.metrics import confusion, joint_accuracy, macro_f1, majority_class, measure_head, selection_score


def test_a_batch_without_labels_for_a_head_is_zero_and_moves_nothing() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    loss = head_loss(logits, torch.tensor([-1, -1, -1]), torch.ones(4))
    assert loss.item() == 0.0
    loss.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(3, 4))


def test_the_loss_averages_over_labelled_texts_only() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, -5.0]])
    expected = (-math.log(math.exp(2) / (math.exp(2) + 1)) - math.log(1 / (1 + math.exp(1)))) / 2
    assert head_loss(logits, torch.tensor([0, 0, -1])).item() == pytest.approx(expected, abs=1e-6)


def test_loss_weights_keep_their_ratio_and_sum_to_the_number_of_heads() -> None:
    weights = normalise_weights({"a": 3.0, "b": 1.0, "c": 4.0})
    assert sum(weights.values()) == pytest.approx(3.0)
    assert weights["c"] / weights["b"] == pytest.approx(4.0)
    assert total_loss({"a": torch.tensor(2.0), "b": torch.tensor(1.0), "c": torch.tensor(0.0)}, weights).item() == pytest.approx(
        2 * weights["a"] + weights["b"]
    )


def test_inverse_sqrt_weights_favour_rare_classes_and_keep_the_mean() -> None:
    labels = np.array([0] * 16 + [1] * 4 + [-1] * 7)
    weights = inverse_sqrt_weights(labels, 3)
    assert weights[1] / weights[0] == pytest.approx(2.0)
    assert (16 * weights[0] + 4 * weights[1]) / 20 == pytest.approx(1.0)
    assert np.isfinite(weights).all()


def test_scores_follow_their_definitions() -> None:
    truth, predicted = np.array([0, 0, 1, 1, 2, -1]), np.array([0, 1, 1, 1, 0, 2])
    counts = confusion(truth, predicted, 4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    # F1: class 0 = 2·1/(2+2), class 1 = 2·2/(2+3), class 2 = 0; class 3 never occurs and does not count.
    assert macro_f1(counts) == pytest.approx((0.5 + 0.8 + 0.0) / 3)
    metrics = measure_head(truth, predicted, 4, majority=1)
    assert metrics.count == 5
    assert metrics.accuracy == pytest.approx(0.6)
    assert metrics.majority_accuracy == pytest.approx(0.4)
    assert metrics.majority_macro_f1 == pytest.approx((2 * 2 / 7) / 3)


def test_no_labels_at_all_score_zero_not_nan() -> None:
    nothing = np.array([-1, -1])
    metrics = measure_head(nothing, np.array([0, 1]), 2, majority=0)
    assert (metrics.count, metrics.accuracy, metrics.macro_f1) == (0, 0.0, 0.0)
    assert joint_accuracy({"a": nothing}, {"a": np.array([0, 1])}) == 0.0


def test_joint_accuracy_needs_every_head_right_and_known() -> None:
    truth = {"a": np.array([0, 1, 1, 0]), "b": np.array([1, 1, -1, 0])}
    predicted = {"a": np.array([0, 1, 1, 1]), "b": np.array([1, 0, 0, 0])}
    assert joint_accuracy(truth, predicted) == pytest.approx(1 / 3)


def test_the_selection_score_is_the_weighted_mean_over_heads() -> None:
    labels = np.array([0, 1])
    metrics = {"a": measure_head(labels, labels, 2, 0), "b": measure_head(labels, 1 - labels, 2, 0)}
    assert selection_score(metrics, {}) == pytest.approx(0.5)
    assert selection_score(metrics, {"a": 3.0, "b": 1.0}) == pytest.approx(0.75)
    assert selection_score(metrics, {"a": 1.0}) == pytest.approx(1.0)


def test_majority_ignores_missing_labels() -> None:
    assert majority_class(np.array([-1, -1, -1, 2, 2, 0]), 3) == 2
