"""Who goes on: rungs decide as Ray's ASHA does and survive a new process; a population keeps its numbers."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from cluster.connection import connect
from cluster.settings import ClusterSettings
from training.search.deciding.schedulers import Population, RungScheduler, make_scheduler, mutable, replay, rungs
from training.search_settings import Choices, Range, TuningSettings

RATE = Range(low=1e-5, high=2e-4, log=True)
DROPOUT = Range(low=0.0, high=0.4)
DIMENSIONS = {
    "encoder_learning_rate": RATE,
    "batch_tokens": Choices(choices=(1024, 2048)),
    "heads/category/dropout": DROPOUT,
    "heads/category/hidden_size": Choices(choices=(0, 128)),
    "heads/education/loss_weight": Choices(choices=(0.5, 1.0, 2.0)),
    "heads/education/loss": Choices(choices=("softmax", "corn")),
}


def make(name: str, epochs: int = 9, **changes: Any) -> TrialScheduler:
    return make_scheduler(TuningSettings(scheduler=name, **changes), epochs, DIMENSIONS)  # type: ignore[arg-type]


def trial(number: int) -> Any:
    return SimpleNamespace(config={"number": number}, trial_id=str(number))


def results(seed: int, trials: int = 40, epochs: int = 9) -> list[tuple[int, dict[str, Any]]]:
    """Epochs of several trials in the order they might come in, best-so-far scores, some equal."""
    chance = random.Random(seed)
    epoch, score = [0] * trials, [0.0] * trials
    order = [number for number in range(trials) for _ in range(epochs)]
    chance.shuffle(order)
    reports = []
    for number in order:
        epoch[number] += 1
        score[number] = max(score[number], round(chance.random(), 2))
        reports.append((number, {"score": score[number], "epoch": epoch[number], "training_iteration": epoch[number]}))
    return reports


@pytest.mark.parametrize(("reduction", "grace", "epochs"), [(2, 2, 9), (3, 1, 9), (2.5, 3, 8), (2, 9, 9), (4, 2, 5)])
def test_rungs_decide_as_rays_asha(reduction: float, grace: int, epochs: int) -> None:
    ours = make("asha", epochs, reduction_factor=reduction, grace_period=grace)
    oracle = ASHAScheduler(metric="score", mode="max", max_t=epochs, grace_period=grace, reduction_factor=reduction)
    stopped: set[int] = set()
    decisions = []
    for number in range(40):
        oracle.on_trial_add(None, trial(number))
    for number, result in results(seed=5, epochs=epochs):
        if number not in stopped:
            decision = ours.on_trial_result(None, trial(number), result)
            assert decision == oracle.on_trial_result(None, trial(number), result)
            decisions.append((result["epoch"], decision))
            stopped |= {number} if decision == TrialScheduler.STOP else set()
    assert (grace, TrialScheduler.STOP) in decisions
    assert (grace, TrialScheduler.CONTINUE) in decisions or grace == epochs


def test_grace_is_cut_to_the_epochs() -> None:
    scheduler = make("asha", epochs=1, grace_period=5)
    assert scheduler.on_trial_result(None, trial(0), {"score": 0.5, "epoch": 1}) == TrialScheduler.STOP


@pytest.mark.parametrize("name", ["asha", "hyperband"])
def test_a_new_process_decides_as_the_old_one(name: str) -> None:
    reports = [(number, report) for number, report in results(seed=9) if report["epoch"] < 9]
    whole, begun = make(name), make(name)
    half = len(reports) // 2
    decisions = [whole.on_trial_result(None, trial(number), report) for number, report in reports]
    for number, report in reports[:half]:
        begun.on_trial_result(None, trial(number), report)
    resumed = make(name)
    stopped = replay(resumed, [(number, [report]) for number, report in reports[:half]])
    assert stopped.keys() == {
        number for (number, _), decision in zip(reports[:half], decisions, strict=False) if decision == TrialScheduler.STOP
    }
    assert [resumed.on_trial_result(None, trial(number), report) for number, report in reports[half:]] == decisions[half:]
    assert TrialScheduler.STOP in decisions[half:]


def test_a_trial_is_judged_once_at_a_rung() -> None:
    scheduler = make("asha")
    replay(scheduler, [(1, [{"score": 0.1, "epoch": 2}]), (0, [{"score": 0.9, "epoch": 2}])])
    # Trial 1 went on when nobody had come before it; reported again after a retry, it still does.
    assert scheduler.on_trial_result(None, trial(1), {"score": 0.1, "epoch": 2}) == TrialScheduler.CONTINUE
    assert scheduler.on_trial_result(None, trial(2), {"score": 0.1, "epoch": 2}) == TrialScheduler.STOP
    # And what was to be stopped stays so, however good it is when it is heard of again.
    assert scheduler.on_trial_result(None, trial(2), {"score": 0.99, "epoch": 3}) == TrialScheduler.STOP


def test_nobody_stops_what_is_ordered_to_climb_whatever_it_trains() -> None:
    """All its checkpoints lost, a climb trains again what it was stopped at."""
    scheduler = make("asha")
    replay(scheduler, [(1, [{"score": 0.9, "epoch": 2}]), (0, [{"score": 0.1, "epoch": 2}])])
    again = {"score": 0.1, "epoch": 2, "is_climbing": False}
    assert scheduler.on_trial_result(None, trial(0), again) == TrialScheduler.STOP
    climber = SimpleNamespace(config={"number": 0, "is_climb": True}, trial_id="0")
    assert scheduler.on_trial_result(None, climber, again) == TrialScheduler.CONTINUE


def test_rungs_compare_what_was_trained_not_what_a_trial_began_with() -> None:
    scheduler = make("asha")
    milestone = rungs(2, 8, 2.0)[0]
    begun = {"score": 0.8, "trained_score": None, "epoch": 0}
    assert scheduler.on_trial_result(None, trial(0), begun) == TrialScheduler.CONTINUE
    for number, trained, decision in ((0, 0.6, TrialScheduler.CONTINUE), (1, 0.7, TrialScheduler.CONTINUE), (2, 0.5, TrialScheduler.STOP)):
        result = {"score": 0.8, "trained_score": trained, "epoch": milestone}
        assert scheduler.on_trial_result(None, trial(number), result) == decision


def test_a_diverged_trial_leaves_no_trace() -> None:
    scheduler = make("asha")
    scheduler.on_trial_result(None, trial(0), {"score": 0.0, "epoch": 0, "has_diverged": True})
    assert scheduler.debug_string() == "Rungs with trials: none"


def test_hyperband_has_brackets_that_stop_later_and_one_that_stops_nobody() -> None:
    scheduler = make("hyperband")
    assert isinstance(scheduler, RungScheduler)
    brackets = [scheduler.bracket(number) for number in range(200)]
    assert brackets == [scheduler.bracket(number) for number in range(200)]
    assert set(brackets) == {0, 1, 2, 3}
    assert brackets.count(0) > brackets.count(1) > brackets.count(3)
    lenient = [number for number in range(200) if scheduler.bracket(number) == 3]
    for place, number in enumerate(lenient):
        for epoch in range(1, 9):
            assert scheduler.observe(number, {"score": 1 - place / 1000, "epoch": epoch})


def test_rungs_are_where_they_should_be() -> None:
    assert rungs(2, 9, 2.0) == (2, 4, 8)
    assert rungs(1, 9, 3.0) == (1, 3, 9)
    assert rungs(3, 4, 3.0) == (3,)


def test_none_lets_everybody_go_on() -> None:
    scheduler = make("none")
    assert isinstance(scheduler, FIFOScheduler)
    replay(scheduler, [(0, [{"score": 0.9, "epoch": 2}])])
    assert scheduler.on_trial_result(None, trial(1), {"score": 0.0, "epoch": 8}) == TrialScheduler.CONTINUE


def test_only_what_can_change_in_mid_training_is_changed() -> None:
    assert set(mutable(DIMENSIONS)) == {"encoder_learning_rate", "heads/category/dropout", "heads/education/loss_weight"}
    population = make("pbt")
    assert isinstance(population, Population)
    point = {
        "encoder_learning_rate": 2e-4,
        "batch_tokens": 1024,
        "heads/category/dropout": 0.0,
        "heads/category/hidden_size": 128,
        "heads/education/loss_weight": 2.0,
        "heads/education/loss": "corn",
    }
    seen = [population.explore({"number": 3, "point": point})["point"] for _ in range(200)]
    assert point["heads/category/dropout"] == 0.0
    for path in ("batch_tokens", "heads/category/hidden_size", "heads/education/loss"):
        assert {one[path] for one in seen} == {point[path]}
    rates, dropouts = ({one[path] for one in seen} for path in ("encoder_learning_rate", "heads/category/dropout"))
    assert {1.6e-4, 2e-4} <= rates
    assert min(rates) >= RATE.low
    assert max(rates) <= RATE.high
    assert pytest.approx(0.04) in [min(dropouts - {0.0}, key=lambda value: abs(value - 0.04))]
    assert len(dropouts) > 20
    assert all(0 <= value <= 0.4 for value in dropouts)
    assert {one["heads/education/loss_weight"] for one in seen} == {0.5, 1.0, 2.0}


def test_a_population_lets_the_least_trained_of_its_own_go_on() -> None:
    population = make("pbt", grace_period=1)
    population.set_search_properties("score", "max")
    checkpoints = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
    old, young, foreign = (
        Waiting(trial_id=name, status="RUNNING", experiment_tag=name, run_metadata=SimpleNamespace(checkpoint_manager=checkpoints))
        for name in ("old", "young", "foreign")
    )
    population.on_trial_add(None, old)
    population.on_trial_add(None, young)
    controller: Any = SimpleNamespace(get_trials=lambda: [foreign, old, young], _schedule_trial_save=lambda *_, **__: None)
    population.on_trial_result(controller, old, {"score": 0.5, "epoch": 3})
    population.on_trial_result(controller, young, {"score": 0.6, "epoch": 1})
    for one in (foreign, old, young):
        one.status = "PAUSED"
    assert population.choose_trial_to_run(controller) is young


def test_of_equally_trained_ones_who_has_waited_longest_goes_on() -> None:
    population = make("pbt", grace_period=1)
    population.set_search_properties("score", "max")
    checkpoints = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
    first, second = (
        Waiting(trial_id=name, status="RUNNING", experiment_tag=name, run_metadata=SimpleNamespace(checkpoint_manager=checkpoints))
        for name in ("first", "second")
    )
    controller: Any = SimpleNamespace(get_trials=lambda: [first, second], _schedule_trial_save=lambda *_, **__: None)
    for one in (first, second):
        population.on_trial_add(None, one)
    for one in (second, first):
        population.on_trial_result(controller, one, {"score": 0.5, "epoch": 1})
    first.status = second.status = "PAUSED"
    assert population.choose_trial_to_run(controller) is second


class Waiting(SimpleNamespace):
    """As much of a trial of Tune as a population looks at."""

    config = {"number": 0, "point": {}}

    def __hash__(self) -> int:
        return hash(self.trial_id)

    def is_finished(self) -> bool:
        return False


def climb(config: dict[str, Any]) -> None:
    """Learn by the rate, up to the best so far; the checkpoint holds epoch and score."""
    import json
    import tempfile

    from ray import tune

    state = {"epoch": 0, "score": 0.0}
    if (checkpoint := tune.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            state = json.loads((Path(folder) / "state.json").read_text())
    while state["epoch"] < 8:
        state = {"epoch": state["epoch"] + 1, "score": state["score"] + config["point"]["encoder_learning_rate"]}
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "state.json").write_text(json.dumps(state))
            report = state | {"number": config["number"], "size": config["point"]["heads/category/hidden_size"]}
            tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_population_inside_tune_copies_the_better_half_and_keeps_its_numbers(tmp_path: Path) -> None:
    from ray import tune

    class Points(tune.search.Searcher):  # type: ignore[misc]
        proposed = 0

        def suggest(self, trial_id: str) -> Any:
            if self.proposed == 4:
                return tune.search.Searcher.FINISHED
            self.proposed += 1
            rate = 1e-5 * self.proposed**2
            return {"number": self.proposed - 1, "point": {"encoder_learning_rate": rate, "heads/category/hidden_size": self.proposed}}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            pass

    with connect(ClusterSettings(num_cpus=2)):
        tuner = tune.Tuner(
            tune.with_resources(climb, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=4,
                search_alg=Points(),
                scheduler=make("pbt", epochs=8, grace_period=2),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name="pbt", storage_path=str(tmp_path), verbose=0),
        )
        ended = tuner.fit()
    assert not ended.errors
    assert sorted(one.metrics["number"] for one in ended) == [0, 1, 2, 3]
    assert all(one.metrics["epoch"] == 8 for one in ended)
    # Sizes come with the weights: the slowest learner ends with a size that was not its own.
    sizes = {one.metrics["number"]: one.metrics["size"] for one in ended}
    assert sizes != {0: 1, 1: 2, 2: 3, 3: 4}
    assert all(one.config["number"] == one.metrics["number"] for one in ended)
