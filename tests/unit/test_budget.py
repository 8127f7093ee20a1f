"""What a search may use, and when it is used up."""

from typing import Any

import pytest

from training.search.deciding.budget import Budget, Cost, mean_cost, spent_on, times, together
from training.search.proposing.ledger import TrialHistory


def history(number: int, *epochs: tuple[float, float], state: str = "finished") -> TrialHistory:
    reports: list[dict[str, Any]] = [{"epoch": place, "epoch_s": wall, "epoch_cpu_s": cpu} for place, (wall, cpu) in enumerate(epochs)]
    return TrialHistory(f"trial-{number}", "trial", number, {}, 7, "sampler", reports, state)


def test_without_limits_there_is_always_room_and_no_end() -> None:
    assert Budget().leaves(Cost(1e9, 1e9), Cost(1e9, 1e9))
    assert Budget().left_s(Cost(10.0, 10.0)) is None


@pytest.mark.parametrize(
    ("budget", "used", "needed", "has_room"),
    [
        (Budget(100.0), Cost(50.0, 1e9), Cost(49.0, 1e9), True),
        (Budget(100.0), Cost(50.0, 0.0), Cost(50.0, 0.0), False),
        (Budget(cpu_s=100.0), Cost(1e9, 50.0), Cost(1e9, 49.0), True),
        (Budget(cpu_s=100.0), Cost(0.0, 50.0), Cost(0.0, 50.0), False),
        (Budget(100.0, 100.0), Cost(0.0, 101.0), Cost(0.0, 0.0), False),
    ],
)
def test_either_limit_is_one(budget: Budget, used: Cost, needed: Cost, has_room: bool) -> None:
    assert budget.leaves(used, needed) == has_room


def test_what_is_left_of_cpu_seconds_lasts_at_the_pace_so_far() -> None:
    assert Budget(cpu_s=300.0).left_s(Cost(50.0, 100.0)) == 100.0
    assert Budget(80.0, 300.0).left_s(Cost(50.0, 100.0)) == 30.0
    assert Budget(40.0).left_s(Cost(50.0, 100.0)) == 0.0


def test_trials_cost_what_their_epochs_took() -> None:
    one, other = history(0, (1.0, 2.0), (3.0, 4.0)), history(1, (6.0, 8.0), state="stopped")
    assert spent_on(one) == Cost(4.0, 6.0)
    assert mean_cost([one, other, history(2, (99.0, 99.0), state="died"), history(3, state="passed over")]) == Cost(5.0, 7.0)
    assert mean_cost([]) == Cost(0.0, 0.0)
    assert times(Cost(4.0, 6.0), 3) == Cost(12.0, 18.0)
    assert together([Cost(4.0, 6.0)] * 3, 2) == Cost(6.0, 18.0)
    # However many places there are, one alone takes its time.
    assert together([Cost(4.0, 6.0), Cost(1.0, 1.0)], 2) == Cost(4.0, 7.0)
    assert together([], 2) == Cost(0.0, 0.0)
