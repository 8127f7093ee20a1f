"""What Ray Tune is handed, and when: explorations, then a wait for all of them, then what confirms."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cluster.storage import Storage
from training.search.agenda import Agenda, Exploration
from training.search.deciding.budget import Budget, used_by
from training.search.deciding.contest import confirmations, group_heads, refit
from training.search.deciding.group_scheduler import GroupScheduler
from training.search.proposing.ledger import Ledger
from training.search.proposing.searcher import FirstPoint, Proposer
from training.search.recorder import OpenLogs, Recorder, state_of
from training.search_settings import TuningSettings

TUNING = TuningSettings(num_samples=2, confirm_top=1, confirm_seeds=1)


class Judge(FIFOScheduler):  # type: ignore[misc]
    """Stops everybody."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return str(TrialScheduler.STOP)


def make(tmp_path: Path, groups: Sequence[str] = ("trial",), tuning: TuningSettings = TUNING, **changes: Any) -> Agenda:
    explorations = []
    for group in groups:
        heads = group_heads(group, ["a", "b"])
        proposer = Proposer({"rate": FloatDistribution(0.0, 1.0)}, [FirstPoint("default", {"rate": 0.5})], heads, TUNING)
        explorations.append(Exploration(group, heads, proposer, Judge(), seed=7))
    return Agenda(
        explorations=explorations,
        confirmations=lambda histories: confirmations(histories, TUNING),
        refit=lambda histories: refit(histories, tuning),
        heads_of=lambda group: group_heads(group, ["a", "b"]),
        checkpoints_of=lambda trial: [f"tune-0/{trial}/checkpoint_000001"],
        ledger=Ledger(Storage(str(tmp_path)), "ledger"),
        most_concurrent=lambda: 2,
        at_once=lambda: 2,
        **changes,
    )


def report(score: float, epoch: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "score": score,
        "head_scores": {"a": score, "b": score},
        "epoch": epoch,
        "best_number": epoch,
        "is_last": True,
        "time_total_s": 3.0,
        **changes,
    }


def end(agenda: Agenda, trial_id: str, score: float) -> None:
    agenda.heard(trial_id, report(score))
    agenda.ended(trial_id, "finished")


def test_what_confirms_waits_for_every_exploration(tmp_path: Path) -> None:
    agenda = make(tmp_path, ("trial", "single-a"))
    first, second = agenda.suggest("t0"), agenda.suggest("t1")
    assert (first["name"], first["heads"], first["point"], first["answers"]) == ("trial-0", ("a", "b"), {"rate": 0.5}, False)
    assert second["name"] == "trial-1"
    assert agenda.suggest("t2") is None  # two at once are enough
    end(agenda, "t0", 0.5)
    third = agenda.suggest("t2")
    assert (third["name"], third["heads"]) == ("single-a-0", ("a",))
    end(agenda, "t1", 0.6)
    assert agenda.suggest("t3")["name"] == "single-a-1"
    end(agenda, "t2", 0.4)
    assert agenda.suggest("t4") is None  # one exploration has not ended
    end(agenda, "t3", 0.3)
    fourth = agenda.suggest("t4")
    assert (fourth["name"], fourth["seed"], fourth["answers"], fourth["group"]) == ("confirm-1-8", 8, True, "confirm-trial")
    assert agenda.suggest("t5")["name"] == "confirm-0-8"
    end(agenda, "t4", 0.6)
    end(agenda, "t5", 0.5)
    assert agenda.suggest("t6")["name"] == "confirm-single-a-0-8"
    assert not agenda.is_handed_out
    assert agenda.suggest("t7") == Searcher.FINISHED
    assert agenda.is_handed_out


def test_epochs_that_a_population_trains_again_count_as_used_here_and_when_the_search_goes_on(tmp_path: Path) -> None:
    agenda = make(tmp_path)
    agenda.suggest("t0")
    for number, cpu_s in ((1, 10.0), (2, 20.0), (3, 30.0), (2, 25.0)):
        agenda.heard("t0", report(0.5, epoch=number, epoch_s=cpu_s, epoch_cpu_s=cpu_s, is_last=False))
    assert [one["epoch"] for one in agenda.live["t0"].epochs] == [1, 2]
    assert agenda.used.cpu_s == 85.0
    assert sum(used_by(one).cpu_s for one in agenda.ledger.histories().values()) == 85.0


def test_the_ledger_holds_everything_that_was_heard(tmp_path: Path) -> None:
    agenda = make(tmp_path)
    agenda.suggest("t0")
    agenda.heard("t0", report(0.5, point={"rate": 0.25}))
    agenda.ended("t0", "finished")
    found = Ledger(Storage(str(tmp_path)), "ledger").histories()["trial-0"]
    # Population based training moved the point on the way.
    assert (found.state, found.point, found.last["score"]) == ("finished", {"rate": 0.25}, 0.5)
    assert "time_total_s" not in found.last


