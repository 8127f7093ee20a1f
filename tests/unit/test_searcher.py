"""What Optuna is told: finished trials COMPLETE, stopped ones PRUNED, dead and diverged ones FAIL."""

from typing import Any

import pytest
from optuna.trial import TrialState
from ray import tune

from training.searcher import TrialSearcher

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def searcher() -> TrialSearcher:
    space = {"rate": tune.loguniform(1e-5, 1e-2), "heads": {"a": {"hidden_size": tune.choice([0, 64])}}}
    return TrialSearcher(space, [{"rate": 1e-3, "heads/a/hidden_size": 64}], num_samples=8, seed=3)


def report(score: float, iteration: int, **changes: Any) -> dict[str, Any]:
    return {"score": score, "training_iteration": iteration, "is_last": False, "has_diverged": False, **changes}


def test_trial_0_is_the_given_point(searcher: TrialSearcher) -> None:
    assert searcher.suggest("t0") == {"rate": 1e-3, "heads": {"a": {"hidden_size": 64}}}


def test_the_same_seed_proposes_the_same(searcher: TrialSearcher) -> None:
    again = TrialSearcher({"rate": tune.loguniform(1e-5, 1e-2)}, [], 8, seed=3)
    other = TrialSearcher({"rate": tune.loguniform(1e-5, 1e-2)}, [], 8, seed=3)
    assert [again.suggest(str(i)) for i in range(5)] == [other.suggest(str(i)) for i in range(5)]


@pytest.mark.parametrize(
    ("last", "error", "state", "value"),
    [
        (report(0.7, 3, is_last=True), False, TrialState.COMPLETE, 0.7),
        (report(0.5, 2), False, TrialState.PRUNED, 0.5),
        (report(0.4, 2, has_diverged=True, is_last=True), False, TrialState.FAIL, None),
        (report(0.4, 2), True, TrialState.FAIL, None),
        (None, True, TrialState.FAIL, None),
    ],
)
def test_each_end_is_told_as_what_it_is(
    searcher: TrialSearcher, last: dict[str, Any] | None, error: bool, state: TrialState, value: float | None
) -> None:
    searcher.suggest("t0")
    if last is not None:
        searcher.on_trial_result("t0", last)
    searcher.on_trial_complete("t0", last, error=error)
    trial = searcher.study.trials[0]
    assert (trial.state, trial.value) == (state, value)


def test_an_end_told_twice_counts_once(searcher: TrialSearcher) -> None:
    searcher.suggest("t0")
    searcher.on_trial_complete("t0", report(0.7, 3, is_last=True))
    searcher.on_trial_complete("t0", report(0.1, 4, is_last=True))
    assert searcher.study.trials[0].value == 0.7
