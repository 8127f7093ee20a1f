"""Drift: the index by its formula, what chance brings, and the window it is told over."""

from typing import Any

import numpy as np
import pytest

from serving.messages import HeadAnswer
from serving.observing.drift import LEAST, WINDOW, Drift, stability
from training.manifest import AnswerShares, HeadFacts

SHARES = AnswerShares(count=1_000, classes=(0.6, 0.4), confidence=(0.0,) * 7 + (0.2, 0.3, 0.5))
HEAD = HeadFacts(name="job", classes=("nurse", "sales"), validation_answers=SHARES)


def counts(*values: float) -> Any:
    return np.array(values, dtype=np.float64)


def told(name: str | None, probability: float = 0.95, **scores: float) -> dict[str, HeadAnswer]:
    return {"job": HeadAnswer(class_=name, probability=probability, scores=scores or None)}


def test_the_index_is_its_formula() -> None:
    # Half an answer more in each bin: p = 50.5/101 twice; q = 25.5/101 and 75.5/101.
    # (.252475 - .5) ln(.252475 / .5) + (.747525 - .5) ln(.747525 / .5) = .169133 + .099544
    found = stability(counts(50, 50), counts(25, 75))
    assert found.index == pytest.approx(0.268677, abs=2e-6)
    # The 95 % quantile of chi-squared with one degree of freedom is 3.84146.
    assert found.by_chance == pytest.approx(3.84146 * (1 / 100 + 1 / 100), abs=1e-5)


def test_equal_distributions_differ_by_nothing_and_shifted_ones_by_much() -> None:
    expected = counts(500, 300, 200)
    assert stability(expected, counts(1_000, 600, 400)).index == pytest.approx(0.0, abs=1e-5)
    assert stability(expected, counts(200, 300, 500)).index > 0.25
    assert stability(expected, counts(520, 290, 190)).index < 0.1


def test_an_empty_bin_counts_and_one_that_is_empty_on_both_sides_does_not() -> None:
    shifted = stability(counts(100, 0), counts(0, 100))
    assert 0.25 < shifted.index < np.inf
    assert stability(counts(100, 0, 50), counts(80, 0, 70)) == stability(counts(100, 50), counts(80, 70))
    # One class alone has nothing to shift to.
    assert stability(counts(100), counts(300)).index == 0.0


@pytest.mark.parametrize(("bins", "texts", "answers"), [(5, 150, 2_000), (12, 90, 200), (23, 1_000, 2_000)])
def test_what_chance_brings_is_exceeded_once_in_twenty(bins: int, texts: int, answers: int) -> None:
    generator = np.random.default_rng(1)
    shares = generator.dirichlet(np.full(bins, 5.0))
    pairs = [(generator.multinomial(texts, shares), generator.multinomial(answers, shares)) for _ in range(1_000)]
    found = [stability(expected.astype(float), seen.astype(float)) for expected, seen in pairs]
    exceeded = np.mean([one.index > one.by_chance for one in found])
    assert 0.01 < exceeded < 0.08


def test_a_window_says_nothing_before_it_holds_enough() -> None:
    drift = Drift([HEAD])
    for number in range(LEAST - 1):
        drift.note(told("nurse" if number % 5 < 3 else "sales"))
    assert drift.compare() == {}
    drift.note(told("nurse"))
    classes, confidence = drift.compare()["job"]
    assert classes.index < 0.01
    # All lie in the highest bin, where half of the validation texts do.
    assert confidence.index > 0.25


def test_a_window_slides() -> None:
    drift = Drift([HEAD])
    for _ in range(WINDOW):
        drift.note(told("sales"))
    assert drift.compare()["job"][0].index > 0.25
    for number in range(WINDOW):
        drift.note(told("nurse" if number % 5 < 3 else "sales", 0.75 if number % 5 < 1 else 0.85 if number % 10 < 5 else 0.95))
    classes, confidence = drift.compare()["job"]
    assert classes.index < 0.001
    assert confidence.index < 0.1


def test_an_abstention_counts_for_the_class_that_was_most_probable() -> None:
    drift, same = Drift([HEAD]), Drift([HEAD])
    for _ in range(LEAST):
        drift.note(told(None, 0.55, nurse=0.45, sales=0.55))
        same.note(told("sales", 0.55))
    assert drift.compare() == same.compare()


def test_heads_whose_spread_is_not_known_are_left_out() -> None:
    drift = Drift([HEAD.model_copy(update={"validation_answers": None})])
    for _ in range(LEAST):
        drift.note(told("nurse"))
    assert drift.compare() == {}


def test_a_text_that_broke_the_engine_has_no_answer() -> None:
    drift = Drift([HEAD])
    drift.note({})
    assert drift.compare() == {}