def test_interrupted_trials_come_first_with_their_checkpoints(tmp_path: Path) -> None:
    begun = make(tmp_path)
    begun.suggest("t0")
    begun.heard("t0", report(0.5, is_last=False))
    again = make(tmp_path)
    again.histories = again.ledger.histories()
    history = again.histories["trial-0"]
    again.explorations[0].proposer.remember(history)
    again.pending.append((history, ("tune-0/trial-0/checkpoint_000000",)))
    order = again.suggest("t5")
    assert (order["name"], order["checkpoints"]) == ("trial-0", ("tune-0/trial-0/checkpoint_000000",))
    assert again.suggest("t6")["name"] == "trial-1"
    assert [event["trial"]["name"] for event in again.ledger.events("proposed")] == ["trial-0", "trial-1"]


def test_exploring_ends_while_its_best_can_still_be_confirmed(tmp_path: Path) -> None:
    agenda = make(tmp_path, budget=Budget(100.0))
    agenda.suggest("t0")
    agenda.heard("t0", report(0.5, epoch_s=60.0, epoch_cpu_s=50.0))
    agenda.ended("t0", "finished")
    assert agenda.used.cpu_s == 50.0
    # A trial costs 60 s, and so will the one that confirms it: a second place beside it makes it no shorter.
    agenda.spent_s = 30.0
    assert not agenda.is_spent
    agenda.spent_s = 45.0
    assert agenda.is_spent
    agenda.spent_s = 75.0
    assert agenda.suggest("t1") == Searcher.FINISHED  # 75 + 60 s: not even that
    agenda = make(tmp_path / "other", budget=Budget(200.0))
    agenda.suggest("t0")
    agenda.heard("t0", report(0.5, epoch_s=60.0))
    agenda.ended("t0", "finished")
    agenda.spent_s = 139.0
    agenda.explorations[0].proposer._used.add(1)
    assert agenda.suggest("t1")["name"] == "confirm-0-8"


def test_the_winner_is_trained_on_all_texts_when_everything_else_has_ended(tmp_path: Path) -> None:
    tuning = TUNING.model_copy(update={"refit": True})
    agenda = make(tmp_path, tuning=tuning)
    for name, score in (("t0", 0.5), ("t1", 0.6)):
        agenda.suggest(name)
        end(agenda, name, score)
    agenda.suggest("t2"), agenda.suggest("t3")
    assert agenda.suggest("t4") is None
    end(agenda, "t2", 0.6)
    assert agenda.suggest("t4") is None
    end(agenda, "t3", 0.5)
    order = agenda.suggest("t4")
    assert (order["name"], order["epochs"], order["answers"], order["point"]) == (
        "refit-1-7-1",
        (1,),
        True,
        agenda.histories["trial-1"].point,
    )
    end(agenda, "t4", 0.99)
    assert agenda.suggest("t5") == Searcher.FINISHED


def test_cpu_seconds_are_a_budget_too(tmp_path: Path) -> None:
    agenda = make(tmp_path, budget=Budget(cpu_s=100.0), beforehand_cpu_s=45.0)
    agenda.suggest("t0")
    assert not agenda.is_spent
    agenda.heard("t0", report(0.5, epoch_s=60.0, epoch_cpu_s=30.0))
    agenda.ended("t0", "finished")
    assert agenda.is_spent


def test_it_says_what_is_best_and_how_long_it_will_take(tmp_path: Path) -> None:
    agenda = make(tmp_path)
    assert agenda.status() == ""
    agenda.suggest("t0")
    agenda.heard("t0", report(0.5, interval=(0.4, 0.6), epoch_s=600.0))
    assert agenda.status() == "best so far trial-0 0.500 [0.400, 0.600]"
    agenda.ended("t0", "finished")
    # One more trial, and then one that confirms.
    assert agenda.status() == "best so far trial-0 0.500 [0.400, 0.600], about 20 min left"
    agenda.ledger.append("look", {"look": {"score": 0.6}, "is_model": False})
    agenda.ledger.append("look", {"look": {"score": 0.55}, "is_model": True})
    assert agenda.status() == "best so far trial-0 0.500 [0.400, 0.600] (words by themselves 0.550), about 20 min left"


class Rungs:
    """A ladder that passes over whatever the sampler proposes, and lets each trial climb once."""

    layers = 6

    def depths(self, point: Any) -> tuple[int, ...]:
        return (5,)

    def heads_score(self, point: Any) -> float:
        return 0.5

    def is_passed_over(self, scores: Any, own: float, histories: Any) -> bool:
        return True

    def next_climb(self, histories: Any, *, is_end: bool) -> Any:
        return next(((one, (5, 0)) for one in histories if one.is_sound and one.depths == (5,)), None)


