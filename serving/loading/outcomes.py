"""What was to be sent, and what became of it.

Latency counts from the time a request was due, not from when it left: a generator that waits for slow answers, or cannot keep up, would
otherwise leave out just the waits that callers in life have. Closed loops have no schedule, and a request is due when its caller is free.

Source:
    Tene 2013, How not to measure latency (coordinated omission).
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from serving.loading.replicas import Reading
from serving.loading.texts import Bodies

ANSWERED = "200"
# A request that left later than this did not keep to the schedule; asyncio's clock alone makes a millisecond.
LATE_S = 0.01


@dataclass(frozen=True)
class OpenLoop:
    """Requests leave on a schedule, whatever the answers do, as callers do in life."""

    rate_per_s: float
    burstiness: float = 1.0
    seed: int = 7


@dataclass(frozen=True)
class ClosedLoop:
    """So many requests are on their way at any time."""

    concurrency: int = 32


@dataclass(frozen=True)
class Load:
    """What to send.

    Attributes:
        url: Where.
        pace: How requests leave.
        bodies: Sent in turn.
        seconds: Requests leave for so long.
        count: So many requests leave; whichever ends first, and one of them must be given.
        timeout_s: For one answer.
        is_watched: Whether the server's metrics are read meanwhile.
    """

    url: str
    pace: OpenLoop | ClosedLoop
    bodies: Bodies
    seconds: float | None = None
    count: int | None = None
    timeout_s: float = 60.0
    is_watched: bool = True


class Outcome(NamedTuple):
    """What became of one request.

    Attributes:
        due_s: When it should have left, since the start.
        left_s: When it left.
        latency_s: From when it was due to the end of its answer.
        status: Of the answer; without one the name of the transport error.
        texts: In the request.
        batch_texts: In the largest batch that texts of it were in; 0 where the server tells nothing.
        batch_tokens: Of that batch.
        version: That answered; 0 where the server tells nothing.
    """

    due_s: float
    left_s: float
    latency_s: float
    status: str
    texts: int
    batch_texts: int = 0
    batch_tokens: int = 0
    version: int = 0


@dataclass
class Run:
    """A load, and what became of its requests so far.

    Attributes:
        name: For tables.
        load: What was to be sent.
        outcomes: As answers came.
        readings: Of the server's metrics.
        left: Requests that left; those without an outcome are on their way, or were when it was interrupted.
        begun: By `time.monotonic`.
        elapsed_s: Until the last request was done with.
        cpu_s: This process used.
    """

    name: str
    load: Load
    outcomes: list[Outcome] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    left: int = 0
    begun: float = field(default_factory=time.monotonic)
    elapsed_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def answered(self) -> list[Outcome]:
        """Requests that were answered with 200."""
        return [one for one in self.outcomes if one.status == ANSWERED]

    @property
    def errors(self) -> Counter[str]:
        """Status or transport error → requests it ended."""
        return Counter(one.status for one in self.outcomes if one.status != ANSWERED)

    @property
    def versions(self) -> Counter[int]:
        """Version → requests it answered."""
        return Counter(one.version for one in self.answered)

    @property
    def counted_s(self) -> float:
        """Time that rates are divided by: until the last one was due and the last answer came.

        What waits for its timeout after that is an error, and does not make the answered ones slower.
        """
        due = min(self.load.seconds or 0.0, self.elapsed_s)
        return max([due, *(one.due_s + (one.latency_s if one.status == ANSWERED else 0.0) for one in self.outcomes)])

    @property
    def sent_per_s(self) -> float:
        """Requests that left a second, until the last one was due."""
        due_s = max([min(self.load.seconds or 0.0, self.elapsed_s), *(one.due_s for one in self.outcomes)])
        return self.left / due_s if due_s else 0.0

    @property
    def requests_per_s(self) -> float:
        """Answered requests a second."""
        return len(self.answered) / self.counted_s if self.counted_s else 0.0

    @property
    def texts_per_s(self) -> float:
        """Answered texts a second."""
        return sum(one.texts for one in self.answered) / self.counted_s if self.counted_s else 0.0

    @property
    def mean_batch_texts(self) -> float:
        """Texts divided by batches, which is the harmonic mean of what each text saw; 0 where the server tells nothing.

        With several texts a request it is at most that, since a request tells the largest of its batches.
        """
        told = [one for one in self.answered if one.batch_texts]
        return sum(one.texts for one in told) / sum(one.texts / one.batch_texts for one in told) if told else 0.0

    @property
    def mean_tokens(self) -> float:
        """Tokens of a text, as the server counts them; 0 where it tells nothing, also where a request has texts in several batches."""
        told = [one for one in self.answered if one.batch_texts and one.texts == 1]
        return sum(one.batch_tokens / one.batch_texts for one in told) / len(told) if told else 0.0

    @property
    def late(self) -> list[float]:
        """By how many seconds each request that did not keep to the schedule left too late."""
        return [one.left_s - one.due_s for one in self.outcomes if one.left_s - one.due_s > LATE_S]

    def latency_ms(self, share: float) -> float:
        """Return the latency that this share of the answered requests kept; 0 without answers."""
        return 1000 * quantile(sorted(one.latency_s for one in self.answered), share)

    def texts_per_s_between(self, start_s: float, end_s: float) -> float:
        """Return texts answered a second in a part of the run."""
        inside = [one.texts for one in self.answered if start_s < one.due_s + one.latency_s <= end_s]
        return sum(inside) / (end_s - start_s)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of all does not exceed (nearest rank); 0 of nothing."""
    # A thousandth of 1,000 must not become 1.0000000000000002 of them.
    return ordered[max(math.ceil(round(share * len(ordered), 9)), 1) - 1] if ordered else 0.0
