"""A batch is as small as keeps the engine fast, whoever else uses the machine."""

from collections.abc import Callable, Sequence

import pytest

from serving.engines import costs
from serving.engines.costs import Cost, enough, measure_costs

TEXTS = ["x" * 10, "y" * 16, "y" * 16, "z" * 500]


def measured(seconds: Callable[[int, int], float], monkeypatch: pytest.MonkeyPatch) -> tuple[list[Cost], list[int]]:
    """Measure with a clock of our own; returns what was found and the size of every batch that was computed.

    Args:
        seconds: Given a batch's tokens and how many were computed before, what it takes.
    """
    now, sizes = [0.0], list[int]()

    def run(batch: Sequence[str]) -> None:
        sizes.append(sum(map(len, batch)))
        now[0] += seconds(sizes[-1], len(sizes))

    monkeypatch.setattr(costs.time, "perf_counter", lambda: now[0])
    return measure_costs(run, TEXTS, lambda: now[0]), sizes


def test_a_batch_costs_itself_a_twentieth_of_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    found, sizes = measured(lambda tokens, _: 0.004 + tokens / 10_000, monkeypatch)
    assert sizes[:4] == [64, 64, 128, 128]
    assert [cost.texts for cost in found[:2]] == [4, 8]
    best = enough(found)
    assert best.tokens == pytest.approx(0.004 * 20 * 10_000, abs=1)
    assert best.seconds == pytest.approx(0.004 + best.tokens / 10_000)


def test_where_a_batch_costs_nothing_by_itself_the_smallest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = measured(lambda tokens, _: tokens / 1_000, monkeypatch)
    assert enough(found).tokens == found[0].tokens


def test_where_tokens_cost_nothing_the_largest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = measured(lambda tokens, _: 0.006, monkeypatch)
    assert enough(found).tokens == found[-1].tokens == 32_768


def test_a_batch_is_not_too_short_for_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = measured(lambda tokens, _: tokens / 40_000, monkeypatch)
    assert enough(found).seconds >= 0.005 > found[0].seconds


def test_nobody_waits_long_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = measured(lambda tokens, _: 0.05 + tokens / 1_000, monkeypatch)
    assert enough(found) == Cost(512, 32, pytest.approx(0.562))
    assert [cost.tokens for cost in found] == [64, 128, 256, 512]


def test_a_slow_engine_is_not_measured_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    found, sizes = measured(lambda tokens, _: 10.0, monkeypatch)
    assert (len(found), len(sizes)) == (1, 2)
    assert enough(found) == Cost(64, 4, 10.0)


@pytest.mark.parametrize("busy", [range(1, 9), range(5, 15), range(17, 30)])
def test_who_is_busy_for_a_while_changes_nothing(busy: range, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet, _ = measured(lambda tokens, _: 0.004 + tokens / 10_000, monkeypatch)
    found, _ = measured(lambda tokens, before: (0.004 + tokens / 10_000) * (3 if before in busy else 1), monkeypatch)
    assert enough(found).tokens == pytest.approx(enough(quiet).tokens, rel=0.05)