def climbing(tmp_path: Path) -> Agenda:
    agenda = make(tmp_path)
    ladder: Any = Rungs()
    agenda.explorations = [replace(one, ladder=ladder) for one in agenda.explorations]
    return agenda


def test_a_trial_that_climbs_goes_on_from_its_checkpoints_and_the_sampler_hears_of_its_first_training_only(tmp_path: Path) -> None:
    agenda = climbing(tmp_path)
    first = agenda.suggest("t0")
    assert (first["name"], first["depths"], first["checkpoints"]) == ("trial-0", (5,), ())
    # The second one is the sampler's, and passed over.
    assert agenda.suggest("t1") is None
    assert agenda.histories["trial-1"].state == "passed over"
    end(agenda, "t0", 0.5)
    study = agenda.explorations[0].proposer.study
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]
    again = agenda.suggest("t2")
    assert (again["name"], again["depths"], again["checkpoints"]) == ("trial-0", (5, 0), ("tune-0/trial-0/checkpoint_000001",))
    assert (first["is_climb"], again["is_climb"]) == (False, True)
    agenda.heard("t2", report(0.7, epoch=2, is_climbing=True))
    agenda.ended("t2", "finished")
    assert study.trials[0].value == 0.5
    found = Ledger(Storage(str(tmp_path)), "ledger").histories()
    assert (found["trial-0"].state, found["trial-0"].last["score"], found["trial-0"].depths) == ("finished", 0.7, (5, 0))
    before = found["trial-0"].before_climbing()
    assert (before.state, before.last["score"]) == ("finished", 0.5)
    confirming = agenda.suggest("t3")
    # That trains the same depths, from the first on.
    assert (confirming["name"], confirming["is_climb"]) == ("confirm-0-8", False)


def test_training_all_layers_is_forecast_at_what_it_costs(tmp_path: Path) -> None:
    agenda = climbing(tmp_path)
    ladder: Any = agenda.explorations[0].ladder
    ladder.layers = 6
    agenda.suggest("t0")
    for epoch in (1, 2):
        agenda.heard("t0", report(0.5, epoch=epoch, is_last=epoch == 2, epoch_s=10.0, depth=5))
    agenda.ended("t0", "finished")
    order = agenda.suggest("t1")
    assert order["depths"] == (5, 0)
    left = agenda.left_s()
    # Two epochs of six layers instead of one.
    assert left is not None
    assert left >= 120.0
    agenda.heard("t1", report(0.7, epoch=3, is_climbing=True, is_last=False, epoch_s=100.0, depth=0))
    agenda.heard("t1", report(0.8, epoch=4, is_climbing=True, epoch_s=100.0, depth=0))
    agenda.ended("t1", "finished")
    # The sampler's trial is passed over. Whoever trains the best again trains all of it.
    assert agenda.suggest("t2")["name"] == "confirm-0-8"
    assert agenda.left_s() == pytest.approx(220.0)
    agenda.heard("t2", report(0.7, epoch=1, is_last=False, epoch_s=10.0, depth=5))
    assert agenda.left_s() == pytest.approx(210.0)


def test_what_is_too_dear_to_confirm_within_the_budget_is_not_begun(tmp_path: Path) -> None:
    agenda = make(tmp_path, budget=Budget(1_000.0))
    for name, score, seconds in (("t0", 0.5, 10.0), ("t1", 0.6, 600.0)):
        agenda.suggest(name)
        agenda.heard(name, report(score, epoch_s=seconds))
        agenda.ended(name, "finished")
    agenda.spent_s = 350.0
    assert not agenda.is_spent
    agenda.spent_s = 450.0
    assert agenda.is_spent
    # The mean of both would have left room for it.
    assert agenda.suggest("t2") == Searcher.FINISHED


@pytest.mark.parametrize("state", ["diverged", "out of memory", "died"])
def test_a_climb_that_ends_badly_leaves_the_trial_what_it_had(tmp_path: Path, state: str) -> None:
    agenda = climbing(tmp_path)
    agenda.suggest("t0")
    end(agenda, "t0", 0.5)
    agenda.suggest("t1")
    if state != "died":
        # A new process knows of no epoch before.
        key = "has_diverged" if state == "diverged" else "has_no_memory"
        agenda.heard("t1", {"score": 0.0, "head_scores": {}, "epoch": 0, "is_last": True, key: True, "is_climbing": True})
    agenda.ended("t1", state, "MemoryError" if state == "died" else "")
    for found in (agenda.histories["trial-0"], Ledger(Storage(str(tmp_path)), "ledger").histories()["trial-0"]):
        assert (found.state, found.last["score"], found.is_sound, found.has_failed) == ("stopped", 0.5, True, False)
        assert found.error.startswith(f"{state} while it climbed")


