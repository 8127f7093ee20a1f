"""What a search does within a budget: when exploring ends, whose turn it is, and what is forecast of the rest."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from tests.unit.test_agenda import TUNING, make, report
from training.search.agenda import Agenda
from training.search.deciding.budget import Budget, Cost
from training.search.deciding.contest import confirmations
from training.search.deciding.forecast import Forecast
from training.search.deciding.schedulers import Population
from training.search.proposing.ledger import TrialHistory
from training.search_settings import TuningSettings

MANY = TuningSettings(num_samples=1_000, confirm_top=4, confirm_seeds=2)


def ended(agenda: Agenda, trial_id: str, score: float, seconds: float = 60.0) -> None:
    agenda.heard(trial_id, report(score, epoch_s=seconds))
    agenda.ended(trial_id, "finished")


def exploring(tmp_path: Path, budget: Budget, groups: Sequence[str] = ("trial",), tuning: TuningSettings = MANY) -> Agenda:
    """Return a search that may propose a thousand trials of each group."""
    agenda = make(tmp_path, groups, tuning, budget=budget)
    for one in agenda.explorations:
        one.proposer._tuning = tuning
    agenda.confirmations = lambda histories: confirmations(histories, tuning)
    return agenda


def explored(tmp_path: Path) -> Agenda:
    """Return a search of 1,200 s that explored four trials; eight trainings of 60 s will confirm its best, two at once: 240 s."""
    agenda = exploring(tmp_path, Budget(1_200.0))
    for place, score in enumerate((0.5, 0.6, 0.7, 0.65)):
        agenda.suggest(f"t{place}")
        ended(agenda, f"t{place}", score)
    return agenda


def test_exploring_does_not_begin_again_while_its_best_are_confirmed(tmp_path: Path) -> None:
    agenda = explored(tmp_path)
    agenda.spent_s = 970.0
    assert agenda.is_spent
    assert agenda.suggest("t4")["name"] == "confirm-2-8"
    # What has begun is not used up yet, and leaves no room for more all the same.
    assert agenda.is_spent
    assert agenda.suggest("t5")["name"] == "confirm-3-8"
    ended(agenda, "t4", 0.7)
    assert agenda.suggest("t6")["name"] == "confirm-1-8"


def test_exploring_does_not_begin_again_where_a_search_goes_on_while_its_best_are_confirmed(tmp_path: Path) -> None:
    agenda = explored(tmp_path)
    agenda.spent_s = 970.0
    agenda.suggest("t4")
    again = exploring(tmp_path, Budget(1_200.0))
    again.histories = again.ledger.histories()
    for history in again.histories.values():
        if history.state:
            again.explorations[0].proposer.remember(history)
        else:
            again.pending.append((history, ()))
    again.spent_s = 970.0
    assert again.suggest("t5")["name"] == "confirm-2-8"
    assert again.is_spent
    assert again.suggest("t6")["name"] == "confirm-3-8"


def test_within_a_limit_every_group_has_its_turn(tmp_path: Path) -> None:
    groups = ("trial", "single-a", "single-b")
    agenda = exploring(tmp_path / "limited", Budget(1e6), groups)
    agenda.most_concurrent = lambda: 9
    names = [agenda.suggest(f"t{place}")["name"] for place in range(7)]
    assert names == ["trial-0", "single-a-0", "single-b-0", "trial-1", "single-a-1", "single-b-1", "trial-2"]
    # Without one each has all its trials, and the main one does not wait for the others.
    agenda = exploring(tmp_path / "unlimited", Budget(), groups, MANY.model_copy(update={"num_samples": 2}))
    agenda.most_concurrent = lambda: 9
    names = [agenda.suggest(f"t{place}")["name"] for place in range(4)]
    assert names == ["trial-0", "trial-1", "single-a-0", "single-a-1"]


def failed(agenda: Agenda, trial_id: str) -> None:
    agenda.heard(trial_id, {"score": 0.0, "head_scores": {}, "epoch": 0, "is_last": True, "has_diverged": True})
    agenda.ended(trial_id, "diverged")


def test_a_limit_is_not_spent_on_models_of_one_head_while_there_is_none_to_publish(tmp_path: Path) -> None:
    agenda = exploring(tmp_path, Budget(200.0), ("trial", "single-a"))
    assert [agenda.suggest(trial_id)["name"] for trial_id in ("t0", "t1")] == ["trial-0", "single-a-0"]
    ended(agenda, "t1", 0.5)
    failed(agenda, "t0")
    # Two more trainings of 60 s, side by side, to confirm the model of one head, would have the rest.
    agenda.spent_s = 150.0
    assert not agenda.is_spent
    # Both places are the main group's, until one of its trials has a score.
    assert [agenda.suggest(trial_id)["name"] for trial_id in ("t2", "t3")] == ["trial-1", "trial-2"]
    agenda.heard("t2", report(0.4, is_last=False, epoch_s=1.0))
    assert agenda.is_spent
    agenda.spent_s = 0.0
    agenda.ended("t2", "stopped")
    assert agenda.suggest("t4")["name"] == "single-a-1"


def test_a_limit_holds_before_the_first_score_where_words_are_a_model(tmp_path: Path) -> None:
    agenda = exploring(tmp_path, Budget(200.0))
    agenda.spent_s = 250.0
    # Without them, nothing could be published.
    assert not agenda.is_spent
    agenda.ledger.append("look", {"look": {"score": 0.4}, "is_model": True, "elapsed_s": 1.0})
    assert agenda.is_spent
    assert agenda.suggest("t0") == Searcher.FINISHED


def test_a_limit_waits_for_a_score_where_a_trial_has_failed_and_words_would_hide_it(tmp_path: Path) -> None:
    agenda = exploring(tmp_path, Budget(200.0))
    agenda.ledger.append("look", {"look": {"score": 0.4}, "is_model": True, "elapsed_s": 1.0})
    agenda.suggest("t0")
    agenda.spent_s = 250.0
    assert agenda.is_spent
    failed(agenda, "t0")
    assert not agenda.is_spent
    assert agenda.suggest("t1")["name"] == "trial-1"


def test_within_a_limit_no_model_of_one_head_begins_in_the_time_that_a_slow_first_trial_needs(tmp_path: Path) -> None:
    agenda = exploring(tmp_path, Budget(200.0), ("trial", "single-a"))
    agenda.suggest("t0"), agenda.suggest("t1")
    ended(agenda, "t1", 0.5)
    # The first one has no epoch yet, and has not failed.
    agenda.spent_s = 150.0
    assert agenda.suggest("t2")["name"] == "trial-1"
    agenda.heard("t0", report(0.4, is_last=False, epoch_s=1.0))
    assert agenda.is_spent


def test_a_search_whose_own_trials_all_fail_ends_whatever_models_of_one_head_have(tmp_path: Path) -> None:
    agenda = exploring(tmp_path, Budget(100.0), ("trial", "single-a"))
    agenda.suggest("t0"), agenda.suggest("t1")
    ended(agenda, "t1", 0.5)
    failed(agenda, "t0")
    agenda.spent_s = 101.0
    for trial_id in ("t2", "t3"):
        assert agenda.suggest(trial_id)["group"] == "trial"
        failed(agenda, trial_id)
    assert agenda.is_spent
    assert agenda.suggest("t4") == Searcher.FINISHED


def test_a_population_is_not_split_up_within_a_limit(tmp_path: Path) -> None:
    agenda = exploring(tmp_path, Budget(1e6), ("trial", "single-a"), MANY.model_copy(update={"num_samples": 3}))
    agenda.most_concurrent = lambda: 6
    population = Population({}, interval=1, epochs=4, seed=7)
    agenda.explorations = [replace(one, scheduler=population) for one in agenda.explorations]
    names = [agenda.suggest(f"t{place}")["name"] for place in range(6)]
    assert names == ["trial-0", "trial-1", "trial-2", "single-a-0", "single-a-1", "single-a-2"]


def test_a_group_that_may_propose_nothing_more_leaves_its_turn_to_the_others(tmp_path: Path) -> None:
    agenda = exploring(tmp_path, Budget(1e6), ("trial", "single-a"))
    agenda.most_concurrent = lambda: 9
    agenda.explorations[1].proposer._tuning = MANY.model_copy(update={"num_samples": 1})
    names = [agenda.suggest(f"t{place}")["name"] for place in range(4)]
    assert names == ["trial-0", "single-a-0", "trial-1", "trial-2"]


def refitting(tmp_path: Path, budget: Budget) -> Agenda:
    """Return a search of one confirmation that is to refit, whose only trial of 60 s has ended."""
    agenda = make(tmp_path, tuning=TUNING.model_copy(update={"refit": True}), budget=budget)
    agenda.suggest("t0")
    ended(agenda, "t0", 0.5)
    return agenda


def test_exploring_leaves_time_for_the_training_on_all_texts(tmp_path: Path) -> None:
    agenda = refitting(tmp_path, Budget(200.0))
    agenda.spent_s = 70.0
    assert not agenda.is_spent
    # After the one that confirms, not beside it: 60 and 60 s.
    agenda.spent_s = 85.0
    assert agenda.is_spent
    assert agenda.suggest("t1")["name"] == "confirm-0-8"
    ended(agenda, "t1", 0.5)
    assert agenda.suggest("t2")["name"] == "refit-0-7-1"


def test_the_training_on_all_texts_is_part_of_what_is_left(tmp_path: Path) -> None:
    agenda = refitting(tmp_path, Budget())
    # One more trial, one that confirms, and the refit.
    assert agenda.left_s() == 180.0
    agenda.suggest("t1")
    ended(agenda, "t1", 0.4)
    assert agenda.suggest("t2")["name"] == "confirm-0-8"
    ended(agenda, "t2", 0.5)
    assert agenda.left_s() == 60.0
    assert agenda.suggest("t3")["name"] == "refit-0-7-1"
    # It runs: what it will still use is counted once.
    assert agenda.left_s() == 60.0
    ended(agenda, "t3", 0.5)
    assert agenda.left_s() == 0.0


@pytest.mark.parametrize("state", ["finished", "diverged", "died"])
def test_the_training_on_all_texts_of_an_older_search_has_another_name_and_is_the_same(tmp_path: Path, state: str) -> None:
    agenda = refitting(tmp_path, Budget())
    for trial_id in ("t1", "t2"):
        agenda.suggest(trial_id)
        ended(agenda, trial_id, 0.4)
    before = replace(agenda.histories["trial-0"], name="refit-0", group="refit", planned=(1,), state=state)
    agenda.histories[before.name] = before
    assert agenda.suggest("t3") == Searcher.FINISHED
    # An earlier winner's is another, and one that was best after another epoch too.
    for other in ({"number": 1}, {"seed": 8}, {"planned": (2,)}):
        agenda.histories[before.name] = replace(before, **other)
        assert agenda._last is not None


def of(number: int, epochs: int, *, is_last: bool, depth: int = 5, first: int = 1) -> TrialHistory:
    """Return a trial whose epochs take 10 s each."""
    reports = [
        report(0.5, epoch, is_last=is_last and epoch == first + epochs - 1, epoch_s=10.0, epoch_cpu_s=5.0, depth=depth)
        for epoch in range(first, first + epochs)
    ]
    return TrialHistory(
        f"trial-{number}", "trial", number, {}, 7, "sampler", reports, "finished" if is_last else "stopped", depths=(depth,)
    )


def again(history: TrialHistory, **changes: Any) -> TrialHistory:
    name = f"confirm-{history.number}-8"
    return replace(history, name=name, group="confirm-trial", seed=8, epochs=[], state="", **changes)


def test_what_was_stopped_is_confirmed_at_the_cost_of_a_whole_training() -> None:
    stopped, whole = of(0, 2, is_last=False), of(1, 6, is_last=True)
    forecast = Forecast([stopped, whole], {"trial": 6}, 2)
    assert forecast.before(again(stopped)) == Cost(60.0, 30.0)
    assert forecast.before(again(whole)) == Cost(60.0, 30.0)
    # The training on all texts has as many epochs as were best.
    assert forecast.before(again(stopped, planned=(2,))) == Cost(20.0, 10.0)
    # Nobody knows how long a whole one is: at least as long.
    assert Forecast([stopped], {"trial": 6}, 2).before(again(stopped)) == Cost(20.0, 10.0)
    # One that had more than others by then will not have fewer.
    longer = of(0, 8, is_last=False)
    assert Forecast([longer, whole], {"trial": 6}, 2).before(again(longer)) == Cost(80.0, 40.0)


@pytest.mark.parametrize(
    ("known", "planned", "seconds"),
    [
        # With another seed it was best later than the search let it train.
        (of(0, 2, is_last=False), (8,), 80.0),
        # It went on long after it was best.
        (of(0, 12, is_last=True), (4,), 40.0),
        # What it begins with is judged, and takes its 10 s.
        (of(0, 5, is_last=True, first=0), (2,), 30.0),
        (replace(of(0, 12, is_last=True), depths=()), (4,), 40.0),
    ],
)
def test_the_training_on_all_texts_is_forecast_at_the_epochs_it_will_have(
    known: TrialHistory, planned: tuple[int, ...], seconds: float
) -> None:
    forecast = Forecast([known], {"trial": 6}, 2)
    assert forecast.before(again(known, planned=planned)) == Cost(seconds, seconds / 2)


def test_the_training_on_all_texts_of_one_that_climbed_is_forecast_by_what_each_depth_costs() -> None:
    first, climb = of(0, 3, is_last=False), of(0, 4, is_last=True, depth=0, first=4)
    dear = [one | {"epoch_s": 100.0, "epoch_cpu_s": 50.0} for one in climb.epochs]
    climbed = replace(climb, depths=(5, 0), epochs=[*first.epochs, *dear])
    forecast = Forecast([climbed], {"trial": 6}, 2)
    assert forecast.before(again(climbed, planned=(5, 2))) == Cost(50.0 + 200.0, 125.0)
    assert forecast.before(again(climbed, depths=(5,), planned=(5,))) == Cost(50.0, 25.0)


def test_without_a_ladder_what_was_stopped_is_confirmed_in_full_too() -> None:
    histories = [replace(of(0, 2, is_last=False), depths=()), replace(of(1, 6, is_last=True), depths=())]
    assert Forecast(histories, {"trial": 0}, 2).before(again(histories[0])) == Cost(60.0, 30.0)


def test_each_training_of_one_that_climbed_is_confirmed_in_full() -> None:
    first, whole = of(0, 2, is_last=False), of(1, 6, is_last=True)
    climb = of(0, 4, is_last=True, depth=0, first=3)
    climbed = replace(climb, depths=(5, 0), epochs=[*first.epochs, *climb.epochs])
    forecast = Forecast([climbed, whole], {"trial": 6}, 2)
    # Its two epochs of top layers become five, as many as whole trainings have on average; the climb came to its end.
    assert forecast.before(again(climbed)) == Cost(50.0 + 40.0, 45.0)
    assert forecast.before(again(climbed, depths=(5,))) == Cost(50.0, 25.0)


def test_what_trained_no_epoch_before_it_was_stopped_costs_what_whole_ones_do() -> None:
    begun = replace(of(0, 1, is_last=False, first=0), depths=())
    assert Forecast([begun, of(1, 6, is_last=True)], {"trial": 0}, 2).before(again(begun)) == Cost(60.0, 30.0)


def test_what_is_forecast_divides_by_what_runs_not_by_what_may_be_alive(tmp_path: Path) -> None:
    agenda = exploring(tmp_path, Budget(1e6), tuning=TuningSettings(num_samples=10, confirm_top=10, confirm_seeds=1))
    agenda.most_concurrent = lambda: 8
    for place in range(10):
        agenda.suggest(f"t{place}")
        ended(agenda, f"t{place}", 0.5)
    # Ten confirmations of 60 s, two at once.
    assert agenda.left_s() == 300.0


def test_a_search_of_which_all_trials_fail_ends_with_its_limit(tmp_path: Path) -> None:
    agenda = exploring(tmp_path, Budget(100.0))
    for place in range(3):
        assert agenda.suggest(f"t{place}")["name"] == f"trial-{place}"
        agenda.spent_s = 101.0
        assert not agenda.is_spent
        agenda.heard(f"t{place}", {"score": 0.0, "head_scores": {}, "epoch": 0, "is_last": True, "has_diverged": True})
        agenda.ended(f"t{place}", "diverged")
    assert agenda.is_spent
    assert agenda.suggest("t3") == Searcher.FINISHED
    # With time left it goes on.
    agenda.spent_s = 10.0
    assert not agenda.is_spent


def test_what_has_failed_is_neither_best_nor_a_score(tmp_path: Path) -> None:
    agenda = make(tmp_path, budget=Budget(1.0))
    agenda.spent_s = 10.0
    agenda.suggest("t0")
    agenda.heard("t0", {"score": 0.0, "head_scores": {}, "epoch": 0, "is_last": True, "has_diverged": True})
    agenda.ended("t0", "diverged")
    # However small the budget, something gets a score.
    assert not agenda.is_spent
    assert agenda.status() == ""
    assert agenda.suggest("t1")["name"] == "trial-1"
    ended(agenda, "t1", 0.6)
    assert agenda.is_spent


def test_the_best_so_far_can_be_published(tmp_path: Path) -> None:
    agenda = make(tmp_path)
    for name, score, state in (("t0", 0.6, "finished"), ("t1", 0.8, "diverged")):
        agenda.suggest(name)
        agenda.heard(name, report(score))
        agenda.ended(name, state)
    assert agenda.status().startswith("best so far trial-0 0.600")


def test_what_is_left_once_the_best_are_confirmed_is_that_alone(tmp_path: Path) -> None:
    agenda = explored(tmp_path)
    # Of a thousand trials only the limit is known.
    assert agenda.left_s() == pytest.approx(1_200.0, abs=10.0)
    agenda.spent_s = 970.0
    agenda.suggest("t4")
    # They turn out shorter than was forecast: 400 s are left, and there is nothing for them.
    agenda.spent_s = 800.0
    for place in range(4, 11):
        ended(agenda, f"t{place}", 0.6)
        agenda.suggest(f"t{place + 1}")
    assert agenda.left_s() == 60.0
    assert agenda.status().endswith(", about 60 s left")
