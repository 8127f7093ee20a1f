"""What a model is worth: judged on synthetic answers whose right figures are known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from training.data.dataset import Dataset, Examples
from training.judging.abstention import ALWAYS_ABSTAIN
from training.judging.comparison import DEFAULT, WORD_COUNTS, compare, headline
from training.judging.judge import account, calibrate, reported_split
from training.judging.metrics import probabilities
from training.settings import TrainingSettings

CLASSES = {"job": ("driver", "nurse"), "grade": ("none", "school", "master")}


def settings(**changes: Any) -> TrainingSettings:
    heads = {"job": {"target_precision": 0.9}, "grade": {"ordered": True, "classes": CLASSES["grade"]}}
    return TrainingSettings.model_validate({"heads": heads} | changes)


def examples(texts: int, seed: int) -> Examples:
    generator = np.random.default_rng(seed)
    labels = {head: generator.integers(0, len(classes), texts) for head, classes in CLASSES.items()}
    labels["grade"][::10] = -1
    return Examples(tuple(f"secret text {n}" for n in range(texts)), labels, tuple(f"ads.csv, row {n + 2}" for n in range(texts)), None)


DATASET = Dataset(CLASSES, examples(300, 0), examples(400, 1), examples(400, 2), "digest", ())


def logits(split: Examples, accuracy: float, seed: int, sureness: float = 6.0) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Answers of someone who is right so often, and much too sure."""
    generator = np.random.default_rng(seed)
    answers = {}
    for head, classes in CLASSES.items():
        right = generator.random(len(split)) < accuracy
        chosen = np.where(right, split.labels[head] % len(classes), (split.labels[head] + 1) % len(classes))
        answers[head] = (np.eye(len(classes))[chosen] * sureness * generator.uniform(0.5, 1.5, (len(split), 1))).astype(np.float32)
    return answers


def judged(accuracy: float = 0.8, **changes: Any) -> dict[str, Any]:
    own = settings(**changes)
    answers = {split: logits(DATASET.splits()[split], accuracy, seed) for seed, split in enumerate(("validation", "test"))}
    calibrations = calibrate(own.heads, answers["validation"], DATASET.validation.labels)
    return account(own, DATASET, answers, calibrations)


def test_calibration_is_fitted_on_validation_and_helps_on_test() -> None:
    found = judged()["calibration"]
    for head in CLASSES:
        assert found[head]["temperature"] > 1.5
        assert found[head]["test"]["ece_after"] < 0.5 * found[head]["test"]["ece_before"]
        assert sum(one["count"] for one in found[head]["bins_after"]) == (DATASET.test.labels[head] >= 0).sum()


def test_a_head_abstains_only_when_it_was_asked_to() -> None:
    found = judged()["abstention"]
    assert (found["grade"]["threshold"], found["grade"]["target"], found["grade"]["test"]["coverage"]) == (None, None, 1.0)
    assert found["job"]["target"] == {"precision": 0.9}
    # Sureness tells nothing here, so no threshold reaches .9: no answer is better than a wrong promise.
    assert found["job"]["threshold"] == ALWAYS_ABSTAIN
    assert found["job"]["test"]["answered"] == 0
    reached = judged(accuracy=0.97)["abstention"]["job"]
    assert reached["threshold"] < 1.0
    assert reached["test"]["precision"] > 0.9


def test_intervals_hold_the_figures_and_missing_labels_do_not_count() -> None:
    found = judged()
    figures, intervals = found["metrics"]["test"], found["intervals"]
    assert figures["grade"]["count"] == 360
    assert figures["job"]["quadratic_weighted_kappa"] is None
    for head in CLASSES:
        low, high = intervals[head]["macro_f1"]
        assert low < figures[head]["macro_f1"] < high
        assert 0.02 < high - low < 0.2
    assert intervals["score"][0] < figures["score"] < intervals["score"][1]
    assert np.sum(found["confusion"]["test"]["job"]) == 400


def test_errors_are_told_by_row_the_surest_first_and_texts_only_on_demand() -> None:
    errors = judged()["errors"]["job"]
    assert len(errors) == 10
    assert [error["probability"] for error in errors] == sorted((error["probability"] for error in errors), reverse=True)
    row = int(errors[0]["row"].rpartition(" ")[2]) - 2
    assert errors[0]["truth"] == CLASSES["job"][DATASET.test.labels["job"][row]] != errors[0]["answer"]
    assert "secret" not in str(judged())
    answers = {"validation": logits(DATASET.validation, 0.8, 0), "test": logits(DATASET.test, 0.8, 1)}
    calibrations = calibrate(settings().heads, answers["validation"], DATASET.validation.labels)
    shown = account(settings(), DATASET, answers, calibrations, with_texts=True)
    assert shown["errors"]["job"][0]["text"].startswith("secret text")


def test_without_test_texts_the_validation_split_is_reported() -> None:
    bare = Dataset(CLASSES, DATASET.training, DATASET.validation, DATASET.test.take([]), "digest", ())
    assert (reported_split(DATASET), reported_split(bare)) == ("test", "validation")
    answers = {"validation": logits(bare.validation, 0.8, 0)}
    found = account(settings(), bare, answers, calibrate(settings().heads, answers["validation"], bare.validation.labels))
    assert set(found["metrics"]) == {"validation"}


def sides(*accuracies: float) -> list[dict[str, Any]]:
    return [
        {head: probabilities(one) for head, one in logits(DATASET.test, accuracy, 10 + at).items()}
        for at, accuracy in enumerate(accuracies)
    ]