def test_however_small_the_budget_something_gets_a_score(tmp_path: Path) -> None:
    agenda = make(tmp_path, budget=Budget(1.0))
    agenda.spent_s = 10.0
    assert agenda.suggest("t0")["name"] == "trial-0"
    agenda.heard("t0", report(0.5, epoch=0, is_last=False))
    assert agenda.is_spent


def test_a_search_that_is_killed_while_a_trial_climbs_knows_that_it_has_not_ended(tmp_path: Path) -> None:
    agenda = climbing(tmp_path)
    agenda.suggest("t0")
    end(agenda, "t0", 0.5)
    agenda.suggest("t1")
    found = Ledger(Storage(str(tmp_path)), "ledger").histories()["trial-0"]
    assert (found.state, found.depths, found.is_climbing) == ("", (5, 0), True)


def died(trial_id: str, error: Exception, config: dict[str, Any], error_file: Path | None = None) -> SimpleNamespace:
    """What Tune hands over of a trial."""
    return SimpleNamespace(trial_id=trial_id, config=config, get_pickled_error=lambda: error, error_file=error_file)


def test_a_trial_that_died_is_told_and_one_that_recovers_works_in_smaller_parts(tmp_path: Path) -> None:
    agenda = make(tmp_path)
    recorder = Recorder(agenda)
    config = agenda.suggest("t0")
    trial = died("t0", MemoryError(), config)
    recorder.on_trial_recover(0, [], trial)
    assert config["parts"] == 2
    recorder.on_trial_error(0, [], trial)
    assert (agenda.histories["trial-0"].state, agenda.histories["trial-0"].error) == ("out of memory", "MemoryError")
    agenda.suggest("t1")
    recorder.on_trial_error(0, [], died("t1", ValueError(), {}))
    assert (agenda.histories["trial-1"].state, agenda.histories["trial-1"].error) == ("died", "ValueError")
    assert agenda.suggest("t2") == Searcher.FINISHED


@pytest.mark.parametrize(
    ("words", "state"),
    [
        (
            "Failure # 1 (at noon)\nno\nFailure # 2 (at one)\n1 worker(s) were killed due to the node running low on memory.",
            "out of memory",
        ),
        ("Failure # 1 (at noon)\nwere killed due to the node running low on memory\nFailure # 2 (at one)\nno", "died"),
    ],
)
def test_the_last_error_counts_also_where_only_its_words_are_kept(tmp_path: Path, words: str, state: str) -> None:
    agenda = make(tmp_path)
    agenda.suggest("t0")
    (tmp_path / "error.txt").write_text(words)
    trial = died("t0", ValueError(), {}, tmp_path / "error.txt")
    Recorder(agenda).on_trial_error(0, [], trial)
    assert agenda.histories["trial-0"].state == state


def test_the_logs_of_trials_that_a_search_leaves_behind_are_ended_once() -> None:
    ended: list[str] = []
    logger = SimpleNamespace(log_trial_end=lambda trial, failed: ended.append(f"{trial.trial_id} {failed}"))
    logs = OpenLogs([logger])  # type: ignore[list-item]
    done, died, left = (SimpleNamespace(trial_id=name) for name in ("done", "died", "left"))
    for trial in (done, died, left, left):
        logs.on_trial_start(0, [], trial)
    logs.on_trial_complete(0, [], done)
    logs.on_trial_error(0, [], died)
    logs.on_experiment_end([done, died, left])
    logs.on_experiment_end([done, died, left])
    assert ended == ["left True"]


@pytest.mark.parametrize(
    ("last", "state"),
    [
        ({"is_last": True, "has_diverged": True}, "diverged"),
        ({"is_last": True, "has_no_memory": True}, "out of memory"),
        ({"is_last": True}, "finished"),
        ({"is_last": False}, "stopped"),
        ({}, "stopped"),
    ],
)
def test_ends_have_names(last: dict[str, Any], state: str) -> None:
    assert state_of(last) == state


def test_nobody_stops_a_trial_that_confirms() -> None:
    scheduler = GroupScheduler({"trial": Judge()})
    trials = [SimpleNamespace(trial_id=group, config={"group": group}) for group in ("trial", "confirm-trial")]
    assert [scheduler.on_trial_result(None, trial, report(0.1)) for trial in trials] == [TrialScheduler.STOP, TrialScheduler.CONTINUE]
