"""Intervals against what they promise on simulated texts, and statistics against the figures of `metrics`."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score

from training.judging.bootstrap import interval, joint_accuracy_of, paired_difference, score_of, selection_score_of
from training.judging.metrics import Labels, Probabilities, head_score, joint_accuracy, measure_head
from training.search_settings import Metric

METRICS: tuple[Metric, ...] = ("macro_f1", "weighted_f1", "accuracy", "quadratic_weighted_kappa", "log_loss")


def drawn_answers(texts: int, classes: int, seed: int) -> tuple[Labels, Probabilities]:
    generator = np.random.default_rng(seed)
    found = generator.dirichlet(np.full(classes, 0.5), texts).astype(np.float32)
    labels = np.where(generator.random(texts) < 0.6, found.argmax(axis=1), generator.integers(classes, size=texts))
    return np.where(generator.random(texts) < 0.2, -1, labels), found


@pytest.mark.parametrize("metric", METRICS)
def test_a_statistic_is_the_score_of_the_drawn_texts(metric: Metric) -> None:
    labels, found = drawn_answers(300, 4, 1)
    statistic = score_of(labels, found, metric)
    labelled = int(np.flatnonzero(labels >= 0)[0])
    for drawn in (np.arange(300), np.random.default_rng(2).integers(300, size=300), np.array([labelled] * 300)):
        figures = measure_head(labels[drawn], found[drawn], 0, is_ordered=True).to_dict()
        assert statistic(drawn) == pytest.approx(head_score(figures, metric), abs=1e-6)


def test_a_draw_without_labels_says_nothing_and_few_texts_decide_nothing() -> None:
    labels, found = np.full(100, -1), np.full((100, 2), 0.5, np.float32)
    labels[:3] = 0
    statistic = score_of(labels, found, "accuracy")
    assert np.isnan(statistic(np.arange(3, 100)))
    assert interval(statistic, 100) == (1.0, 1.0)
    few = paired_difference([lambda drawn: 1.0], [lambda drawn: 0.0], 19)
    assert (few.low, few.verdict) == (1.0, "not distinguishable")
    assert paired_difference([lambda drawn: 1.0], [lambda drawn: 0.0], 20).verdict == "better"


@pytest.mark.parametrize("groups", [1, 2, 19, 20])
def test_groups_that_are_few_decide_nothing_however_many_texts_they_hold(groups: int) -> None:
    named = [str(text % groups) for text in range(400)]
    found = paired_difference([lambda drawn: 1.0], [lambda drawn: 0.0], 400, groups=named)
    assert (found.low, found.verdict) == (1.0, "better" if groups == 20 else "not distinguishable")
    # Texts of no group are drawn one by one.
    assert paired_difference([lambda drawn: 1.0], [lambda drawn: 0.0], 400, groups=[""] * 400).verdict == "better"


@pytest.mark.parametrize("labelled", [4, 20])
def test_texts_without_a_label_decide_nothing(labelled: int) -> None:
    known, every = np.arange(300) < labelled, np.ones(300, dtype=bool)
    verdict = "better" if labelled == 20 else "not distinguishable"
    assert paired_difference([lambda drawn: 1.0], [lambda drawn: 0.0], 300, known=[known]).verdict == verdict
    # Of several heads the one with the fewest labels decides; where its texts are of one group, that is one.
    assert paired_difference([lambda drawn: 1.0], [lambda drawn: 0.0], 300, known=[every, known]).verdict == verdict
    groups = ["A" if text < 50 else "" for text in range(300)]
    assert paired_difference([lambda drawn: 1.0], [lambda drawn: 0.0], 300, known=[known], groups=groups).verdict == "not distinguishable"


def test_statistics_against_scikit_learn() -> None:
    labels, found = drawn_answers(400, 5, 3)
    drawn = np.random.default_rng(4).integers(400, size=400)
    known = drawn[labels[drawn] >= 0]
    truth, predicted = labels[known], found.argmax(axis=1)[known]
    assert score_of(labels, found, "macro_f1")(drawn) == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert score_of(labels, found, "weighted_f1")(drawn) == pytest.approx(f1_score(truth, predicted, average="weighted"))
    assert score_of(labels, found, "accuracy")(drawn) == pytest.approx(accuracy_score(truth, predicted))
    kappa = cohen_kappa_score(truth, predicted, weights="quadratic")
    assert score_of(labels, found, "quadratic_weighted_kappa")(drawn) == pytest.approx(kappa)


def test_several_heads() -> None:
    answers = {head: drawn_answers(200, 3, seed) for seed, head in enumerate(("a", "b"))}
    truth, found = ({head: pair[side] for head, pair in answers.items()} for side in (0, 1))
    drawn = np.random.default_rng(4).integers(200, size=200)
    expected = joint_accuracy({h: truth[h][drawn] for h in truth}, {h: found[h].argmax(axis=1)[drawn] for h in truth})
    assert joint_accuracy_of(truth, found)(drawn) == pytest.approx(expected)
    scores = {head: score_of(truth[head], found[head], "accuracy") for head in truth}
    assert selection_score_of(scores, {"a": 3.0, "b": 1.0})(drawn) == pytest.approx((3 * scores["a"](drawn) + scores["b"](drawn)) / 4)


def test_the_interval_of_a_mean_is_the_one_of_the_textbook() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = interval(lambda drawn: float(values[drawn].mean()), 400)
    error = values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error)
    assert interval(lambda drawn: float(values[drawn].mean()), 400) == (low, high)
    assert interval(lambda drawn: float(values[drawn].mean()), 400, seed=8) != (low, high)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(11)
    covered = 0
    for number in range(200):
        right = generator.random(300) < 0.7
        low, high = interval(lambda drawn, right=right: float(right[drawn].mean()), 300, resamples=300, seed=number)  # type: ignore[misc]
        covered += low <= 0.7 <= high
    assert 180 <= covered <= 198


def test_texts_of_one_group_are_drawn_together() -> None:
    # 40 groups of 10 equal texts know as much as 40 texts.
    values = np.repeat(np.random.default_rng(1).normal(0, 1, 40), 10)
    groups = [f"group {number // 10}" for number in range(400)]

    def mean(drawn: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
        return float(values[drawn].mean())

    alone, together = interval(mean, 400), interval(mean, 400, groups=groups)
    error = values.std() / np.sqrt(40)
    assert together[1] - together[0] == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert together[1] - together[0] > 2.5 * (alone[1] - alone[0])
    # Texts without a group are groups of one.
    assert interval(mean, 400, groups=[""] * 400)[0] == pytest.approx(alone[0], abs=0.1 * error)


def test_a_group_comes_whole() -> None:
    groups = ["a", "b", "a", "", "b", ""]
    seen = []
    interval(lambda drawn: float(seen.append(drawn.tolist()) or 0), 6, resamples=50, groups=groups)  # type: ignore[func-returns-value]
    for drawn in seen:
        assert drawn.count(0) == drawn.count(2)
        assert drawn.count(1) == drawn.count(4)
    assert any(drawn.count(3) != drawn.count(5) for drawn in seen)


def biased(texts: int, accuracy: float, seed: int, shared: Labels) -> Probabilities:
    """Answer a shared truth rightly with a probability, else with the other class."""
    is_right = np.random.default_rng(seed).random(texts) < accuracy
    return np.eye(2, dtype=np.float32)[np.where(is_right, shared, 1 - shared)]


def test_the_verdicts() -> None:
    truth = np.random.default_rng(0).integers(2, size=600)
    good, bad, alike = (
        [score_of(truth, biased(600, accuracy, seed, truth), "accuracy") for seed in seeds]
        for accuracy, seeds in ((0.9, (1, 2, 3)), (0.8, (4, 5, 6)), (0.9, (7, 8)))
    )
    better, worse, same = paired_difference(good, bad, 600), paired_difference(bad, good, 600), paired_difference(good, alike, 600)
    assert (better.verdict, worse.verdict, same.verdict) == ("better", "worse", "not distinguishable")
    everything = np.arange(600)
    assert better.ours == pytest.approx(np.mean([run(everything) for run in good]))
    assert better.theirs == pytest.approx(np.mean([run(everything) for run in bad]))
    assert better.difference == better.ours - better.theirs
    assert better.low < better.difference < better.high
    assert better.to_dict()["verdict"] == "better"
    assert paired_difference(good, good[:1], 600).low < 0


def test_a_side_does_not_differ_from_itself() -> None:
    truth = np.random.default_rng(0).integers(2, size=300)
    one = [score_of(truth, biased(300, 0.8, 1, truth), "macro_f1")]
    same = paired_difference(one, one, 300)
    assert (same.difference, same.low, same.high, same.verdict) == (0.0, 0.0, 0.0, "not distinguishable")


def test_pairing_takes_out_what_both_sides_share() -> None:
    # Both sides are right on the same texts, but for five that only ours gets.
    right = np.random.default_rng(1).random(400) < 0.6
    ours = right.copy()
    ours[np.flatnonzero(~right)[:5]] = True
    found = paired_difference([lambda drawn: float(ours[drawn].mean())], [lambda drawn: float(right[drawn].mean())], 400)
    alone = interval(lambda drawn: float(right[drawn].mean()), 400)
    assert found.verdict == "better"
    assert found.high - found.low < (alone[1] - alone[0]) / 3


def test_the_noise_of_seeds_counts() -> None:
    """With runs that differ by much and texts by nothing, the interval is that of the mean over runs."""
    spread = [lambda drawn, value=value: value for value in (0.5, 0.7, 0.9)]
    found = paired_difference(spread, [lambda drawn: 0.69], 50)
    assert found.verdict == "not distinguishable"
    assert (found.low, found.high) == pytest.approx((0.5 - 0.69, 0.9 - 0.69))
    assert paired_difference([lambda drawn: 0.7], [lambda drawn: 0.69], 50).verdict == "better"


def test_the_interval_of_a_difference_holds_the_variance_of_the_mean_over_runs() -> None:
    values = np.random.default_rng(3).normal(0, 1, 5)
    drawn_means = []
    for seed in range(5):
        found = paired_difference([lambda drawn, value=value: float(value) for value in values], [lambda drawn: 0.0], 3, seed=seed)
        drawn_means.append(found.high - found.low)
    assert np.mean(drawn_means) == pytest.approx(2 * 1.96 * values.std(ddof=1) / np.sqrt(5), rel=0.08)
