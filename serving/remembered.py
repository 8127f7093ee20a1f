"""Answers of late, by version and text: equal texts are computed once, also while the first of them still is.

Off by default: it pays where the same texts come again and again. It keeps digests of texts, not texts. Who asks about a text that is
being computed for a request with as many texts as his own, or fewer, waits for that answer, and asks himself where none comes. A larger
request is answered as a whole, perhaps long after his own text could be; and so is one of another client with a name, behind all that
client asked before. Requests without a name stand each for itself. It does not know how answers are made.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from serving.errors import DeadlineExceeded
from serving.messages import Answer
from serving.scheduling.counted import Counters

# Two texts of one digest would be one; with so many bytes nobody finds such a pair.
_DIGEST_BYTES = 20

# Answers about the keys at these places.
Compute = Callable[[list[int]], Awaitable[Sequence[Answer]]]


@dataclass(frozen=True, slots=True)
class _Coming:
    """An answer that is being computed.

    Attributes:
        answer: Set with all others of its request; None where it is nobody else's.
        texts: Computed with it.
    """

    answer: "asyncio.Future[Answer | None]"
    texts: int


class Remembered:
    """The last answers, and those that are being computed; lives on one event loop.

    Args:
        most: Answers that are kept; the one that nobody asked for the longest goes first.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[bytes, Answer] = OrderedDict()
        # By who asked too: else two clients who do not wait for each other would take the place of each other's, and wait for none.
        self._in_flight: dict[tuple[str, bytes], _Coming] = {}

    async def answers(self, keys: Sequence[bytes], compute: Compute, deadline: float, client: str, counters: Counters) -> list[Answer]:
        """Return one answer a key, computing those that nobody has or is about to have.

        Args:
            keys: See `key`.
            compute: Answers about the keys at these places.
            deadline: On the monotonic clock.
            client: Who asks; see `Scheduler.submit`.
            counters: Where hits are counted, and who leaves or is late while somebody else's answer is waited for.

        Raises:
            DeadlineExceeded: It passed while somebody else's answer was waited for.
            ServingError: Whatever `compute` raises.
        """
        places = {key: place for place, key in reversed(list(enumerate(keys)))}
        counters.shared += len(keys) - len(places)
        found: dict[bytes, Answer] = {}
        while missing := [key for key in sorted(places, key=places.__getitem__) if key not in found]:
            found |= {key: answer for key in missing if (answer := self._recall(key, counters))}
            missing = [key for key in missing if key not in found]
            others = {key: one for key in missing if (one := self._coming(key, client, len(places))) is not None}
            if mine := [key for key in missing if key not in others]:
                found |= await self._compute(mine, [places[key] for key in mine], compute, client)
            for key, coming in others.items():
                if (answer := await _wait(coming.answer, deadline, counters)) is not None:
                    counters.shared += 1
                    found[key] = answer
        return [found[key] for key in keys]

    def _coming(self, key: bytes, client: str, texts: int) -> _Coming | None:
        """Return what a client with so many texts waits for: it comes in his own turn, or in that of a request that stands for itself."""
        for whose in (client, ""):
            one = self._in_flight.get((whose, key))
            if one is not None and one.texts <= texts:
                return one
        return None

    def _recall(self, key: bytes, counters: Counters) -> Answer | None:
        answer = self._kept.get(key)
        if answer is not None:
            self._kept.move_to_end(key)
            counters.remembered += 1
        return answer

    async def _compute(self, keys: list[bytes], places: list[int], compute: Compute, client: str) -> dict[bytes, Answer]:
        found: dict[bytes, Answer] = {}
        coming = {key: _Coming(asyncio.get_running_loop().create_future(), len(keys)) for key in keys}
        # In the place of larger requests, which are answered later.
        self._in_flight |= {(client, key): one for key, one in coming.items()}
        try:
            found = dict(zip(keys, await compute(places), strict=True))
        finally:
            for key, one in coming.items():
                # An error is not kept, and is the answer of nobody else.
                answer = found.get(key)
                told = answer if answer is not None and answer.error is None else None
                one.answer.set_result(told)
                if self._in_flight.get((client, key)) is one:
                    del self._in_flight[client, key]
                if told is not None:
                    self._keep(key, told)
        return found

    def _keep(self, key: bytes, answer: Answer) -> None:
        self._kept[key] = answer
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)


def key(version: int, text: str, *asked: object) -> bytes:
    """Return what stands for a text.

    Args:
        version: Which version is asked.
        text: The finished text.
        asked: What else decides about its answer.
    """
    return blake2b(f"{version} {asked} {text}".encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()


async def _wait(coming: "asyncio.Future[Answer | None]", deadline: float, counters: Counters) -> Answer | None:
    try:
        # wait() leaves the future as it is when this request is cancelled: others wait for it too.
        await asyncio.wait({coming}, timeout=max(deadline - time.monotonic(), 0.0))
    except asyncio.CancelledError:
        counters.cancelled += 1
        raise
    if not coming.done():
        counters.expired += 1
        raise DeadlineExceeded("the deadline passed before the answer was there")
    return coming.result()
