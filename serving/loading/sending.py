"""Sends requests and notes what became of each; nothing is sent twice.

It speaks through aiohttp: with it a request took an eighth to a quarter of a millisecond of CPU, with httpx two and a half. What was noted
stands in the run at any time, also when sending is interrupted.
"""

import asyncio
import re
import time

import aiohttp

from serving.client import is_on_this_machine, key_headers
from serving.loading.arrivals import due_times
from serving.loading.outcomes import ClosedLoop, Load, OpenLoop, Outcome, Run
from serving.loading.replicas import READ_EVERY_S, read_page

_FACTS = re.compile(r'(batch|tokens|version);desc="(\d+)"')
_HEADERS = {"content-type": "application/json"}


async def send(run: Run) -> None:
    """Send a run's load and wait for all answers."""
    load = run.load
    # One connection a request in flight: a pool that is too small would be measured as the server's queue.
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=key_headers(),
        timeout=aiohttp.ClientTimeout(total=load.timeout_s),
        trust_env=not is_on_this_machine(load.url),
    ) as session:
        run.begun, cpu_s = time.monotonic(), time.process_time()
        watching = asyncio.create_task(_watch(session, run)) if load.is_watched else None
        try:
            match load.pace:
                case OpenLoop():
                    await _open_loop(session, run, load.pace)
                case ClosedLoop():
                    await _closed_loop(session, run, load.pace)
        finally:
            run.elapsed_s, run.cpu_s = time.monotonic() - run.begun, time.process_time() - cpu_s
            if watching is not None:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)


async def _open_loop(session: aiohttp.ClientSession, run: Run, pace: OpenLoop) -> None:
    async with asyncio.TaskGroup() as group:
        for due_s in due_times(pace.rate_per_s, pace.burstiness, pace.seed):
            if _has_ended(run.load, run.left, due_s):
                break
            await asyncio.sleep(run.begun + due_s - time.monotonic())
            group.create_task(_one(session, run, run.left, due_s))
            run.left += 1


async def _closed_loop(session: aiohttp.ClientSession, run: Run, pace: ClosedLoop) -> None:
    async def caller() -> None:
        while not _has_ended(run.load, run.left, due_s := time.monotonic() - run.begun):
            run.left += 1
            await _one(session, run, run.left - 1, due_s)

    async with asyncio.TaskGroup() as group:
        for _ in range(pace.concurrency):
            group.create_task(caller())


def _has_ended(load: Load, left: int, due_s: float) -> bool:
    return (load.count is not None and left >= load.count) or (load.seconds is not None and due_s >= load.seconds)


async def _one(session: aiohttp.ClientSession, run: Run, number: int, due_s: float) -> None:
    left_s = time.monotonic() - run.begun
    facts: dict[str, int] = {}
    try:
        async with session.post(f"{run.load.url}/v1/predict", data=run.load.bodies[number], headers=_HEADERS) as response:
            await response.read()
            status = str(response.status)
            facts = {name: int(fact) for name, fact in _FACTS.findall(response.headers.get("server-timing", ""))}
    except (aiohttp.ClientError, OSError) as error:
        status = type(error).__name__
    latency_s = time.monotonic() - run.begun - due_s
    together = run.load.bodies.together
    told = (facts.get(name, 0) for name in ("batch", "tokens", "version"))
    run.outcomes.append(Outcome(due_s, left_s, latency_s, status, together, *told))


async def _watch(session: aiohttp.ClientSession, run: Run) -> None:
    """Read the server's metrics from time to time; a server without them is not asked again."""
    while True:
        try:
            async with session.get(f"{run.load.url}/metrics") as response:
                page = await response.text()
        except (aiohttp.ClientError, OSError, UnicodeDecodeError):
            page = ""
        else:
            if response.status == 404:
                return
        run.readings.append(read_page(time.monotonic() - run.begun, page))
        await asyncio.sleep(READ_EVERY_S)