def test_a_real_difference_is_told_from_noise() -> None:
    found = compare(settings(), DATASET.test, DEFAULT, sides(0.9, 0.9), sides(0.7, 0.7))
    assert [(one["head"], one["verdict"]) for one in found] == [("job", "better"), ("grade", "better"), (None, "better")]
    assert found[2]["difference"] == pytest.approx(0.2, abs=0.06)
    assert found[2]["runs"] == [2, 2]
    alike = compare(settings(), DATASET.test, DEFAULT, sides(0.8, 0.8), sides(0.8, 0.8)[::-1])
    assert {one["verdict"] for one in alike} == {"not distinguishable"}
    worse = compare(settings(tuning={"score_metrics": {"job": "log_loss"}}), DATASET.test, DEFAULT, sides(0.7), sides(0.9))
    # What is compared is exp(-log loss): more is better.
    assert (worse[0]["metric"], worse[0]["verdict"]) == ("exp(-log_loss)", "worse")


def test_the_headline_says_what_is_not_real() -> None:
    comparisons = compare(settings(), DATASET.test, DEFAULT, sides(0.8, 0.8), sides(0.8, 0.8)[::-1])
    comparisons += compare(settings(), DATASET.test, WORD_COUNTS, sides(0.8, 0.8), sides(0.6))
    record = judged() | {"comparisons": comparisons, "best": 3, "heads": CLASSES, "tuning": {"mode": "score"}}
    record["trials"] = [{"position": number, "origin": "sampler"} for number in (0, 3)]
    said = headline(record, "test")
    assert said.startswith("Trial 3 scores 0.")
    assert "not distinguishable from the default configuration" in said
    assert "better than TF-IDF + logistic regression" in said
    default = headline(record | {"trials": [{"position": number, "origin": "default"} for number in (0, 3)]}, "test")
    assert "It is the default configuration: the search found nothing better." in default
    assert "nothing else was tried" in headline(record | {"trials": [{"position": 3, "origin": "default"}]}, "test")
    words = {"position": 3, "origin": "words alone", "score": 0.5}
    for score, why in ((0.4, "nothing that trained was better"), (None, "no training has come to a score")):
        tried = [words, {"position": 0, "origin": "default", "score": score}]
        assert f"what words say by themselves: {why}." in headline(record | {"trials": tried}, "test")
    # Two trainings against one: ours alone would hide the noise of seeds.
    assert "the noise of seeds is not in these intervals" not in said
    alone = compare(settings(), DATASET.test, DEFAULT, sides(0.8), sides(0.7))
    assert "the noise of seeds is not in these intervals" in headline(record | {"comparisons": alone}, "test")


def test_a_head_without_labels_has_no_figures_rather_than_bad_ones() -> None:
    bare = {"job": DATASET.test.labels["job"], "grade": np.full(400, -1)}
    dataset = Dataset(CLASSES, DATASET.training, DATASET.validation, replace(DATASET.test, labels=bare), "digest", ())
    answers = {"validation": logits(dataset.validation, 0.8, 0), "test": logits(DATASET.test, 0.8, 1)}
    found = account(settings(), dataset, answers, calibrate(settings().heads, answers["validation"], dataset.validation.labels))
    figures = found["metrics"]["test"]
    assert (figures["grade"]["count"], figures["grade"]["macro_f1"], figures["joint_accuracy"]) == (0, None, None)
    assert figures["score"] == figures["job"]["macro_f1"]
    assert set(found["intervals"]) == {"job", "score"}
    one = [{head: probabilities(values) for head, values in answers["test"].items()}]
    assert [entry["head"] for entry in compare(settings(), dataset.test, DEFAULT, one, one)] == ["job"]


def test_heads_that_count_and_have_no_label_leave_the_split_without_a_score() -> None:
    own = settings(tuning={"score_weights": {"grade": 1.0}})
    bare = {"job": DATASET.test.labels["job"], "grade": np.full(400, -1)}
    dataset = Dataset(CLASSES, DATASET.training, DATASET.validation, replace(DATASET.test, labels=bare), "digest", ())
    answers = {"validation": logits(dataset.validation, 0.8, 0), "test": logits(DATASET.test, 0.8, 1)}
    record = account(own, dataset, answers, calibrate(own.heads, answers["validation"], dataset.validation.labels))
    comparisons = compare(own, dataset.test, DEFAULT, sides(0.9), sides(0.7))
    assert [(entry["head"], entry["verdict"]) for entry in comparisons] == [("job", "better")]
    record |= {"comparisons": comparisons, "best": 0, "heads": CLASSES, "tuning": {"mode": "score"}}
    record["trials"] = [{"position": 0, "origin": "sampler"}]
    assert headline(record, "test") == "Trial 0 has no score on the test texts: no head that counts has a label there."
    # And where several heads without weight have labels.
    three = settings(tuning={"score_weights": {"grade": 1.0}}, heads={head: {} for head in (*CLASSES, "other")})
    labels = bare | {"other": bare["job"]}
    both = [{head: one["job"] if head == "other" else one[head] for head in labels} for one in sides(0.9)]
    assert [entry["head"] for entry in compare(three, replace(DATASET.test, labels=labels), DEFAULT, both, both)] == ["job", "other"]


def test_few_labels_of_one_head_decide_neither_it_nor_the_whole() -> None:
    labels = {"job": DATASET.test.labels["job"], "grade": np.where(np.arange(400) < 12, DATASET.test.labels["grade"], -1)}
    found = compare(settings(), replace(DATASET.test, labels=labels), DEFAULT, sides(1.0), sides(0.0))
    assert [(one["head"], one["verdict"]) for one in found] == [
        ("job", "better"),
        ("grade", "not distinguishable"),
        (None, "not distinguishable"),
    ]
