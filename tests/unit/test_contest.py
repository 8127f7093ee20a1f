"""Who wins: the best mean over other seeds, never the luckiest training."""

from dataclasses import replace
from typing import Any

import pytest

from training.errors import TuningError
from training.judging.comparison import WORDS_ALONE
from training.search.deciding.contest import confirmations, group_heads, pareto_front, refit, refit_of, single_group, standings, winner
from training.search.proposing.ledger import TrialHistory
from training.search_settings import TuningSettings


def history(number: int, score: float, *, group: str = "trial", seed: int = 7, state: str = "finished", **heads: float) -> TrialHistory:
    origin = {0: "default", 1: "equal weights"}.get(number, "sampler")
    report = {"epoch": 1, "score": score, "head_scores": heads or {"a": score, "b": score}}
    return TrialHistory(f"{group}-{number}", group, number, {"rate": number}, seed, origin, [report], state)


def tuning(**changes: Any) -> TuningSettings:
    return TuningSettings.model_validate(changes)


def test_the_best_few_the_default_and_equal_weights_are_trained_again() -> None:
    ended = [history(number, score) for number, score in enumerate((0.1, 0.2, 0.9, 0.8, 0.7))] + [history(5, 0.99, state="diverged")]
    named = confirmations(ended, tuning(confirm_top=2, confirm_seeds=2))
    assert [one.name for one in named] == [f"confirm-{number}-{seed}" for seed in (8, 9) for number in (2, 3, 0, 1)]
    assert {(one.group, one.seed, one.origin) for one in named} == {("confirm-trial", seed, "confirmation") for seed in (8, 9)}
    assert named[0].point == {"rate": 2}
    assert confirmations(ended, tuning(confirm_top=0)) == []


def test_a_default_among_the_best_is_not_trained_twice() -> None:
    named = confirmations([history(0, 0.9), history(2, 0.8)], tuning(confirm_top=2, confirm_seeds=1))
    assert [one.number for one in named] == [0, 2]


def test_each_heads_own_model_is_confirmed_by_its_best() -> None:
    ended = [history(0, 0.5), *(history(number, score, group=single_group("a"), a=score) for number, score in enumerate((0.3, 0.4)))]
    named = confirmations(ended, tuning(confirm_top=1, confirm_seeds=1))
    assert [one.name for one in named] == ["confirm-0-8", "confirm-single-a-1-8"]
    assert group_heads(named[1].group, ["a", "b"]) == ("a",)
    assert group_heads(named[0].group, ["a", "b"]) == ("a", "b")


def test_the_best_mean_wins_not_the_luckiest_training() -> None:
    lucky = [history(2, 0.9), history(2, 0.6, group="confirm-trial", seed=8), history(2, 0.62, group="confirm-trial", seed=9)]
    steady = [history(3, 0.8), history(3, 0.75, group="confirm-trial", seed=8), history(3, 0.76, group="confirm-trial", seed=9)]
    best, note = winner(standings([*lucky, *steady], tuning()), tuning())
    assert (best.number, note) == (3, "")
    assert best.score == pytest.approx(0.755)
    assert best.best.seed == 7
    # Published is the training with the best validation score of that configuration.
    assert winner(standings(lucky, tuning()), tuning())[0].best.last["score"] == 0.9


def again(number: int, *scores: float, state: str = "finished") -> list[TrialHistory]:
    """Trainings that confirm, with seed 8 and those after it; the last one ended as said."""
    states = ["finished"] * (len(scores) - 1) + [state]
    return [history(number, score, group="confirm-trial", seed=8 + place, state=states[place]) for place, score in enumerate(scores)]


SEARCHED = [history(0, 0.70), history(2, 0.80), history(3, 0.78)]


