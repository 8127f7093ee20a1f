"""What the record says beside its figures: heads that answer nothing, baselines that are missing, searches that were cut short."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from training.judging.abstention import ALWAYS_ABSTAIN
from training.search.deciding.contest import Standing
from training.search.deciding.ladder import Agreement
from training.search.prepared import trials_so_far
from training.search.proposing.ledger import TrialHistory
from training.search.proposing.search_space import trial_settings
from training.search.record import (
    _climbs,
    _cut_short,
    _equal_weights,
    _frozen_layers,
    _head,
    _heads_alone,
    _less_than_named,
    _not_refitted,
    _spare,
    _unreached,
)
from training.settings import TrainingSettings


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings.model_validate({"heads": {"a": {}, "b": {}}} | changes)


def history(group: str, number: int, origin: str = "sampler") -> TrialHistory:
    return TrialHistory(f"{group}-{number}", group, number, {}, 7, origin)


def test_a_head_that_answers_nothing_is_named() -> None:
    judged = {"abstention": {"a": {"threshold": ALWAYS_ABSTAIN}, "b": {"threshold": 0.7}, "c": {"threshold": None}}}
    assert [note.split(":")[0] for note in _unreached(judged)] == ["head 'a' abstains always"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "the default configuration has equal loss weights"),
        ({"heads": {"a": {}, "b": {"loss_weight": 3.0}}, "search_space": {"loss_weight": None}}, "no trial had equal loss weights"),
        ({"fit": {"balancing": "uncertainty"}}, "no trial had equal loss weights"),
    ],
)
def test_the_missing_baseline_is_named_as_what_it_is(changes: dict[str, Any], said: str) -> None:
    assert _equal_weights(settings(**changes), [history("trial", 0, "default")])[0].startswith(said)
    assert _equal_weights(settings(**changes), [history("trial", 1, "equal weights")]) == []


@pytest.mark.parametrize(
    ("frozen", "change", "said"),
    [
        (0, {"depths": (5,)}, "trained its top layers alone"),
        (0, {"depths": (5, 0)}, ""),
        (5, {"depths": (5,)}, ""),
        (0, {"state": "stopped"}, "was stopped before its last epoch"),
        (0, {"state": "finished"}, ""),
    ],
)
@pytest.mark.parametrize("origin", ["default", "equal weights"])
def test_a_baseline_that_came_to_less_than_its_name_says_is_named(frozen: int, change: dict[str, Any], said: str, origin: str) -> None:
    own, best = settings(fit={"frozen_layers": frozen}), Standing(1, "sampler", history("trial", 1), ())
    side = Standing(0, origin, replace(history("trial", 0, origin), **change), ())
    notes = _less_than_named(own, [best, side], best)
    assert [said in note for note in notes] == ([True] if said else [])
    # What confirmed it counts, where there is any; the winner is compared with nothing of its own.
    confirmed = replace(side, confirmed=(replace(history("confirm-trial", 0), depths=(5, 0), state="finished"),))
    assert _less_than_named(own, [best, confirmed], best) == []
    assert _less_than_named(own, [best, side], side) == []


def test_a_head_is_told_with_what_was_chosen_for_it() -> None:
    own = settings(search_space={"class_weighting": {"choices": ["none", "balanced"]}})
    trial = trial_settings(own, {"heads/a/class_weighting": "balanced"})
    prepared: Any = SimpleNamespace(settings=own, dataset=SimpleNamespace(classes={"a": ("x", "y"), "b": ("x", "y")}))
    judged: dict[str, Any] = {
        "calibration": {key: {"temperature": 1.0} for key in "ab"},
        "abstention": {key: {"threshold": None, "target": None} for key in "ab"},
    }
    assert {head: _head(head, trial, prepared, judged)["class_weighting"] for head in "ab"} == {"a": "balanced", "b": "none"}


def test_a_correlation_is_told_as_it_was_measured_and_over_whom() -> None:
    agreements = [Agreement("heads alone", "top layers", 15, -0.08, 1.3), Agreement("top layers", "all its layers", 5, 0.1, 1.7)]
    doubted, kept = _climbs([], agreements)
    told = "over the 15 configurations that were let through: -0.08, so the lower one was no longer asked"
    assert doubted == f"rank correlation between heads alone and top layers, {told}"
    assert kept.endswith("over the 5 configurations that were let through: +0.10")
    assert _climbs([], [Agreement("top layers", "all its layers", 4, None)]) == [
        "how top layers and all its layers agree is not known: 4 configurations have a score on both, too few"
    ]
    # Enough of them, and all alike; and where nobody climbs.
    assert _climbs([], [Agreement("top layers", "all its layers", pairs, None) for pairs in (6, 0)]) == []


def climbed(number: int, best: int) -> TrialHistory:
    """One that trained two top layers in its first epoch and all layers in its second."""
    epochs = [{"epoch": 1, "depth": 4, "best_number": 1}, {"epoch": 2, "depth": 0, "best_number": best}]
    return replace(history("trial", number), depths=(4, 0), state="finished", epochs=epochs)


def test_whether_climbing_paid_is_told_and_how_deep_the_winner_is() -> None:
    assert _climbs([climbed(0, best=1), climbed(1, best=2), climbed(2, best=1)], []) == [
        "3 configurations went on to train all the layers they may, 1 of them with a gain"
    ]
    prepared: Any = SimpleNamespace(source=SimpleNamespace(layers=6))
    chosen = trial_settings(settings(fit={"frozen_layers": 1}), {})
    found = [_frozen_layers(prepared, one, chosen) for one in (climbed(0, best=1), climbed(0, best=2))]
    assert found == [4, 0]
    # Heads alone, then a search without a ladder.
    frozen = replace(history("trial", 0), epochs=[{"epoch": 0, "best_number": 0, "depth": 4}])
    whole = replace(history("trial", 0), epochs=[{"epoch": 1, "best_number": 1}])
    assert [_frozen_layers(prepared, one, chosen) for one in (frozen, whole)] == [6, 1]


@pytest.mark.parametrize(("number", "origin", "won"), [(0, "sampler", True), (1, "sampler", False), (0, "words alone", False)])
def test_a_cheaper_rung_that_wins_is_said_to(number: int, origin: str, won: bool) -> None:
    heads = {"a": SimpleNamespace(best=[0], scores=[0.7131], candidates=16), "b": SimpleNamespace(best=[], scores=[], candidates=16)}
    best = replace(history("trial", 0, origin), epochs=[{"epoch": 1, "best_number": number, "score": 0.7}])
    rung: Any = SimpleNamespace(heads=heads)
    said = _heads_alone(rung, Standing(0, origin, best, ()))
    assert said[0] == "heads on the frozen encoder reach, by cross-validation over the training texts: a 0.713 (best of 16)"
    assert [one.startswith("training the encoder brought nothing on the validation texts") for one in said[1:]] == ([True] if won else [])
    assert _heads_alone(None, Standing(0, origin, best, ())) == []


def sound(group: str, number: int) -> TrialHistory:
    return replace(history(group, number), state="finished", epochs=[{"epoch": 1, "score": 0.5, "best_number": 1}])


def test_a_comparison_cut_short_says_so() -> None:
    own = settings(tuning={"num_samples": 2, "compare_single": True})
    histories = [sound("single-a", 0), sound("single-a", 1), sound("single-b", 0)]
    assert [note for note in _cut_short(own, histories) if "head 'b' alone short: 1 of 2 trials" in note] == _cut_short(own, histories)
    assert len(_cut_short(own, histories)) == 1
    assert _cut_short(settings(), histories) == []


def test_seeds_that_not_all_were_trained_with_are_named() -> None:
    again = [TrialHistory(f"confirm-0-{seed}", "confirm-trial", 0, {}, seed, "confirmation") for seed in (8, 9)]
    whole = Standing(0, "default", history("trial", 0), tuple(again))
    assert _spare([whole]) == []
    (said,) = _spare([Standing(0, "default", history("trial", 0), (again[0],), spare=(again[1],)), whole])
    assert said.startswith("trainings with seed 9 count in no mean")


def test_a_comparison_that_is_missing_is_called_missing() -> None:
    own = settings(tuning={"num_samples": 1_000, "compare_single": True, "time_budget_s": 60.0})
    histories = [sound("trial", 0), sound("single-a", 0), history("single-b", 0)]
    assert _cut_short(own, histories) == ["no model of head 'b' alone has a score, so there is no comparison with one model per head"]
    assert _cut_short(own, [sound("trial", 0)])[0].startswith("no model of head 'a' or 'b' alone has a score")


def test_within_a_limit_as_many_trials_as_of_all_heads_are_fair() -> None:
    own = settings(tuning={"num_samples": 1_000, "compare_single": True, "time_budget_s": 60.0})
    words = replace(sound("trial", 2), origin="words alone")
    histories = [sound("trial", 0), sound("trial", 1), words, sound("single-a", 0), sound("single-a", 1), sound("single-b", 0)]
    (note,) = _cut_short(own, histories)
    assert "head 'b' alone short: 1 of 2 trials" in note


def test_a_training_on_all_texts_that_was_wanted_and_is_not_there_is_named() -> None:
    wanted, trained = settings(tuning={"refit": True}), sound("trial", 0)
    best = Standing(0, "default", trained, ())
    (note,) = _not_refitted(wanted, [trained], best)
    assert note == "the winner was not trained once more on training and validation texts together, as tuning.refit wants: no time was left"
    refitted = replace(sound("refit", 0), planned=(1,))
    (note,) = _not_refitted(wanted, [trained, replace(refitted, state="diverged", epochs=[])], best)
    assert note.endswith("as tuning.refit wants: that training diverged")
    (note,) = _not_refitted(wanted, [trained], best, early="stopped before its end")
    assert note.endswith("as tuning.refit wants: the search was stopped before")
    assert _not_refitted(wanted, [trained, refitted], best) == []
    assert _not_refitted(settings(), [trained], best) == []
    # There is nothing to train of what words say by themselves.
    assert _not_refitted(wanted, [trained], replace(best, origin="words alone")) == []


@pytest.mark.parametrize(
    ("state", "error", "cause"),
    [
        ("stopped", "died while it climbed OSError", "that training died while it climbed OSError"),
        ("stopped", "out of memory while it climbed", "that training ran out of memory while it climbed"),
        ("stopped", "", "that training was stopped"),
        ("out of memory", "MemoryError", "that training ran out of memory"),
        ("died", "OSError", "that training died"),
    ],
)
def test_a_training_on_all_texts_that_did_not_come_to_its_end_is_none(state: str, error: str, cause: str) -> None:
    epochs = [
        {"epoch": 1, "score": 0.5, "best_number": 1, "depth": 5},
        {"epoch": 2, "score": 0.6, "best_number": 2, "depth": 0, "is_climbing": True},
    ]
    trained = replace(sound("trial", 0), depths=(5, 0), epochs=epochs)
    lost = replace(sound("refit", 0), depths=(5, 0), planned=(1, 1), state=state, error=error)
    (note,) = _not_refitted(settings(tuning={"refit": True}), [trained, lost], Standing(0, "default", trained, ()))
    assert note.endswith(f"as tuning.refit wants: {cause}")


@pytest.mark.parametrize("state", ["finished", "diverged"])
def test_a_training_of_an_earlier_winner_on_all_texts_is_not_the_winners(state: str) -> None:
    earlier = replace(sound("refit", 0), planned=(1,), state=state)
    winner = sound("trial", 1)
    (note,) = _not_refitted(settings(tuning={"refit": True}), [sound("trial", 0), winner, earlier], Standing(1, "sampler", winner, ()))
    assert note.endswith("as tuning.refit wants: no time was left")


@pytest.mark.parametrize(
    ("limits", "early", "cause"),
    [
        ({"time_budget_s": 60.0}, "", "the time budget"),
        ({"cpu_budget_s": 60.0}, "", "the CPU budget"),
        ({"time_budget_s": 60.0, "cpu_budget_s": 60.0}, "", "the time or the CPU budget"),
        ({}, "stopped before its end", "an early end"),
        ({"time_budget_s": 60.0}, "stopped before its end", "an early end"),
    ],
)
def test_a_comparison_is_cut_short_by_what_did_it(limits: dict[str, float], early: str, cause: str) -> None:
    own = settings(tuning={"num_samples": 2, "compare_single": True} | limits)
    histories = [sound(group, number) for group, count in (("trial", 2), ("single-a", 2), ("single-b", 1)) for number in range(count)]
    (note,) = _cut_short(own, histories, early)
    assert note == f"{cause} cut the search for head 'b' alone short: 1 of 2 trials, so that comparison is unfair to it"


@pytest.mark.parametrize(
    ("limits", "said"),
    [({}, "2 of at least 8 trials"), ({"time_budget_s": 60.0}, "2 trials"), ({"cpu_budget_s": 60.0}, "2 trials")],
)
def test_trials_so_far_are_those_of_the_search_itself(limits: dict[str, float], said: str) -> None:
    groups = ("trial", "trial", "confirm-trial", "single-a", "confirm-single-a", "refit")
    found = [sound(group, number) for number, group in enumerate(groups)]
    assert trials_so_far(settings(tuning={"num_samples": 8} | limits).tuning, found) == said


def test_one_trial_is_one() -> None:
    assert trials_so_far(settings(tuning={"time_budget_s": 60.0}).tuning, [sound("trial", 0)]) == "1 trial"
