"""The one thread that computes: batches one after another, and whether their engine is good for others.

An engine may break for good and live on, as one does after an illegal access to a GPU's memory: whatever it is asked fails at once, and a
front that gives a request to whoever has the fewest would give it nearly all of them. So one that fails on a single text is asked for
something it has computed before, and ended where it fails on that too. It does not know in which order texts come.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

from serving.errors import NotReady
from serving.scheduling.queued import Job, Model

log = logging.getLogger(__name__)

# Whoever sends texts that each break alone costs others one short text a second.
_TRUSTED_S = 1.0


class EngineThread:
    """Computes batches; asked from one event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._jobs: set[Job] = set()
        # Versions come and go, and with one that nobody holds its memory.
        self._worked_at: WeakKeyDictionary[Model, float] = WeakKeyDictionary()

    @property
    def tokens(self) -> int:
        """Tokens of batches that are being computed, or are the next."""
        return sum(job.tokens for job in self._jobs)

    async def run(self, job: Job) -> "asyncio.Future[Sequence[Any]]":
        """Compute a batch.

        Returns:
            Done, with what the model returned or raised.
        """
        self._jobs.add(job)
        computed = asyncio.get_running_loop().run_in_executor(self._thread, job.run)
        try:
            # wait() takes no error out of the future, so that whatever the engine raises is looked at by who asked.
            await asyncio.wait([computed])
        finally:
            self._jobs.discard(job)
        return computed

    async def works(self, model: Model) -> bool:
        """Tell whether a model that failed on a text can still compute others; it is ended where it cannot.

        It is believed for a second that it can.
        """
        if time.monotonic() - self._worked_at.get(model, -math.inf) < _TRUSTED_S:
            return True
        payloads = list(model.known_good)
        computed = await self.run(Job(model, payloads, sum(map(len, payloads))))
        error = computed.exception()
        if error is None and len(computed.result()) == len(payloads):
            self._worked_at[model] = time.monotonic()
            return True
        log.critical("the engine fails on what it has computed before, and is ended: %s", type(error).__name__ if error else "no answer")
        model.end()
        return False

    def require_moving(self, expected_s: Callable[[int], float]) -> None:
        """Check that no batch is being computed for far longer than it can take.

        Args:
            expected_s: Tokens → how long they take; 0 where that is not known.

        Raises:
            NotReady: One is, as in a process that was stopped or waits for a GPU's driver; the engine is ended.
        """
        for job in self._jobs:
            if job.stands_still(expected_s(job.tokens)):
                # Else its process would outlive this one: it never sees that nobody is left.
                job.model.end()
                raise NotReady("the engine stands still: it has computed one batch for many times as long as that takes")

    def stop(self) -> None:
        """Let the thread end; the batch being computed is finished and dropped."""
        self._thread.shutdown(wait=False)
