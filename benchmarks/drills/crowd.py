"""Many callers who send each request once, from a thread that takes little of the machine; what is not answered is remembered."""

import asyncio
import json
import time
from array import array
from collections import Counter
from collections.abc import Coroutine
from typing import Any, NamedTuple

from benchmarks.drills.asking import TEXTS, Beside
from benchmarks.over_http.wire import Wire, closed_loop, open_loop

TALLY_S = 1.0


class Unanswered(NamedTuple):
    """One request that got something else than an answer.

    Attributes:
        begun: By `time.monotonic`.
        ended: By the same.
        status: 0 where the connection broke.
    """

    begun: float
    ended: float
    status: int


class Crowd(Beside):
    """Ask from a thread for the length of a block.

    Args:
        port: Of the deployment.
        rate_per_s: Requests a second, whatever the answers do; without it eight callers ask, each as soon as it has its answer.
        seed: Of the times at which they leave.

    Attributes:
        statuses: Status → how many requests ended so.
        waits_s: Of the answered.
        unanswered: All others.
    """

    def __init__(self, port: int, rate_per_s: float | None = None, seed: int = 0) -> None:
        self.statuses: Counter[int] = Counter()
        self.waits_s = array("f")
        self.unanswered: list[Unanswered] = []
        self._wire = Wire(port, "/v1/predict", [json.dumps({"texts": [text]}).encode() for text in TEXTS])
        self._rate_per_s, self._seed = rate_per_s, seed

    @property
    def answered(self) -> int:
        """How many requests were."""
        return self.statuses[200]

    async def _go_on(self) -> None:
        asking = asyncio.create_task(self._ask())
        while not asking.done():
            await asyncio.wait([asking], timeout=TALLY_S)
            self._tally()
        self._wire.close()
        await asking

    def _ask(self) -> Coroutine[Any, Any, None]:
        if self._rate_per_s:
            return open_loop(self._wire, self._rate_per_s, self._goes_on, self._seed)
        return closed_loop(self._wire, 8, self._goes_on)

    def _goes_on(self) -> bool:
        return not self._ending.is_set()

    def _tally(self) -> None:
        # An hour of requests is too many to keep each of them.
        sent, self._wire.sent = self._wire.sent, []
        begun = self._wire.begun + time.monotonic() - time.perf_counter()
        for one in sent:
            self.statuses[one.status] += 1
            if one.status == 200:
                self.waits_s.append(one.latency_s)
            else:
                left = begun + one.left_s
                self.unanswered.append(Unanswered(left, left + one.latency_s, one.status))
