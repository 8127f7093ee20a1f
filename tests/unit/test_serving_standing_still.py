"""An engine that computes one batch for ever is noticed, and one that is only slow is not."""

import time

import pytest

from serving.errors import NotReady
from serving.scheduling import queued
from serving.scheduling.scheduler import Scheduler
from tests.gated import GatedModel, run, submit


class Clock:
    """The time as the scheduler sees it, moved on by hand."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.mark.parametrize(
    ("tokens_per_s", "ahead_s", "is_still"),
    [(0.0, 50.0, False), (0.0, 70.0, True), (1e6, 50.0, False), (1e6, 70.0, True), (0.1, 1_900.0, False), (0.1, 2_100.0, True)],
)
def test_a_batch_that_takes_far_too_long_is_noticed(
    tokens_per_s: float, ahead_s: float, is_still: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(queued, "time", clock)

    async def test(scheduler: Scheduler) -> None:
        if tokens_per_s:
            scheduler.expect_speed(tokens_per_s)
        model = GatedModel()
        first = submit(scheduler, model, "ten tokens")
        await model.busy()
        scheduler.require_running()
        clock.ahead_s = ahead_s
        if is_still:
            with pytest.raises(NotReady, match="the engine stands still"):
                scheduler.require_running()
            assert model.has_ended
            with pytest.raises(NotReady, match="the engine stands still"):
                scheduler.admit()
        else:
            scheduler.require_running()
            assert not model.has_ended
        # Whoever goes on is believed.
        model.gate.set()
        await first
        scheduler.require_running()

    run(test, max_queue_s=1e6)
