"""Who is passed over, who climbs, and when the ladder doubts its lower rung."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from training.fitting.population import Candidate
from training.search.deciding.ladder import Agreement, Ladder
from training.search.proposing.ledger import TrialHistory
from training.search.trials.depths import first_depth, middle_depth
from training.search.trials.found_heads import FirstRung, HeadFound
from training.settings import TrainingSettings

SETTINGS = TrainingSettings.model_validate(
    {
        "heads": {"job": {}, "level": {}},
        "search_space": {"hidden_size": {"choices": [0, 128, 256]}, "frozen_layers": {"choices": [0, 4, 5, 6]}},
        "fit": {"frozen_layers": 0},
    }
)


def found(*scores: tuple[int, float]) -> HeadFound:
    ranked = sorted(scores, key=lambda one: -one[1])
    candidates = tuple(Candidate(size, 0.1, "softmax", 1e-2) for size, _ in ranked)
    return HeadFound(len(scores), candidates, tuple(score for _, score in ranked), 1.0, 1.0)


RUNG = FirstRung({"job": found((0, 0.5), (128, 0.7)), "level": found((0, 0.3), (128, 0.6))}, {"any": torch.zeros(1)})
LADDER = Ladder(SETTINGS, 6, RUNG, 2.0)


def point(job: int, level: int, frozen: int = 0) -> dict[str, Any]:
    return {"heads/job/hidden_size": job, "heads/level/hidden_size": level, "frozen_layers": frozen}


def trial(
    number: int, first: float, own: dict[str, Any] | None = None, *, climbed: float | None = None, state: str = "finished"
) -> TrialHistory:
    """A trial that had a score after two epochs of the top layer, and another after two more of all layers."""
    epochs = [
        {"epoch": 0, "score": first - 0.2, "epoch_score": first - 0.2, "depth": 5, "best_number": 0},
        {"epoch": 1, "score": first, "epoch_score": first, "depth": 5, "best_number": 1},
    ]
    if climbed is not None:
        best = max(first, climbed)
        epochs.append(
            {"epoch": 2, "score": best, "epoch_score": climbed, "depth": 0, "best_number": 2 if climbed > first else 1, "is_climbing": True}
        )
    depths = (5,) if climbed is None else (5, 0)
    return TrialHistory(f"trial-{number}", "trial", number, own or point(0, 0), 7, "sampler", epochs, state, depths=depths)


@pytest.mark.parametrize(("layers", "middle"), [(1, 0), (3, 2), (6, 5), (12, 10), (24, 20)])
def test_the_middle_rung_trains_a_sixth_of_the_layers_and_at_least_one(layers: int, middle: int) -> None:
    assert middle_depth(layers) == middle


def test_nothing_trains_more_than_it_may() -> None:
    assert first_depth(6, 0) == 5
    assert first_depth(6, 5) == 5
    assert first_depth(12, 11) == 11
    assert first_depth(6, 6) == 6
    assert LADDER.depths(point(0, 0, frozen=6)) == (6,)


def test_heads_score_by_their_shapes() -> None:
    assert LADDER.heads_score(point(0, 0)) == pytest.approx(0.4)
    assert LADDER.heads_score(point(128, 0)) == pytest.approx(0.5)
    assert LADDER.heads_score(point(256, 0)) is None
    weighted = SETTINGS.model_copy(update={"tuning": SETTINGS.tuning.model_copy(update={"score_weights": {"job": 1.0}})})
    assert Ladder(weighted, 6, RUNG, 2.0).heads_score(point(128, 0)) == pytest.approx(0.7)


def test_heads_score_by_their_class_weighting_where_that_was_tried() -> None:
    settings = TrainingSettings.model_validate(
        {"heads": {"job": {}}, "search_space": {"hidden_size": {"choices": [0, 8]}, "class_weighting": {"choices": ["none", "balanced"]}}}
    )
    best = (Candidate(0, 0.1, "softmax", 1e-2, "balanced"), Candidate(8, 0.1, "softmax", 1e-2), Candidate(0, 0.1, "softmax", 1e-2))
    ladder = Ladder(settings, 6, FirstRung({"job": HeadFound(3, best, (0.7, 0.6, 0.5), 1.0, 1.0)}, {}), 2.0)
    found = {
        (size, weighting): ladder.heads_score({"heads/job/hidden_size": size, "heads/job/class_weighting": weighting})
        for size in (0, 8)
        for weighting in ("none", "balanced")
    }
    assert found == {(0, "balanced"): 0.7, (8, "balanced"): 0.6, (8, "none"): 0.6, (0, "none"): 0.5}


def test_heads_below_the_middle_are_passed_over_and_equals_are_not() -> None:
    assert LADDER.is_passed_over([0.4, 0.65], 0.4, [])
    assert not LADDER.is_passed_over([0.4, 0.65], 0.65, [])
    assert not LADDER.is_passed_over([0.5, 0.5], 0.5, [])
    assert not LADDER.is_passed_over([0.65], 0.4, [])
    assert not LADDER.is_passed_over([0.4, 0.65], None, [])


def misled(count: int) -> list[TrialHistory]:
    """The worse the heads were alone, the better the top layer made them."""
    return [trial(number, 0.9 - 0.1 * number, point(128 * (number // 2 % 2), 128 * (number // 3 % 2))) for number in range(count)]


def test_a_first_rung_that_misleads_is_found_and_no_longer_asked() -> None:
    few, many = misled(4), misled(6)
    assert LADDER.agreements(few)[0].correlation is None
    heads = [LADDER.heads_score(one.point) for one in many]
    agreement = LADDER.agreements(many)[0]
    assert agreement.pairs == 6
    assert agreement.correlation is not None
    assert agreement.correlation < 0
    assert agreement.is_doubtful
    assert LADDER.is_passed_over(heads, 0.4, few)
    assert not LADDER.is_passed_over(heads, 0.4, many)


def test_the_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    trials = [trial(number, score, climbed=score**2 - number / 50) for number, score in enumerate((0.3, 0.5, 0.1, 0.8, 0.6, 0.55))]
    expected = spearmanr([0.3, 0.5, 0.1, 0.8, 0.6, 0.55], [one.epochs[-1]["epoch_score"] for one in trials]).statistic
    assert LADDER.agreements(trials)[1].correlation == pytest.approx(expected)


def climbed_of(trained: int, brought: list[int]) -> list[TrialHistory]:
    """So many trials, each worse than the one before, and what climbing brought the first ones: their ranks, the best being the highest."""
    scores = [0.9 - number / 100 for number in range(trained)]
    return [trial(n, score, climbed=1.0 + brought[n] / 100 if n < len(brought) else None) for n, score in enumerate(scores)]


# Spearman's correlation with five scores that fall is .1, with ten .10, with twenty .00.
FIVE, TEN = [2, 3, 5, 4, 1], [1, 9, 8, 5, 3, 7, 10, 6, 4, 2]
TWENTY = [2, 4, 20, 10, 18, 17, 5, 1, 14, 12, 6, 19, 9, 16, 13, 8, 15, 7, 3, 11]


def test_a_few_pairs_do_not_convict_a_rung_nor_have_everybody_climb() -> None:
    trials = climbed_of(10, FIVE)
    agreement = LADDER.agreements(trials)[1]
    assert (agreement.pairs, agreement.correlation) == (5, pytest.approx(0.1))
    assert not agreement.is_doubtful
    # One in two has climbed: the others wait for more.
    assert LADDER.next_climb(trials, is_end=False) is None


def test_selection_alone_makes_no_doubt() -> None:
    """The same ten pairs: of all there are, and of the better half."""
    every, half = (LADDER.agreements(climbed_of(trained, TEN))[1] for trained in (10, 20))
    assert every.correlation == half.correlation == pytest.approx(0.103, abs=1e-3)
    assert (every.restriction, every.is_doubtful) == (1.0, True)
    # The better half of a normal distribution is 1.66 times narrower than all of it.
    assert (half.restriction, half.is_doubtful) == (pytest.approx(1.66, abs=0.1), False)


def test_a_rung_that_tells_nothing_is_found_after_some_pairs_and_then_everybody_climbs() -> None:
    trials = climbed_of(40, TWENTY)
    agreement = LADDER.agreements(trials)[1]
    assert agreement.correlation == pytest.approx(0.0, abs=0.01)
    assert agreement.is_doubtful
    assert LADDER.next_climb(trials, is_end=False) == (trials[20], (5, 0))


def test_a_rung_that_tells_something_is_not_doubted_however_many_pairs_there_are() -> None:
    # It is known to be below .6, and not to be below .2.
    assert not Agreement("lower", "higher", 1_000, 0.25).is_doubtful
    assert Agreement("lower", "higher", 1_000, 0.15).is_doubtful
    # Over all configurations it is .29.
    assert not Agreement("lower", "higher", 1_000, 0.15, 2.0).is_doubtful


@pytest.mark.parametrize(("correlation", "is_doubtful"), [(1.0, False), (-1.0, True), (None, False)])
def test_where_all_pairs_agree_or_none_there_is_no_error(correlation: float | None, is_doubtful: bool) -> None:
    assert Agreement("lower", "higher", 5, correlation, 1.7).is_doubtful == is_doubtful


def test_those_passed_over_tell_how_narrow_the_others_are_and_those_that_may_not_climb_do_not() -> None:
    better = point(128, 128)
    trained = [trial(number, 0.5 + number / 100, point(128 * (number % 2), 128)) for number in range(6)]
    passed = [
        TrialHistory(f"trial-{number}", "trial", number, point(0, 0), 7, "sampler", [], "passed over", depths=(5,)) for number in (6, 7)
    ]
    assert LADDER.agreements(trained)[0].restriction == 1.0
    assert LADDER.agreements([*trained, *passed])[0].restriction > 1.3
    climbed = climbed_of(5, FIVE)
    frozen = [trial(number, 0.1, better | {"frozen_layers": 5}) for number in (5, 6, 7)]
    assert LADDER.agreements([*climbed, *frozen])[1].restriction == 1.0
    waiting = [trial(number, 0.1, better) for number in (5, 6, 7)]
    assert LADDER.agreements([*climbed, *waiting])[1].restriction > 1.3


def test_one_very_bad_score_does_not_change_how_narrow_the_others_are() -> None:
    trials = climbed_of(10, FIVE)
    whole = LADDER.agreements(trials)[1]
    trials[-1] = trial(9, 0.01)
    assert LADDER.agreements(trials)[1] == whole


def test_the_better_half_climbs_and_nobody_twice() -> None:
    trials = [trial(0, 0.5)]
    assert LADDER.next_climb(trials, is_end=False) is None
    trials.append(trial(1, 0.6))
    assert LADDER.next_climb(trials, is_end=False) == (trials[1], (5, 0))
    trials[1] = trial(1, 0.6, climbed=0.7)
    assert LADDER.next_climb(trials, is_end=False) is None
    trials += [trial(2, 0.55), trial(3, 0.4)]
    assert LADDER.next_climb(trials, is_end=False) == (trials[2], (5, 0))


def test_at_the_end_at_least_the_best_climbs() -> None:
    alone = [trial(0, 0.5)]
    assert LADDER.next_climb(alone, is_end=True) == (alone[0], (5, 0))
    assert LADDER.next_climb([trial(0, 0.5, climbed=0.6)], is_end=True) is None


@pytest.mark.parametrize(("low", "climbs"), [(0.35, True), (0.29, False), (float("nan"), False)])
def test_where_the_top_layers_pay_beyond_doubt_the_first_climbs_at_once(low: float, climbs: bool) -> None:
    """Its heads alone had .3."""
    alone = [trial(0, 0.5)]
    alone[0].epochs[-1]["interval"] = (low, 0.6)
    assert LADDER.next_climb(alone, is_end=False) == ((alone[0], (5, 0)) if climbs else None)
    # Then what it brings is waited for.
    climbing = trial(0, 0.5, state="")
    climbing.depths = (5, 0)
    waiting = trial(1, 0.4)
    waiting.epochs[-1]["interval"] = (low, 0.6)
    assert LADDER.next_climb([climbing, waiting], is_end=False) is None


def test_who_pays_climbs_first_and_averages_count() -> None:
    """Four are needed for a place; one of two has shown that its top layers pay, though the other is better."""
    patient = Ladder(SETTINGS, 6, RUNG, 4.0)
    pays, better = trial(0, 0.5), trial(1, 0.6)
    pays.epochs[-1]["interval"], better.epochs[-1]["interval"] = (0.35, 0.6), (0.3, 0.9)
    assert patient.next_climb([pays, better], is_end=False) == (pays, (5, 0))
    averaged, raw = trial(0, 0.5), trial(1, 0.6)
    averaged.epochs[-1]["trained_score"] = 0.7
    assert LADDER.next_climb([averaged, raw], is_end=False) == (averaged, (5, 0))


def test_who_may_train_no_more_does_not_climb_nor_who_ended_badly() -> None:
    trials = [trial(0, 0.5), trial(1, 0.6, point(0, 0, frozen=5)), trial(2, 0.7, state="diverged"), trial(3, 0.4)]
    assert LADDER.next_climb(trials, is_end=False) == (trials[0], (5, 0))


def test_nobody_climbs_after_two_who_gained_nothing() -> None:
    vain = [trial(0, 0.5, climbed=0.4), trial(1, 0.6, climbed=0.5)]
    waiting = [trial(number, 0.7) for number in range(2, 8)]
    assert LADDER.next_climb([*vain, *waiting], is_end=False) is None
    assert LADDER.next_climb([trial(0, 0.5, climbed=0.6), vain[1], *waiting], is_end=False) is not None
    # Stopped before the lower layers were trained, as in searches of before; who died there did try.
    stopped = [replace(trial(number, 0.5, state="stopped"), depths=(5, 0)) for number in (0, 1)]
    assert LADDER.next_climb([*stopped, *waiting], is_end=False) is not None
    died = [replace(one, error="out of memory while it climbed") for one in stopped]
    assert LADDER.next_climb([*died, *waiting], is_end=False) is None
