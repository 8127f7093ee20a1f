"""A model that waits until it is let through, and a scheduler for the length of a test."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from serving.scheduling.queued import Scheduled
from serving.scheduling.scheduler import Scheduler

LONG_S = 60.0


class GatedModel:
    """Answers each payload with its upper case; waits in the engine thread until it is let through.

    Attributes:
        is_broken: It fails on everything from now on, and lives on.
    """

    known_good = ("good",)

    def __init__(self, *, is_open: bool = False, breaks_on: str = "", pads: bool = True) -> None:
        self.pads, self.batch_tokens = pads, 6
        self.batches: list[list[str]] = []
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.breaks_on = breaks_on
        self.is_broken = False
        self.has_ended = False
        if is_open:
            self.gate.set()

    def compute(self, texts: Sequence[str], /) -> list[str]:
        self.batches.append(list(texts))
        self.entered.set()
        assert self.gate.wait(LONG_S)
        if self.is_broken or (self.breaks_on and self.breaks_on in texts):
            raise RuntimeError(f"cannot compute {self.breaks_on}")
        return [text.upper() for text in texts]

    def end(self) -> None:
        """Remember that it was told to."""
        self.has_ended = True

    async def busy(self) -> None:
        """Wait until a batch is in the engine."""
        assert await asyncio.to_thread(self.entered.wait, LONG_S)


def run(
    test: Callable[[Scheduler], Awaitable[None]], batch_tokens: int | None = 1000, max_queue_s: float = 100.0, age_bound_s: float = LONG_S
) -> None:
    async def main() -> None:
        scheduler = Scheduler(batch_tokens, max_queue_s, age_bound_s)
        scheduler.start()
        try:
            await asyncio.wait_for(test(scheduler), LONG_S)
        finally:
            await scheduler.stop()

    asyncio.run(main())


def submit(scheduler: Scheduler, model: Any, *texts: str, deadline_s: float = LONG_S) -> asyncio.Task[Scheduled]:
    return asyncio.get_running_loop().create_task(scheduler.submit(model, texts, deadline_s))


async def settled() -> None:
    """Let every task that can run come to its next wait."""
    for _ in range(10):
        await asyncio.sleep(0)
