"""What is told anew of a version: its own figures, but never those of texts it learned."""

from typing import Any

import pytest

from tests.unit.test_judge import DATASET, judged
from training.data.dataset import Dataset
from training.search.review import renewed


def record(name: str) -> dict[str, Any]:
    return judged(0.7) | {"published": {"name": name}}


def test_figures_are_those_of_now() -> None:
    now = judged(0.9)
    assert renewed(record("trial-3"), DATASET, now) == now


def test_what_was_said_of_texts_that_were_learned_since_stays() -> None:
    before, now = record("refit-3"), judged(0.9)
    told = renewed(before, DATASET, now)
    for part in ("metrics", "confusion"):
        assert told[part] == {"test": now[part]["test"], "validation": before[part]["validation"]}
        assert now[part]["validation"] != before[part]["validation"]
    for part in ("calibration", "abstention"):
        for head, own in told[part].items():
            assert own["validation"] == before[part][head]["validation"]
            assert {key: value for key, value in own.items() if key != "validation"} == {
                key: value for key, value in now[part][head].items() if key != "validation"
            }
    assert told["intervals"] == now["intervals"]


@pytest.mark.parametrize(("name", "is_told"), [("trial-3", True), ("refit-3", False)])
def test_without_test_texts_nothing_of_a_refitted_model_can_be_told_anew(name: str, is_told: bool) -> None:
    bare = Dataset(DATASET.classes, DATASET.training, DATASET.validation, DATASET.test.take([]), "digest", ())
    assert bool(renewed(record(name), bare, judged(0.9))) is is_told