def test_who_was_trained_with_more_seeds_when_the_search_ended_is_judged_by_those_that_all_have() -> None:
    cut = standings([*SEARCHED, *again(2, 0.70, 0.69), *again(3, 0.77), *again(0, 0.71)], tuning())
    best, _ = winner(cut, tuning())
    assert (best.number, best.score) == (3, 0.77)
    (first,) = (one for one in cut if one.number == 2)
    assert (first.score, first.head_scores["a"], [one.seed for one in first.judged]) == (0.70, 0.70, [8])
    # Its other training is one all the same: it may be published.
    assert [one.seed for one in first.spare] == [9]
    assert standings([*SEARCHED, *again(2, 0.70, 0.85), *again(3, 0.77)], tuning())[1].best.last["score"] == 0.85
    # A mean is no higher for what others could not show.
    best, _ = winner(standings([*SEARCHED, *again(2, 0.70, 0.90), *again(3, 0.77), *again(0, 0.71)], tuning()), tuning())
    assert best.number == 3
    whole = standings([*SEARCHED, *again(2, 0.70, 0.90), *again(3, 0.77, 0.78), *again(0, 0.71, 0.71)], tuning())
    assert [(one.number, round(one.score, 3), one.spare) for one in whole] == [(0, 0.71, ()), (2, 0.8, ()), (3, 0.775, ())]
    assert winner(whole, tuning())[0].number == 2


@pytest.mark.parametrize(("state", "epochs"), [("died", 0), ("diverged", 1), ("stopped", 1)])
def test_a_configuration_one_of_whose_trainings_ended_badly_stays_out(state: str, epochs: int) -> None:
    lost = again(2, 0.79, 0.79, state=state)
    lost[-1].epochs[:] = lost[-1].epochs[:epochs]
    for others in ([*again(3, 0.75, 0.76), *again(0, 0.71, 0.71)], [*again(3, 0.75, 0.76), *again(0, 0.71)], again(3, 0.75)):
        table = standings([*SEARCHED, *lost, *others], tuning())
        assert winner(table, tuning())[0].number == 3
        # Nor does it keep the others' seeds from counting.
        assert len(table[2].confirmed) == (2 if len(others) == 4 else 1)
    # Where nobody else is left it wins.
    assert winner(standings([*SEARCHED, *lost], tuning()), tuning())[0].number == 2


def test_who_is_no_longer_to_be_confirmed_leaves_the_others_their_seeds() -> None:
    few = tuning(confirm_top=1)
    # Confirmed once as the best of its time; then more trials came.
    table = standings([*SEARCHED, *again(3, 0.79), *again(2, 0.75, 0.76), *again(0, 0.71, 0.71)], few)
    assert [len(one.confirmed) for one in table] == [2, 2, 1]
    assert winner(table, few)[0].number == 2


def test_where_no_seed_is_everybodys_the_one_that_most_have_counts() -> None:
    """Several confirmations ran at once when a signal came."""
    first, second = again(0, 0.71, 0.72), again(2, 0.60, 0.79)
    table = standings([*SEARCHED, *first, second[1], *again(3, 0.77)], tuning())
    # With seed 8: trials 0 and 3. Trial 2, the luckiest of the search, was not confirmed by it.
    assert [[one.seed for one in of.confirmed] for of in table] == [[8], [], [8]]
    assert winner(table, tuning())[0].number == 3
    # And where none is more than one's, one of them all the same.
    alone = standings([*SEARCHED, second[1], *again(3, 0.77)], tuning())
    assert winner(alone, tuning())[0].number == 3


def test_a_pareto_rule_picks_by_the_seeds_that_all_have_too() -> None:
    rule = tuning(mode="pareto", pick="b >= 0.75, then a")
    assert winner(standings([*SEARCHED, *again(2, 0.70, 0.90), *again(3, 0.77), *again(0, 0.71)], rule), rule)[0].number == 3


def test_without_confirmation_the_search_decides_and_of_equals_the_earlier() -> None:
    best, _ = winner(standings([history(0, 0.8), history(2, 0.8), history(3, 0.7)], tuning()), tuning())
    assert best.number == 0
    with pytest.raises(TuningError, match="no trial brought a score"):
        winner(standings([history(0, 0.0, state="died")], tuning()), tuning())


def test_pareto_picks_by_its_rule_and_says_when_nobody_meets_it() -> None:
    table = standings([history(0, 0.6, a=0.5, b=0.7), history(1, 0.6, a=0.7, b=0.5), history(2, 0.5, a=0.5, b=0.5)], tuning())
    assert pareto_front(table) == [0, 1]
    assert winner(table, tuning(mode="pareto", pick="b >= 0.6, then a"))[0].number == 0
    assert winner(table, tuning(mode="pareto", pick="b >= 0.5, then a"))[0].number == 1
    best, note = winner(table, tuning(mode="pareto", pick="b >= 0.9, then a"))
    assert best.number == 0
    assert "no trial meets every condition" in note


