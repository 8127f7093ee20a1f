"""A discrete-event model of what stands between a caller and an answer: router, gate, scheduler, engine; and of replicas that come and go.

Time is the model's own. A router hands a request to the replica with the fewest open ones, as HAProxy does here; a replica refuses what
would wait too long, composes a batch when its engine is free, and computes it in a time that a cost table gives. Replicas take time to
start, report late, and are asked for by a policy that is called as Serve's controller calls it. It does not know which policy.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple


class Told(NamedTuple):
    """A figure that a replica reported, as Ray's own series hold it."""

    timestamp: float
    value: float


@dataclass(frozen=True)
class Machine:
    """What a replica can do; see `serving.engines.costs`.

    Attributes:
        own_s: A batch costs by itself.
        token_s: And for each token.
        batch_tokens: Tokens in a batch.
        front_s: Of a request, outside of queue and engine.
        max_queue_s: The gate of a replica.
        start_s: A replica takes to start, in the middle.
        start_spread: How much that differs from one to the next (sigma of its logarithm).
        start_slows: Batches take so many times longer while a replica starts, where they share the cores.
    """

    own_s: float
    token_s: float
    batch_tokens: int
    front_s: float = 0.005
    max_queue_s: float = 4.0
    start_s: float = 15.0
    start_spread: float = 0.2
    start_slows: float = 1.0

    @property
    def tokens_per_s(self) -> float:
        """In full batches."""
        return self.batch_tokens / (self.own_s + self.token_s * self.batch_tokens)


@dataclass(frozen=True)
class Reports:
    """How replicas report: Serve's `look_back_period_s` and `metrics_interval_s`."""

    look_back_s: float
    interval_s: float

    @property
    def record_s(self) -> float:
        """Serve's own rule."""
        return min(0.2 * self.look_back_s, self.interval_s)


@dataclass(slots=True, eq=False)
class Request:
    """Texts that are answered together."""

    arrived: float
    missing: int


