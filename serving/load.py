"""A small load generator: requests with one text each, and what became of them.

With a rate the loop is open: requests leave on a schedule (Poisson), whatever the answers do, as callers do in life. With
a concurrency it is closed: so many are on their way at any time. Nothing is sent twice; a refusal counts as one. It
knows the HTTP surface and nothing behind it.
"""

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from serving.client import is_on_this_machine

# Of several lengths, so that batches have something to sort.
TEXTS = (
    "Driver wanted.",
    "Night nurse (all genders) for our surgical ward, completed training required.",
    "We are looking for a sales assistant who likes people. No experience needed, we train you on the job.",
    "Software developer, Python and cloud. You design services, review code and talk to customers. "
    "A degree in computer science or comparable experience is what we hope for; remote work is possible on most days.",
)

_BATCH = re.compile(r'batch;desc="(\d+)"')


@dataclass
class LoadReport:
    """What became of the requests.

    Attributes:
        latencies_s: Of each answered request.
        batch_texts: Size of the batch each answered text was in.
        versions: Version → requests it answered.
        refused: Answered 503.
        failed: Any other status, or no answer; reason → how many.
        elapsed_s: From the first request to the last answer.
    """

    latencies_s: list[float] = field(default_factory=list)
    batch_texts: list[int] = field(default_factory=list)
    versions: Counter[int] = field(default_factory=Counter)
    refused: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    elapsed_s: float = 0.0

    @property
    def answered(self) -> int:
        """Requests with an answer."""
        return len(self.latencies_s)

    @property
    def mean_batch_texts(self) -> float:
        """Texts divided by batches, which is the harmonic mean of what each text saw; 0 without answers."""
        return len(self.batch_texts) / sum(1 / size for size in self.batch_texts) if self.batch_texts else 0.0

    def latency_ms(self, fraction: float) -> float:
        """Return the latency that this fraction of the answered requests kept; 0 without answers."""
        ordered = sorted(self.latencies_s)
        return 1000 * ordered[min(int(fraction * len(ordered)), len(ordered) - 1)] if ordered else 0.0


@dataclass(frozen=True)
class Load:
    """What to send.

    Attributes:
        url: Where.
        count: Requests.
        rate_per_s: Requests a second, on average; None for a closed loop.
        concurrency: Requests at once in a closed loop.
        texts: Sent in turn.
        timeout_s: For one answer.
        seed: Of the schedule.
    """

    url: str
    count: int = 200
    rate_per_s: float | None = None
    concurrency: int = 32
    texts: Sequence[str] = TEXTS
    timeout_s: float = 60.0
    seed: int = 7


async def send(load: Load) -> LoadReport:
    """Send all requests and wait for all answers."""
    report = LoadReport()
    # One connection a request in flight: a pool that is too small would be measured as the server's queue.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    trust_env = not is_on_this_machine(load.url)
    async with httpx.AsyncClient(base_url=load.url, timeout=load.timeout_s, limits=limits, trust_env=trust_env) as client:
        started = time.monotonic()
        if load.rate_per_s is None:
            await _closed_loop(client, load, report)
        else:
            await _open_loop(client, load, report, load.rate_per_s)
        report.elapsed_s = time.monotonic() - started
    return report


async def _open_loop(client: httpx.AsyncClient, load: Load, report: LoadReport, rate_per_s: float) -> None:
    gaps = random.Random(load.seed)  # noqa: S311  # a schedule, no secret
    leave_at = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for index in range(load.count):
            await asyncio.sleep(leave_at - time.monotonic())
            group.create_task(_one(client, load, index, report))
            leave_at += gaps.expovariate(rate_per_s)


async def _closed_loop(client: httpx.AsyncClient, load: Load, report: LoadReport) -> None:
    numbers = iter(range(load.count))

    async def caller() -> None:
        for index in numbers:
            await _one(client, load, index, report)

    async with asyncio.TaskGroup() as group:
        for _ in range(load.concurrency):
            group.create_task(caller())


async def _one(client: httpx.AsyncClient, load: Load, index: int, report: LoadReport) -> None:
    started = time.monotonic()
    try:
        response = await client.post("/v1/predict", json={"texts": [load.texts[index % len(load.texts)]]})
    except httpx.TransportError as error:
        report.failed[type(error).__name__] += 1
        return
    if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        report.refused += 1
    elif response.is_success:
        report.latencies_s.append(time.monotonic() - started)
        report.versions[response.json()["version"]] += 1
        if found := _BATCH.search(response.headers.get("server-timing", "")):
            report.batch_texts.append(int(found.group(1)))
    else:
        report.failed[f"HTTP {response.status_code}"] += 1
