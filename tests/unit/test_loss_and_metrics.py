"""Losses with missing labels; scores worked out by hand and against scikit-learn."""

import math

import numpy as np
import pytest
import sklearn.metrics
import torch

from training.fit_settings import ClassWeighting
from training.fitting.loss import class_weights, head_loss, normalise_weights, total_loss
from training.judging.metrics import (
    confusion,
    head_scores,
    joint_accuracy,
    macro_f1,
    majority_class,
    measure_head,
    probabilities,
    selection_score,
)
from training.network.ordinal import class_log_probabilities


def certain(predicted: "np.ndarray[tuple[int], np.dtype[np.int64]]", classes: int) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    """Probabilities of someone who is sure."""
    return np.eye(classes, dtype=np.float32)[predicted]


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


@pytest.mark.parametrize(("weighting", "ratio"), [("none", 1.0), ("inverse_sqrt", 2.0), ("balanced", 4.0)])
def test_class_weights_favour_rare_classes_and_keep_the_mean(weighting: ClassWeighting, ratio: float) -> None:
    labels = np.array([0] * 16 + [1] * 4 + [-1] * 7)
    weights = class_weights(weighting, labels, 3)
    assert weights[1] / weights[0] == pytest.approx(ratio)
    assert (16 * weights[0] + 4 * weights[1]) / 20 == pytest.approx(1.0)
    assert np.isfinite(weights).all()


@pytest.mark.parametrize(("weighting", "ratio"), [("none", 1.0), ("inverse_sqrt", 2.0), ("balanced", 4.0)])
def test_class_weights_keep_the_mean_over_the_questions_of_a_chain(weighting: ClassWeighting, ratio: float) -> None:
    labels = np.array([0] * 16 + [2] * 4 + [3] * 16 + [-1] * 7)
    weights = class_weights(weighting, labels, 4, "corn")
    assert weights[2] / weights[0] == pytest.approx(ratio)
    assert weights[3] == weights[0]
    # The lowest class answers one question, the two highest three each.
    assert (16 * weights[0] + 4 * 3 * weights[2] + 16 * 3 * weights[3]) / 76 == pytest.approx(1.0)
    # So a head that knows nothing has the loss that it has with no weights.
    chain = class_log_probabilities(torch.zeros(len(labels), 3))
    weighed, plain = (head_loss(chain, torch.from_numpy(labels), one, "corn") for one in (torch.from_numpy(weights), None))
    assert weighed.item() == pytest.approx(plain.item(), rel=1e-5)