@dataclass(eq=False)
class Replica:
    """One replica."""

    number: int
    wanted_at: float
    speed: float
    running: bool = False
    going: bool = False
    busy: bool = False
    queue: deque[tuple[int, Request]] = field(default_factory=deque)
    queued: float = 0.0
    computing: float = 0.0
    asked: float = 0.0
    open: int = 0
    recorded: dict[str, list[Told]] = field(default_factory=dict)
    pushed: dict[str, list[Told]] = field(default_factory=dict)


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        latencies: (arrived, seconds) of each answered request, in the order of the answers.
        refused: When each refused request arrived.
        replica_s: Seconds that replicas were there or on their way, added up.
        replicas: (time, running, wanted), at each look that found one of them changed.
    """

    latencies: list[tuple[float, float]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    replica_s: float = 0.0
    replicas: list[tuple[float, int, int]] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """All of them."""
        return len(self.latencies) + len(self.refused)

    def violations(self, target_s: float) -> int:
        """Requests refused or answered too late."""
        return len(self.refused) + sum(seconds > target_s for _, seconds in self.latencies)

    def p95_s(self) -> float:
        """Of all answers."""
        found = sorted(seconds for _, seconds in self.latencies)
        return found[min(len(found) - 1, int(0.95 * len(found)))] if found else math.nan


# Returns how many replicas are wanted; is given the model, whose state Serve's context shows.
Decide = Callable[["Model"], int]


class Model:
    """One run.

    Args:
        machine: Every replica's.
        traffic: (time, tokens of each text) of each request, in the order of time.
        decide: The policy.
        reports: How late the policy's figures are.
        bounds: Fewest and most replicas.
        first: Replicas that run at the start.
        seed: Of start-up times and of what a batch takes beside its cost.
    """

    def __init__(
        self,
        machine: Machine,
        traffic: Iterator[tuple[float, list[int]]],
        decide: Decide,
        reports: Reports,
        bounds: tuple[int, int],
        first: int,
        seed: int,
    ) -> None:
        self.machine = machine
        self.reports = reports
        self.minimum, self.maximum = bounds
        self.now = 0.0
        self.target = first
        self.replicas: dict[int, Replica] = {}
        self.outcome = Outcome()
        self.held: list[tuple[float, list[int]]] = []
        self._traffic = traffic
        self._decide = decide
        self._random = random.Random(seed)
        self._numbers, self._orders = count(), count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._least: list[tuple[int, int, int]] = []
        self._gone = False
        self._starting = 0
        for _ in range(first):
            self._runs(self._make())

    def run(self, every_s: float = 0.5) -> Outcome:
        """Run until the traffic has ended and all of it is answered.

        Args:
            every_s: Between decisions.
        """
        self._at(every_s, lambda: self._tick(every_s))
        self._next_arrival()
        while self._events:
            self.now, _, happen = heapq.heappop(self._events)
            happen()
            if self._gone and not self.held and not any(replica.open for replica in self.replicas.values()):
                break
        for replica in list(self.replicas.values()):
            self._ends(replica)
        return self.outcome

    @property
    def running(self) -> list[Replica]:
        """Replicas that get requests."""
        return [replica for replica in self.replicas.values() if replica.running and not replica.going]

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._orders), happen))

    def _next_arrival(self) -> None:
        found = next(self._traffic, None)
        if found is None:
            self._gone = True
            return
        when, texts = found
        self._at(when, lambda: self._arrives(when, texts))

    def _arrives(self, arrived: float, texts: list[int]) -> None:
        self._next_arrival()
        self._route(arrived, texts)

    def _route(self, arrived: float, texts: list[int]) -> None:
        while self._least:
            open_, _, number = self._least[0]
            replica = self.replicas.get(number)
            if replica is not None and replica.running and not replica.going and replica.open == open_:
                break
            heapq.heappop(self._least)
        else:
            self.held.append((arrived, texts))
            return
        replica.asked += sum(texts)
        if (replica.queued + replica.computing) / replica.speed > self.machine.max_queue_s:
            self.outcome.refused.append(arrived)
            return
        request = Request(arrived, len(texts))
        replica.queue.extend((tokens, request) for tokens in texts)
        replica.queued += sum(texts)
        self._opens(replica, 1)
        self._compose(replica)

    def _opens(self, replica: Replica, change: int) -> None:
        replica.open += change
        # A random word between equals: nobody is always first.
        heapq.heappush(self._least, (replica.open, self._random.getrandbits(30), replica.number))

    def _compose(self, replica: Replica) -> None:
        if replica.busy or not replica.queue:
            return
        batch = [replica.queue.popleft()]
        tokens = batch[0][0]
        while replica.queue and tokens + replica.queue[0][0] <= self.machine.batch_tokens:
            batch.append(replica.queue.popleft())
            tokens += batch[-1][0]
        replica.busy, replica.computing = True, tokens
        replica.queued -= tokens
        took_s = (self.machine.own_s + self.machine.token_s * tokens) * self._random.lognormvariate(0.0, 0.05)
        took_s *= self.machine.start_slows if self._starting else 1.0
        self._at(self.now + took_s, lambda: self._computed(replica, batch, tokens, took_s))

    def _computed(self, replica: Replica, batch: list[tuple[int, Request]], tokens: int, took_s: float) -> None:
        replica.busy, replica.computing = False, 0.0
        if 2 * tokens >= self.machine.batch_tokens:
            replica.speed += 0.1 * (tokens / took_s - replica.speed)
        for _, request in batch:
            request.missing -= 1
            if not request.missing:
                self._opens(replica, -1)
                self.outcome.latencies.append((request.arrived, self.now - request.arrived + self.machine.front_s))
        if replica.going and not replica.open:
            self._ends(replica)
        self._compose(replica)

    def _make(self) -> Replica:
        replica = Replica(next(self._numbers), self.now, self.machine.tokens_per_s)
        self.replicas[replica.number] = replica
        self._starting += 1
        return replica

    def _runs(self, replica: Replica) -> None:
        if replica.number not in self.replicas:
            return
        replica.running = True
        self._starting -= 1
        self._opens(replica, 0)
        self._at(self.now + self._random.random() * self.reports.record_s, lambda: self._records(replica))
        self._at(self.now + self._random.random() * self.reports.interval_s, lambda: self._pushes(replica))
        held, self.held = self.held, []
        for arrived, texts in held:
            self._route(arrived, texts)

    def _records(self, replica: Replica) -> None:
        if replica.number not in self.replicas:
            return
        known = {"waiting_tokens": replica.queued + replica.computing, "asked_tokens": replica.asked, "tokens_per_s": replica.speed}
        for name, value in {**known, "requests": float(replica.open)}.items():
            series = replica.recorded.setdefault(name, [])
            series.append(Told(self.now, value))
            if series[0].timestamp < self.now - self.reports.look_back_s:
                del series[0]
        self._at(self.now + self.reports.record_s, lambda: self._records(replica))

    def _pushes(self, replica: Replica) -> None:
        if replica.number in self.replicas:
            replica.pushed = {name: list(series) for name, series in replica.recorded.items()}
            self._at(self.now + self.reports.interval_s, lambda: self._pushes(replica))

    def _ends(self, replica: Replica) -> None:
        self.outcome.replica_s += self.now - replica.wanted_at
        self._starting -= not replica.running
        del self.replicas[replica.number]

    def _tick(self, every_s: float) -> None:
        self.target = min(max(self._decide(self), self.minimum), self.maximum)
        staying = [replica for replica in self.replicas.values() if not replica.going]
        for _ in range(self.target - len(staying)):
            replica = self._make()
            took_s = self.machine.start_s * self._random.lognormvariate(0.0, self.machine.start_spread)
            self._at(self.now + took_s, lambda replica=replica: self._runs(replica))  # type: ignore[misc]
        # As Serve does: first those that do not run yet.
        for replica in sorted(staying, key=lambda one: (one.running, -one.number))[: max(len(staying) - self.target, 0)]:
            replica.going = True
            if not replica.running or not replica.open:
                self._ends(replica)
        # Also what began to run since the last look.
        if not (known := self.outcome.replicas) or known[-1][1:] != (len(self.running), self.target):
            known.append((self.now, len(self.running), self.target))
        self._at(self.now + every_s, lambda: self._tick(every_s))
