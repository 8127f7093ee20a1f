"""Fronts, knees and the rule that picks a trial."""

from typing import Any

import numpy as np
import pytest
from optuna.study import StudyDirection

from cluster.errors import SettingsError
from training.search.deciding.pareto import Pick, front, knee, parse_pick, pick, ranks

HEADS = ["category", "education"]


def test_front_holds_what_nothing_beats() -> None:
    assert front([(0.5, 0.5), (0.6, 0.4), (0.4, 0.4), (0.6, 0.3)]) == [0, 1]


def test_equal_rows_stand_on_the_front_together() -> None:
    assert front([(0.5, 0.5), (0.5, 0.5), (0.5, 0.4)]) == [0, 1]


def test_front_of_one_head_is_its_maximum() -> None:
    assert front([(0.1,), (0.7,), (0.3,)]) == [1]


def test_ranks_agree_with_optuna() -> None:
    oracle = pytest.importorskip("optuna.study._multi_objective")._fast_non_domination_rank
    scores = np.random.default_rng(3).integers(0, 12, size=(60, 3)) / 12
    assert ranks(scores.tolist()) == oracle(-scores).tolist()
    assert front(scores.tolist()) == [row for row, rank in enumerate(ranks(scores.tolist())) if rank == 0]
    assert StudyDirection.MAXIMIZE  # Optuna ranks losses, hence the sign above.


def test_knee_bulges_most_after_scaling() -> None:
    # The second head moves ten times as far; unscaled, (0.50, 0.90) would win.
    assert knee([(0.50, 0.90), (0.59, 0.70), (0.60, 0.10), (0.10, 0.05)]) == 1


def test_knee_of_two_has_the_greater_sum() -> None:
    assert knee([(0.5, 0.7), (0.6, 0.65)]) == 1


def test_knee_of_one_and_of_equals_is_the_first() -> None:
    assert knee([(0.5, 0.7)]) == 0
    assert knee([(0.5, 0.7), (0.5, 0.7)]) == 0


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("knee", Pick({}, None)),
        ("education >= 0.70, then category", Pick({"education": 0.7}, "category")),
        ("education>=.7 and category >= 0.5 then category", Pick({"education": 0.7, "category": 0.5}, "category")),
        ("category >= 0.5, and education >= 1, then education", Pick({"category": 0.5, "education": 1.0}, "education")),
        ("education >= -0.2, then category", Pick({"education": -0.2}, "category")),
        ("then category", Pick({}, "category")),
    ],
)
def test_rules_are_read(rule: str, expected: Pick) -> None:
    assert parse_pick(rule, HEADS) == expected


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("education >= 0.70", "must be 'knee' or end with 'then HEAD'"),
        ("", "must be 'knee'"),
        ("education > 0.70, then category", "'education > 0.70' cannot be read"),
        ("education >= high, then category", "'education >= high' cannot be read"),
        ("education >= 0.7 category >= 0.5, then category", "cannot be read"),
        ("education >= 0.7,, then category, then education", "cannot be read"),
        ("wage >= 0.70, then category", "names head 'wage', but the heads are category, education"),
        ("education >= 0.70, then wage", "names head 'wage'"),
        ("education >= 0.7, education >= 0.8, then category", "names head 'education' in two conditions"),
    ],
)
def test_other_rules_are_refused(rule: str, found: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_pick(rule, HEADS)
    assert found in refused.value.message
    assert "training.tuning.pick" in refused.value.message
    assert refused.value.hint


def scores(*pairs: tuple[float, float]) -> dict[int, Any]:
    return {number: dict(zip(HEADS, pair, strict=True)) for number, pair in enumerate(pairs)}


def test_pick_maximises_among_those_that_meet_the_conditions() -> None:
    assert pick(scores((0.9, 0.6), (0.8, 0.7), (0.7, 0.8)), parse_pick("education >= 0.70, then category", HEADS)) == (1, "")


def test_pick_of_equals_is_the_better_elsewhere_then_the_earlier() -> None:
    rule = parse_pick("then category", HEADS)
    assert pick(scores((0.8, 0.6), (0.8, 0.7), (0.8, 0.7)), rule).trial == 1


def test_pick_knows_trials_by_their_numbers() -> None:
    assert pick({4: {"category": 0.5, "education": 0.5}, 9: {"category": 0.6, "education": 0.6}}, parse_pick("knee", HEADS)).trial == 9


def test_pick_falls_back_on_the_least_miss_and_says_so() -> None:
    rule = parse_pick("education >= 0.9, category >= 0.75, then category", HEADS)
    trial, note = pick(scores((0.9, 0.6), (0.7, 0.86), (0.5, 0.9)), rule)
    assert trial == 1
    assert note == (
        "no trial meets every condition of the pick; trial 1 misses least: education 0.860 (wanted 0.9), category 0.700 (wanted 0.75)"
    )
