"""Who proposes: every proposal can be repeated, each grid point comes once."""

from collections.abc import Mapping
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from training.search.proposing import samplers
from training.search.proposing.samplers import GridSampler, SamplerName, grid_levels, grid_note, make_sampler, startup_trials

SPACE: dict[str, BaseDistribution] = {
    "head_learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    "heads/category/dropout": FloatDistribution(0.0, 0.4),
    "heads/category/hidden_size": CategoricalDistribution((0, 128, 256)),
    "frozen_layers": IntDistribution(0, 5),
}
SEED = 7


def new_study(name: SamplerName, directions: int = 1, num_samples: int = 12) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(directions=["maximize"] * directions, sampler=make_sampler(name, SPACE, num_samples, SEED))


def step(study: optuna.Study, number: int) -> Mapping[str, Any]:
    """Ask and tell: every third trial is stopped early, trial 4 dies, trial 5 is out of memory."""
    trial = study.ask(SPACE)
    score = trial.params["heads/category/dropout"] - abs(trial.params["frozen_layers"] - 2) / 10
    directions = len(study.directions)
    if number == 5:
        trial.set_constraint("memory", 1.0)
    if directions == 1:
        trial.report(score / 2, 1)
    if number == 4:
        study.tell(trial, state=TrialState.FAIL)
    elif number % 3 == 2:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, [score] * directions)
    return trial.params


def rebuilt(study: optuna.Study, name: SamplerName) -> optuna.Study:
    """A new study from what a ledger holds of another."""
    again = new_study(name, len(study.directions))
    for trial in study.trials:
        again.add_trial(
            create_trial(
                state=trial.state,
                values=trial.values if trial.state == TrialState.COMPLETE else None,
                params=trial.params,
                distributions=trial.distributions,
                intermediate_values=trial.intermediate_values,
                constraints=trial.constraints,
            )
        )
    return again


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("name", ["tpe", "gp", "random", "grid"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_an_interrupted_search_proposes_what_the_uninterrupted_one_does(name: SamplerName, directions: int) -> None:
    whole = new_study(name, directions)
    proposed = [step(whole, number) for number in range(10)]
    begun = new_study(name, directions)
    first = [step(begun, number) for number in range(7)]
    resumed = rebuilt(begun, name)
    assert first + [step(resumed, number) for number in range(7, 10)] == proposed


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_another_seed_and_another_number_propose_something_else(name: SamplerName) -> None:
    studies = [optuna.create_study(sampler=make_sampler(name, SPACE, 12, seed)) for seed in (7, 7, 8, -7)]
    points = [study.ask(SPACE).params for study in studies]
    assert points[0] == points[1]
    assert all(points[0] != other for other in (points[2], points[3], studies[0].ask(SPACE).params))


def test_tpe_learns_and_ranks_trials_out_of_memory_last() -> None:
    study = new_study("tpe", num_samples=30)
    for _ in range(30):
        trial = study.ask(SPACE)
        is_too_large = trial.params["heads/category/hidden_size"] == 256
        if is_too_large:
            trial.set_constraint("memory", 1.0)
        trial.report(trial.params["heads/category/dropout"], 1)
        study.tell(trial, None if is_too_large else trial.params["heads/category/dropout"], TrialState(2 if is_too_large else 1))
    late = [trial.params for trial in study.trials[15:]]
    assert sum(point["heads/category/hidden_size"] == 256 for point in late) <= 3
    assert sum(point["heads/category/dropout"] > 0.2 for point in late) >= 12


def test_running_trials_are_not_proposed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a liar, TPE would propose near the best again and again until somebody tells it how that went.
    space = {"dropout": FloatDistribution(0.0, 1.0)}

    def width_of_twenty() -> float:
        study = optuna.create_study(direction="maximize", sampler=make_sampler("tpe", space, 30, SEED))
        for _ in range(20):
            trial = study.ask(space)
            study.tell(trial, -abs(trial.params["dropout"] - 0.3))
        asked = [float(study.ask(space).params["dropout"]) for _ in range(20)]
        return max(asked) - min(asked)

    with_liar = width_of_twenty()
    made = samplers.TPESampler
    monkeypatch.setattr(samplers, "TPESampler", lambda **options: made(**options | {"constant_liar": False}))
    assert with_liar > 0.5 > 0.2 > width_of_twenty()


@pytest.mark.parametrize(("num_samples", "startup"), [(1, 4), (8, 4), (15, 5), (30, 10), (400, 10)])
def test_a_third_explores(num_samples: int, startup: int) -> None:
    assert startup_trials(num_samples) == startup


def test_grid_levels() -> None:
    assert grid_levels(FloatDistribution(1e-4, 1e-2, log=True)) == [1e-4, pytest.approx(1e-3), 1e-2]
    assert grid_levels(FloatDistribution(0.0, 0.4)) == [0.0, 0.2, 0.4]
    assert grid_levels(IntDistribution(0, 5)) == [0, 2, 5]
    assert grid_levels(IntDistribution(0, 1)) == [0, 1]
    assert grid_levels(CategoricalDistribution(("softmax", "corn"))) == ["softmax", "corn"]


def test_grid_visits_every_point_once_then_random_ones() -> None:
    space = {name: SPACE[name] for name in ("heads/category/dropout", "heads/category/hidden_size")}
    study = optuna.create_study(sampler=GridSampler(space, 12, SEED))
    # A configuration from elsewhere that happens to stand on the grid is not visited again.
    study.enqueue_trial({"heads/category/dropout": 0.2, "heads/category/hidden_size": 128})
    points = [study.ask(space).params for _ in range(12)]
    visited = {(point["heads/category/dropout"], point["heads/category/hidden_size"]) for point in points[:9]}
    assert visited == {(dropout, size) for dropout in (0.0, 0.2, 0.4) for size in (0, 128, 256)}
    assert all(point["heads/category/dropout"] not in (0.0, 0.2, 0.4) for point in points[9:])
    assert len({tuple(point.values()) for point in points}) == 12


def test_grid_note_tells_how_much_is_visited() -> None:
    assert grid_note(SPACE, 10) == "the grid has 81 points, and 10 trials visit 12.35% of them, in random order"
    assert grid_note(SPACE, 81) == "the grid has 81 points; all are visited"
    assert grid_note(SPACE, 84) == "the grid has 81 points; all are visited, and 3 more trials are random"


@pytest.mark.parametrize("dimensions", [30, 60])
def test_a_large_grid_is_not_listed(dimensions: int) -> None:
    # 3 to the power of 60 is more than Python's own ranges can count.
    space: dict[str, BaseDistribution] = {f"heads/h{number}/dropout": FloatDistribution(0.0, 0.5) for number in range(dimensions)}
    study = optuna.create_study(sampler=GridSampler(space, 4, SEED))
    asked = [study.ask(space).params for _ in range(3)]
    assert {value for one in asked for value in one.values()} <= {0.0, 0.25, 0.5}
    assert asked[0] != asked[1] != asked[2]
    again = optuna.create_study(sampler=GridSampler(space, 4, SEED))
    assert again.ask(space).params == asked[0]
