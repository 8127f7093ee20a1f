"""Requests at a steady rate, each of which is remembered. It knows one address and nothing of what is behind it."""

import asyncio
import re
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from types import TracebackType
from typing import Self

from serving.client import AsyncClient
from serving.errors import AnswerError

TEXTS = ("nurse", "a driver for our school", "the master of sales " * 20)


@dataclass(frozen=True)
class Asked:
    """What became of one request.

    Attributes:
        begun: By `time.monotonic`.
        ended: By the same.
        error: What the client was told; empty where it was answered.
    """

    begun: float
    ended: float
    error: str = ""


def causes_of(failed: Sequence[Asked]) -> Counter[str]:
    """Count requests by what their client was told, without the requests' own ids."""
    return Counter(re.sub(r" \(request .*", "", one.error) for one in failed)


class Beside(ABC):
    """What goes on beside a block, in a thread, until that is told to end."""

    def __enter__(self) -> Self:
        self._ending = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._go_on()), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.set()
        self._thread.join()

    @abstractmethod
    async def _go_on(self) -> None:
        """Go on until told to end."""


@dataclass
class Asking(Beside):
    """Ask from a thread for the length of a block.

    Attributes:
        url: Of the deployment.
        rate_per_s: Requests a second, whatever the answers do.
        retries: Of the client; with 0 it is like any other.
        done: Requests that were answered or failed.
        begun: Requests that left.
    """

    url: str
    rate_per_s: float
    retries: int
    texts: Sequence[str] = TEXTS
    done: list[Asked] = field(default_factory=list)
    begun: int = 0

    @property
    def in_flight(self) -> int:
        """Requests that wait for their answer now."""
        return self.begun - len(self.done)

    @property
    def failed(self) -> list[Asked]:
        """Requests that were not answered."""
        return [one for one in self.done if one.error]

    def silence_s(self) -> float:
        """Return the longest time between two answers."""
        answered = sorted(one.ended for one in self.done if not one.error)
        return max((later - earlier for earlier, later in pairwise(answered)), default=0.0)

    async def _go_on(self) -> None:
        start = time.monotonic()
        async with AsyncClient(self.url, timeout_s=30.0, retries=self.retries) as client, asyncio.TaskGroup() as group:
            for number in count():
                await asyncio.sleep(start + number / self.rate_per_s - time.monotonic())
                if self._ending.is_set():
                    return
                self.begun += 1
                group.create_task(self._one(client, self.texts[number % len(self.texts)]))

    async def _one(self, client: AsyncClient, text: str) -> None:
        begun, error = time.monotonic(), ""
        try:
            await client.predict([text])
        except AnswerError as told:
            error = told.message
        self.done.append(Asked(begun, time.monotonic(), error))