def climbed(number: int, best_number: int, depths: tuple[int, ...] = (5, 0)) -> TrialHistory:
    """Three epochs of the top layer, best after the second, then two of all."""
    epochs: list[dict[str, Any]] = [
        {"epoch": 1, "depth": 5, "best_number": 1},
        {"epoch": 2, "depth": 5, "best_number": 2},
        {"epoch": 3, "depth": 5, "best_number": 2},
        {"epoch": 4, "depth": 0, "best_number": 4 if best_number == 4 else 2, "is_climbing": True},
        {"epoch": 5, "depth": 0, "best_number": best_number, "is_climbing": True},
    ]
    report = {"score": 0.9, "head_scores": {"a": 0.9, "b": 0.9}}
    return TrialHistory(
        f"trial-{number}", "trial", number, {"rate": 1}, 7, "sampler", [one | report for one in epochs], "finished", depths=depths
    )


def test_what_confirms_climbs_as_far_as_it_paid() -> None:
    (again,) = confirmations([climbed(2, 5)], tuning(confirm_top=1, confirm_seeds=1))
    assert again.depths == (5, 0)
    (again,) = confirmations([climbed(2, 2)], tuning(confirm_top=1, confirm_seeds=1))
    assert again.depths == (5,)


def test_the_winner_is_averaged_again_only_where_its_average_was_the_best() -> None:
    wanted, won = tuning(refit=True, confirm_top=0), climbed(2, 5)
    plain = {"rate": 1, "average_epochs": False}
    for averaged, expected in ((None, {"rate": 1}), (0.7, plain), (0.95, {"rate": 1})):
        won.epochs[-1] |= {"epoch_score": 0.9, "average_score": averaged}
        last = refit([history(0, 0.5), won], wanted)
        assert last is not None
        assert last.point == expected
    assert won.point == {"rate": 1}


def test_the_winner_is_trained_on_all_texts_for_as_long_as_it_was_best() -> None:
    wanted = tuning(refit=True, confirm_top=0)
    assert refit([climbed(2, 5)], tuning()) is None
    assert refit([history(0, 0.5, state="died")], wanted) is None
    last = refit([history(0, 0.5), climbed(2, 5)], wanted)
    assert last is not None
    # From the second epoch of the top layer, which was its best.
    assert (last.name, last.number, last.depths, last.planned) == ("refit-2-7-2-2", 2, (5, 0), (2, 2))
    last = refit([climbed(2, 2)], wanted)
    assert last is not None
    assert (last.depths, last.planned) == ((5,), (2,))
    assert group_heads(last.group, ["a", "b"]) == ("a", "b")
    assert [one.name for one in confirmations([climbed(2, 2), last], tuning(confirm_top=1, confirm_seeds=1))] == ["confirm-2-8"]


def refitted(best: TrialHistory, *, state: str = "finished", **changes: Any) -> TrialHistory:
    """The training of a winner on all texts, as the ledger has it."""
    named = refit([best], tuning(refit=True, confirm_top=0))
    assert named is not None
    return replace(named, epochs=[{"epoch": 1, "best_number": 1, "score": 0.99, "head_scores": {"a": 0.99}}], state=state, **changes)


def test_published_is_the_refit_of_the_winner_and_of_no_other() -> None:
    best = climbed(12, 5)
    earlier, own = refitted(climbed(3, 5)), refitted(best)
    assert refit_of(best, [earlier, own]) is own
    assert refit_of(best, [earlier]) is None
    assert refit_of(replace(best, origin=WORDS_ALONE), [earlier, own]) is None


@pytest.mark.parametrize("state", ["", "stopped", "died", "diverged"])
def test_a_refit_that_did_not_come_to_its_end_is_not_published(state: str) -> None:
    best = climbed(12, 5)
    assert refit_of(best, [refitted(best, state=state)]) is None


def test_a_refit_of_the_same_trial_with_another_seed_or_length_is_another() -> None:
    best = climbed(12, 5)
    for changes in ({"seed": 8}, {"planned": (2, 1)}, {"depths": (5, 1)}):
        assert refit_of(best, [refitted(best, **changes)]) is None
    # Each has a name of its own, so that the winner's is trained although there is another.
    others = [replace(best, seed=8), climbed(12, 4), climbed(12, 2), climbed(3, 5)]
    assert len({refitted(one).name for one in [best, *others]}) == 5
