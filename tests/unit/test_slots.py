"""training.search.trials.slots: how many trials a cluster has room for, while machines come and go."""

from typing import Any

import pytest
import ray
from ray._private.state import state

from training.errors import TuningError
from training.search.trials.slots import at_once, most_concurrent, side_by_side, slots
from training.search_settings import TuningSettings


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a cluster has, and what it may grow to."""
    found: dict[str, Any] = {"now": {"CPU": 4.0}, "most": None}
    monkeypatch.setattr(ray, "cluster_resources", lambda: found["now"])
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: found["most"])
    return found


def make(**tuning: Any) -> TuningSettings:
    return TuningSettings.model_validate(tuning)


def test_more_trials_run_when_machines_come_and_fewer_when_they_go(cluster: dict[str, Any]) -> None:
    tuning = make(resources_per_trial={"cpu": 2, "gpu": 0})
    assert (slots(tuning), most_concurrent(tuning)) == (2, 2)
    cluster["now"] = {"CPU": 10.0, "GPU": 1.0}
    assert most_concurrent(tuning) == 5
    cluster["now"] = {"CPU": 1.0}
    assert most_concurrent(tuning) == 1


def test_machines_that_come_with_work_count_before_they_are_there(cluster: dict[str, Any]) -> None:
    cluster |= {"now": {"CPU": 0.0}, "most": {"CPU": 64, "GPU": 16, "trials": 16}}
    assert slots(make(resources_per_trial={"cpu": 2, "gpu": 1})) == 16
    assert slots(make(resources_per_trial={"cpu": 2, "gpu": 1}, workers_per_trial=4)) == 4


def test_tasks_of_the_first_rung_have_room_of_their_own(cluster: dict[str, Any]) -> None:
    cluster["now"] = {"CPU": 16.0, "GPU": 4.0}
    # Whoever encodes has what one worker of a trial has, however many a trial has; whoever tries heads needs no GPU.
    assert (side_by_side(1, 1), side_by_side(1, 0.5), side_by_side(2, 0)) == (4, 8, 8)
    cluster["now"] = {"CPU": 1.0}
    assert side_by_side(2, 1) == 1


def test_a_trial_that_has_no_room_anywhere_is_refused_with_what_there_is(cluster: dict[str, Any]) -> None:
    with pytest.raises(TuningError) as raised:
        slots(make(resources_per_trial={"cpu": 1, "gpu": 1}))
    assert raised.value.message == "a trial reserves 1 CPUs and 1 GPUs, but the cluster has 4 and 0"


def test_a_limit_and_a_population_have_their_own_number(cluster: dict[str, Any]) -> None:
    assert most_concurrent(make(max_concurrent_trials=7)) == 7
    assert most_concurrent(make(scheduler="pbt", num_samples=9)) == 9


def test_no_more_run_at_once_than_there_is_room_for(cluster: dict[str, Any]) -> None:
    cluster["now"] = {"CPU": 2.0}
    assert at_once(make(max_concurrent_trials=8)) == 2
    assert at_once(make(scheduler="pbt", num_samples=9)) == 2
    assert at_once(make(max_concurrent_trials=1)) == 1
    cluster["now"] = {"CPU": 0.0}
    assert at_once(make(max_concurrent_trials=8)) == 1
