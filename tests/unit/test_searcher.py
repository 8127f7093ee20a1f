"""What Optuna is told: finished trials COMPLETE, stopped ones PRUNED, dead and diverged ones FAIL, those without memory infeasible."""

from typing import Any

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from training.search.proposing.ledger import TrialHistory
from training.search.proposing.searcher import FirstPoint, Proposer
from training.search_settings import TuningSettings

SPACE: dict[str, BaseDistribution] = {
    "rate": FloatDistribution(1e-5, 1e-2, log=True),
    "heads/a/hidden_size": CategoricalDistribution((0, 64)),
}
FIRST = [FirstPoint("default", {"rate": 1e-3, "heads/a/hidden_size": 64})]


def make(**changes: Any) -> Proposer:
    return Proposer(SPACE, FIRST, ["a", "b"], TuningSettings.model_validate({"num_samples": 8, "seed": 3} | changes))


def report(score: float, epoch: int, **changes: Any) -> dict[str, Any]:
    return {"score": score, "head_scores": {"a": score, "b": score / 2}, "epoch": epoch, "is_last": False, **changes}


def history(number: int, scores: list[float], state: str = "") -> TrialHistory:
    point = {"rate": 1e-4 * (number + 1), "heads/a/hidden_size": 0}
    return TrialHistory(
        f"trial-{number}", "trial", number, point, 7, "sampler", [report(one, at + 1) for at, one in enumerate(scores)], state
    )


def test_trial_0_is_the_given_point_and_then_the_sampler_proposes() -> None:
    proposer = make()
    first, second = proposer.propose(), proposer.propose()
    assert first is not None
    assert second is not None
    assert (first.origin, first.point) == ("default", FIRST[0].point)
    assert (second.number, second.origin, set(second.point)) == (1, "sampler", set(SPACE))


def test_it_proposes_as_many_as_planned() -> None:
    proposer = make(num_samples=3)
    assert [proposal.number for proposal in iter(proposer.propose, None)] == [0, 1, 2]
    assert proposer.propose() is None


@pytest.mark.parametrize(
    ("ended", "state", "value"),
    [
        ("finished", TrialState.COMPLETE, 0.9),
        ("stopped", TrialState.PRUNED, 0.9),
        ("diverged", TrialState.FAIL, None),
        ("died", TrialState.FAIL, None),
        ("out of memory", TrialState.PRUNED, 0.9),
    ],
)
def test_each_end_is_told_as_what_it_is(ended: str, state: TrialState, value: float | None) -> None:
    proposer = make()
    proposer.propose()
    # .6, .9, .7 in its epochs is told as .9: reports carry the best so far.
    for epoch, best in enumerate((0.6, 0.9, 0.9), start=1):
        proposer.heard(0, report(best, epoch))
    proposer.ended(0, ended, report(0.9, 3, is_last=True))
    trial = proposer.study.trials[0]
    assert (trial.state, trial.value) == (state, value)
    assert trial.constraints == ({} if state == TrialState.FAIL else {"memory": float(ended == "out of memory")})


def test_several_scores_are_told_side_by_side_and_a_stopped_trial_has_none() -> None:
    proposer = make(mode="pareto")
    for number, state in enumerate(("finished", "stopped")):
        proposer.propose()
        proposer.heard(number, report(0.8, 1))
        proposer.ended(number, state, report(0.8, 1))
    assert [trial.state for trial in proposer.study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert proposer.study.trials[0].values == [0.8, 0.4]
    assert proposer.study.trials[1].values is None
    assert [trial.number for trial in proposer.study.best_trials] == [0]


def play(proposer: Proposer, numbers: range) -> list[dict[str, Any]]:
    """Let each proposal end with a score that depends on its point."""
    points = []
    for number in numbers:
        proposal = proposer.propose()
        assert proposal is not None
        points.append(proposal.point)
        proposer.heard(number, report(float(proposal.point["rate"]) * 50, 1))
        proposer.ended(number, "stopped" if number % 3 == 2 else "finished", report(float(proposal.point["rate"]) * 50, 1))
    return points


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "grid"])
def test_a_rebuilt_study_proposes_what_the_uninterrupted_one_would(sampler: str) -> None:
    whole = play(make(sampler=sampler), range(8))
    begun = make(sampler=sampler)
    points = play(begun, range(5))
    rebuilt = make(sampler=sampler)
    for number, point in enumerate(points):
        state = "stopped" if number % 3 == 2 else "finished"
        epochs = [report(float(point["rate"]) * 50, 1)]
        assert rebuilt.remember(TrialHistory(f"trial-{number}", "trial", number, point, 7, "sampler", epochs, state)) is None
    assert points + play(rebuilt, range(5, 8)) == whole


def test_an_interrupted_trial_is_proposed_again_and_can_end() -> None:
    proposer = make()
    proposer.remember(history(0, [0.5, 0.6], "finished"))
    again = proposer.remember(history(1, [0.3]))
    assert again is not None
    assert (again.number, again.point["rate"]) == (1, 2e-4)
    proposer.heard(1, report(0.7, 2))
    proposer.ended(1, "finished", report(0.7, 2))
    assert [(trial.state, trial.value) for trial in proposer.study.trials] == [(TrialState.COMPLETE, 0.6), (TrialState.COMPLETE, 0.7)]
    following = proposer.propose()
    assert following is not None
    assert following.number == 2


def test_a_lost_number_is_proposed_anew() -> None:
    proposer = make(num_samples=3)
    proposer.remember(history(1, [0.5], "finished"))
    assert [proposal.number for proposal in iter(proposer.propose, None)] == [0, 2]
