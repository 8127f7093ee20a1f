"""Importance finds what moved the score, and says nothing from few trials."""

import numpy as np

from training.search.deciding.importance import importance
from training.search.proposing.ledger import TrialHistory
from training.search.proposing.search_space import first_points
from training.settings import TrainingSettings

SETTINGS = TrainingSettings()


def histories(count: int) -> list[TrialHistory]:
    generator = np.random.default_rng(5)
    found = []
    for number in range(count):
        point = first_points(SETTINGS)[0] | {
            "layer_decay": float(generator.uniform(0.7, 1.0)),
            "warmup_fraction": float(generator.uniform(0, 0.2)),
        }
        found.append(TrialHistory(f"trial-{number}", "trial", number, point, 7, "sampler", [{"score": point["layer_decay"]}], "finished"))
    return found


def test_the_dimension_that_moved_the_score_comes_first() -> None:
    found = importance(SETTINGS, histories(20))
    assert list(found) == ["layer_decay", "warmup_fraction"]
    assert found["layer_decay"] > 0.8
    assert sum(found.values()) == 1.0 or abs(sum(found.values()) - 1.0) < 1e-6


def test_few_trials_tell_nothing() -> None:
    assert importance(SETTINGS, histories(9)) == {}
    assert importance(SETTINGS, []) == {}
