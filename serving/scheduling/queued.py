"""What a scheduler deals with: models, requests, their texts, and batches on their way through the engine."""

import asyncio
import time
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

# A batch has no bound of its own: a large one on a slow machine takes minutes. One that takes longer than both of these is not computed any
# more: twenty times as long as others of its size is more than a busy machine makes of it, a minute more than a first one takes.
_STILL_S = 60.0
_STILL_TIMES = 20.0


class Model(Protocol):
    """What answers about payloads, in the engine thread."""

    @property
    def pads(self) -> bool:
        """Whether it computes padding like tokens, so that texts of similar length should come together."""
        ...

    @property
    def batch_tokens(self) -> int:
        """Tokens that make a batch as fast as any."""
        ...

    @property
    def known_good(self) -> Sequence[Sized]:
        """A few payloads that it has computed before: failing on them is no fault of theirs."""
        ...

    def compute(self, texts: Sequence[Any], /) -> Sequence[Any]:
        """Return one answer a payload, in their order."""
        ...

    def end(self) -> None:
        """Compute nothing any more, and give up what is being computed."""
        ...


@dataclass(frozen=True, slots=True)
class Scheduled:
    """What became of a request.

    Attributes:
        answers: One a payload, in their order; an error in the place of one that the engine fails on, beside others that it does not.
        queue_s: Time it waited.
        compute_s: Time the batches took that it was part of.
        batch_texts: Texts in the largest of these batches.
        batch_tokens: Tokens in the largest.
    """

    answers: list[Any]
    queue_s: float
    compute_s: float
    batch_texts: int
    batch_tokens: int


@dataclass(slots=True, eq=False)
class Request:
    """What was asked, and what is known so far.

    Attributes:
        model: Answers it.
        client: Who asks.
        arrived: By `time.monotonic`.
        deadline: By the same clock.
        answers: One a text; None where it is still missing.
        done: Set with the last answer, or with an error.
        missing: Answers that are.
        waiting: Orders of its texts that wait for a batch.
        compute_s: See `Scheduled`, as the others.
    """

    model: Model
    client: str
    arrived: float
    deadline: float
    answers: list[Any]
    done: asyncio.Future[None]
    missing: int
    waiting: set[int] = field(default_factory=set)
    compute_s: float = 0.0
    batch_texts: int = 0
    batch_tokens: int = 0

    def note_batch(self, texts: int, tokens: int, compute_s: float) -> None:
        """Take in a batch that some of its texts were in, answered or not."""
        self.compute_s += compute_s
        self.batch_texts = max(self.batch_texts, texts)
        self.batch_tokens = max(self.batch_tokens, tokens)


@dataclass(slots=True, eq=False)
class Text:
    """One text of a request, in the queue.

    Attributes:
        request: Its own.
        position: Within it.
        payload: What the model reads.
        tokens: Of it.
        place: Its turn; see `serving.scheduling.turns`.
    """

    request: Request
    position: int
    payload: Sized
    tokens: int
    place: float


@dataclass(slots=True, eq=False)
class Job:
    """A batch on its way through the engine thread, where others may come before it.

    Attributes:
        model: Computes it.
        payloads: Of it.
        tokens: Of all of them.
        seconds: How long it took.
    """

    model: Model
    payloads: list[Sized]
    tokens: int
    seconds: float = 0.0
    _began: float | None = None

    def run(self) -> Sequence[Any]:
        """Compute it, in the engine thread."""
        # Not the loop's own clock: uvloop's counts in milliseconds.
        self._began = started = time.monotonic()
        try:
            return self.model.compute(self.payloads)
        finally:
            self.seconds = time.monotonic() - started
            # However late the loop hears of it.
            self._began = None

    def stands_still(self, expected_s: float) -> bool:
        """Tell whether it is being computed for far longer than it can take.

        Args:
            expected_s: How long it takes by the speed of others; 0 where that is not known.
        """
        began = self._began
        return began is not None and time.monotonic() - began > max(_STILL_S, _STILL_TIMES * expected_s)
