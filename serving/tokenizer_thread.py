"""The one thread that tokenises what is not short: who would wait too long for it is refused, and who is late or gone leaves it.

It reads one request after another, as they come. How long that takes is told by their characters and how many it has read in a second
lately. It does not know how tokens are made.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from serving.errors import DeadlineExceeded, NotReady, Overloaded
from serving.scheduling.counted import Counters, Demand, Speed

DoneT = TypeVar("DoneT")

# What is shorter takes as long as handing it to the thread and back does, whatever its length, and would tell nothing of a long text.
_MEASURED_CHARACTERS = 2_000


class TokenizerThread:
    """Does what is asked, one after another; asked from one event loop.

    Args:
        max_queue_s: Refuse requests before which it is busy for longer than this.
        demand: Told of requests that leave before their texts were read.

    Attributes:
        waiting_characters: Of texts that wait or are being read.
    """

    def __init__(self, max_queue_s: float, demand: Demand) -> None:
        self._max_queue_s = max_queue_s
        self._demand = demand
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        # Of characters, not of tokens.
        self._speed = Speed()
        self.waiting_characters = 0

    async def run(self, work: Callable[[], DoneT], characters: int, deadline: float, counters: Counters) -> DoneT:
        """Do something in the thread.

        Args:
            work: Reads texts.
            characters: Of these texts.
            deadline: On the monotonic clock.
            counters: Where it is counted who is refused, late or gone.

        Returns:
            What `work` does.

        Raises:
            Overloaded: Others' texts take longer than `max_queue_s`.
            DeadlineExceeded: It passed first.
            NotReady: It was stopped meanwhile.
        """
        self._require_room(counters)
        asked = self._thread.submit(_timed, work)
        done = asyncio.wrap_future(asked)
        self.waiting_characters += characters
        done.add_done_callback(lambda done: self._note(done, characters))
        try:
            # wait() leaves the future as it is: what was begun goes on, and others wait for it.
            await asyncio.wait([done], timeout=max(deadline - time.monotonic(), 0.0))
        except asyncio.CancelledError:
            counters.cancelled += 1
            self._withdraw(asked)
            raise
        if not done.done():
            counters.expired += 1
            self._withdraw(asked)
            raise DeadlineExceeded("the deadline passed before the texts were tokenised")
        if done.cancelled():
            raise NotReady("the tokenizer does not run")
        result, _ = done.result()
        return result

    def stop(self) -> None:
        """Let the thread end; what was not begun fails."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _require_room(self, counters: Counters) -> None:
        wait_s = self._speed.seconds(self.waiting_characters)
        if wait_s > self._max_queue_s:
            counters.refused += 1
            self._demand.note_unread()
            raise Overloaded(f"{wait_s:.1f} s of tokenising come before this request, but at most {self._max_queue_s:g} s may", wait_s)

    def _withdraw(self, asked: "Future[tuple[DoneT, float]]") -> None:
        asked.cancel()
        self._demand.note_unread()

    def _note(self, done: "asyncio.Future[tuple[DoneT, float]]", characters: int) -> None:
        self.waiting_characters -= characters
        # Asked for also where nobody waits any more: asyncio would log an error's own words, which may quote a text.
        if not done.cancelled() and done.exception() is None and characters >= _MEASURED_CHARACTERS:
            self._speed.note(characters, done.result()[1])


def _timed(work: Callable[[], DoneT]) -> tuple[DoneT, float]:
    """Return what it does, and the seconds that took."""
    started = time.monotonic()
    return work(), time.monotonic() - started
