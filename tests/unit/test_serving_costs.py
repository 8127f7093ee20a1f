"""A batch is as small as keeps the engine fast."""

from collections.abc import Callable, Sequence

import pytest

from serving.engines import costs
from serving.engines.costs import Cost, enough, measure_costs

TEXTS = ["x" * 10, "y" * 30]


def measured(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> tuple[list[Cost], list[int]]:
    """Measure with a clock of our own; returns what was found and the size of every batch that was computed."""
    now, sizes = [0.0], list[int]()

    def run(batch: Sequence[str]) -> None:
        sizes.append(sum(map(len, batch)))
        now[0] += seconds(sizes[-1])

    monkeypatch.setattr(costs.time, "perf_counter", lambda: now[0])
    return measure_costs(run, TEXTS), sizes


def test_growing_ends_where_it_brings_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten milliseconds for every batch, and as many for 500 tokens: from about 4,000 on twice the size brings less than a tenth."""
    found, sizes = measured(monkeypatch, lambda tokens: 0.01 + tokens / 50_000)
    assert [cost.texts for cost in found[:3]] == [4, 7, 14]
    assert all(cost.tokens >= 64 * 2**place for place, cost in enumerate(found))
    assert sizes[:3] == [found[0].tokens] * 3
    best = enough(found)
    assert best.tokens_per_s >= max(cost.tokens_per_s for cost in found) / 1.05
    smaller = [cost for cost in found if cost.tokens < best.tokens]
    assert all(cost.tokens_per_s < max(one.tokens_per_s for one in found) / 1.05 for cost in smaller)
    assert best.tokens > 2_000


def test_where_size_brings_nothing_the_smallest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = measured(monkeypatch, lambda tokens: tokens / 1_000)
    # One more than tells it, for others use the machine too.
    assert len(found) == 3
    assert enough(found) == found[0]


def test_a_batch_is_not_too_short_for_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = measured(monkeypatch, lambda tokens: tokens / 40_000)
    assert enough(found).seconds >= 0.005 > found[0].seconds


def test_a_slow_engine_is_not_measured_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = measured(monkeypatch, lambda tokens: 10.0)
    assert len(found) == 1


def test_one_slow_reading_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else was busy while the second size was measured."""
    found, _ = measured(monkeypatch, lambda tokens: (0.01 + tokens / 50_000) * (3 if 100 < tokens < 200 else 1))
    assert enough(found).tokens > 2_000
