"""What is counted for every request and batch."""

from types import SimpleNamespace
from typing import Any

from serving.messages import Answer, HeadAnswer
from serving.observing.drift import LEAST
from serving.observing.histogram import SECONDS, TEXTS, TOKENS, Histogram
from serving.observing.seen import MOST_CLASSES, OTHER, Seen
from serving.scheduling.counted import Counters
from training.manifest import AnswerShares, HeadFacts

SHARES = AnswerShares(count=100, classes=(0.5, 0.5), confidence=(0.0,) * 9 + (1.0,))


def predictor(version: int, *heads: HeadFacts) -> Any:
    return SimpleNamespace(version=version, manifest=SimpleNamespace(heads=heads))


def answer(truncated: bool = False, **heads: str | None) -> Answer:
    told = {head: HeadAnswer(class_=name, probability=0.95, scores={"a": 0.95, "b": 0.05}) for head, name in heads.items()}
    return Answer(heads=told, tokens=3, truncated=truncated)


def test_a_histogram_counts_up_to_its_boundaries() -> None:
    histogram = Histogram((1.0, 2.5))
    for value in (0.5, 1.0, 1.1, 2.5, 9.0):
        histogram.note(value)
    assert histogram.cumulative() == [("1", 2), ("2.5", 4), ("+Inf", 5)]
    assert (histogram.total, histogram.count) == (14.1, 5)


def test_boundaries_rise() -> None:
    for bounds in (SECONDS, TOKENS, TEXTS):
        assert list(bounds) == sorted(set(bounds))
        assert bounds[0] > 0


def test_batches_are_counted_by_size_and_time() -> None:
    counters, others = Counters(), Counters()
    counters.note_batch(texts=3, tokens=100, compute_s=0.004)
    assert (counters.batch_texts.total, counters.batch_tokens.total, counters.batch_seconds.total) == (3, 100, 0.004)
    assert (counters.batch_texts.count, others.batch_texts.count) == (1, 0)


def test_answers_are_counted_by_head_and_class() -> None:
    seen = Seen()
    version = predictor(1, HeadFacts(name="job", classes=("a", "b")), HeadFacts(name="edu", classes=("a", "b")))
    seen.note(version, [answer(job="a", edu="b"), answer(truncated=True, job="a", edu=None)])
    seen.note(version, [Answer(heads={}, tokens=3, truncated=True, error="the engine failed on text 0")])
    assert seen.named == {("job", "a"): 2, ("edu", "b"): 1}
    assert seen.truncated == 2


def test_beyond_the_first_classes_of_all_versions_they_come_together() -> None:
    seen = Seen()
    names = tuple(f"c{number}" for number in range(MOST_CLASSES - 1))
    many = HeadFacts(name="job", classes=names)
    seen.note(predictor(1, many), [answer(job=names[-1])])
    # One place is left, for the first class of the next head; those of the first version keep theirs.
    two = predictor(2, many, HeadFacts(name="edu", classes=("a", "b")))
    seen.note(two, [answer(job=names[0], edu="a"), answer(edu="b")])
    assert seen.named == {("job", names[-1]): 1, ("job", names[0]): 1, ("edu", "a"): 1, ("edu", OTHER): 1}


def test_drift_is_that_of_the_version_that_answers() -> None:
    seen = Seen()
    head = HeadFacts(name="job", classes=("a", "b"), validation_answers=SHARES)
    seen.note(predictor(1, head), [answer(job="a")] * LEAST)
    assert seen.drift(1)["job"][0].index > 0.25
    # A request that began with the old version ends after the swap.
    seen.note(predictor(2, head), [answer(job="a"), answer(job="b")] * (LEAST // 2))
    seen.note(predictor(1, head), [answer(job="a")])
    assert seen.drift(2)["job"][0].index < 0.1
    assert seen.drift(1) == {}