def test_scores_follow_their_definitions() -> None:
    truth, predicted = np.array([0, 0, 1, 1, 2, -1]), np.array([0, 1, 1, 1, 0, 2])
    counts = confusion(truth, predicted, 4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    # F1: class 0 = 2·1/(2+2), class 1 = 2·2/(2+3), class 2 = 0; class 3 never occurs and does not count.
    assert macro_f1(counts) == pytest.approx((0.5 + 0.8 + 0.0) / 3)
    metrics = measure_head(truth, certain(predicted, 4), majority=1)
    assert metrics.count == 5
    assert metrics.accuracy == pytest.approx(0.6)
    assert metrics.majority_accuracy == pytest.approx(0.4)
    assert metrics.majority_macro_f1 == pytest.approx((2 * 2 / 7) / 3)


def test_no_labels_at_all_score_zero_not_nan() -> None:
    nothing = np.array([-1, -1])
    metrics = measure_head(nothing, certain(np.array([0, 1]), 2), majority=0, is_ordered=True)
    assert set(metrics.to_dict().values()) == {0}
    assert joint_accuracy({"a": nothing}, {"a": np.array([0, 1])}) == 0.0


def test_joint_accuracy_needs_every_head_right_and_known() -> None:
    truth = {"a": np.array([0, 1, 1, 0]), "b": np.array([1, 1, -1, 0])}
    predicted = {"a": np.array([0, 1, 1, 1]), "b": np.array([1, 0, 0, 0])}
    assert joint_accuracy(truth, predicted) == pytest.approx(1 / 3)


def test_the_selection_score_is_the_weighted_mean_over_heads() -> None:
    scores = {"a": 1.0, "b": 0.0}
    assert selection_score(scores, {}) == pytest.approx(0.5)
    assert selection_score(scores, {"a": 3.0, "b": 1.0}) == pytest.approx(0.75)
    assert selection_score(scores, {"a": 1.0}) == pytest.approx(1.0)


def test_each_head_is_scored_by_its_own_metric_and_more_is_better() -> None:
    truth, answers = np.array([0, 1, 2, 2]), np.full((4, 3), 1 / 3, np.float32)
    figures = {head: measure_head(truth, answers, 0, is_ordered=True).to_dict() for head in ("a", "b", "c")}
    scores = head_scores(figures, {"b": "log_loss", "c": "quadratic_weighted_kappa"})
    assert scores["a"] == figures["a"]["macro_f1"]
    # Guessing among three classes: the geometric mean probability of the right one.
    assert scores["b"] == pytest.approx(1 / 3, abs=1e-6)
    assert scores["c"] == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_metrics_agree_with_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 4, 60)
    answers = generator.dirichlet(np.ones(4), 60).astype(np.float32)
    answers[generator.random(60) < 0.4, :] = 0.1 / 3
    answers[np.arange(60)[answers[:, 0] == np.float32(0.1 / 3)], truth[answers[:, 0] == np.float32(0.1 / 3)]] = 0.9
    predicted, labels = answers.argmax(axis=1), list(range(4))
    kappa = sklearn.metrics.cohen_kappa_score(truth, predicted, weights="quadratic", labels=labels)
    log_loss = sklearn.metrics.log_loss(truth, answers / answers.sum(axis=1, keepdims=True), labels=labels)
    found = measure_head(np.append(truth, -1), np.vstack([answers, answers[:1]]), majority=0, is_ordered=True)
    assert found.accuracy == pytest.approx(sklearn.metrics.accuracy_score(truth, predicted))
    assert found.macro_f1 == pytest.approx(sklearn.metrics.f1_score(truth, predicted, average="macro"))
    assert found.weighted_f1 == pytest.approx(sklearn.metrics.f1_score(truth, predicted, average="weighted"))
    assert found.quadratic_weighted_kappa == pytest.approx(kappa)
    assert found.log_loss == pytest.approx(log_loss, abs=1e-3)
    assert measure_head(truth, answers, 0).quadratic_weighted_kappa is None


def test_temperature_softens_and_never_reorders() -> None:
    logits = np.array([[2.0, 1.0, -3.0]], np.float32)
    plain, soft = probabilities(logits), probabilities(logits, 4.0)
    assert plain.sum() == pytest.approx(1.0)
    assert soft.max() < plain.max()
    assert plain.argsort().tolist() == soft.argsort().tolist()


def test_a_chains_probabilities_sum_to_1_and_never_rise() -> None:
    logits = class_log_probabilities(torch.randn(200, 5, generator=torch.manual_seed(3)) * 8)
    chances = logits.exp()
    assert torch.allclose(chances.sum(dim=1), torch.ones(200), atol=1e-6)
    above = 1 - chances.cumsum(dim=1)
    assert (above[:, 1:] <= above[:, :-1] + 1e-6).all()
    # They are logits like any others: their softmax is themselves.
    assert torch.allclose(torch.softmax(logits, dim=1), chances, atol=1e-6)


def test_a_chains_loss_is_its_likelihood_per_question() -> None:
    labels = torch.tensor([0, 2, 3, -1])
    steps = torch.randn(4, 3, generator=torch.manual_seed(1), requires_grad=True)
    loss = head_loss(class_log_probabilities(steps), labels, loss="corn")
    # Class 0 answers one question, class 2 three, class 3, the highest, three.
    chances = torch.sigmoid(steps)
    by_hand = -((1 - chances[0, 0]).log() + (chances[1, 0] * chances[1, 1] * (1 - chances[1, 2])).log() + chances[2].log().sum()) / 7
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-6)
    nothing = head_loss(class_log_probabilities(steps), torch.full((4,), -1), loss="corn")
    nothing.backward()
    assert nothing.item() == 0.0
    assert steps.grad is not None
    assert torch.equal(steps.grad, torch.zeros(4, 3))


def test_majority_ignores_missing_labels() -> None:
    assert majority_class(np.array([-1, -1, -1, 2, 2, 0]), 3) == 2
