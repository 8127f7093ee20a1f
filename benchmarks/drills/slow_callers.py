"""What do callers cost others who begin a request and never end it?

    python -m benchmarks.drills.slow_callers --rounds 5

One client asks fifty times a second, each request once, for as long as it takes until the last of 800 slow callers is closed, and for as
long without them, taking turns. The slow ones live in a process of their own: they must not take the client's time. Printed are the
client's p50 and p99 over all rounds, the ratio, when the slow were closed, and what they were told.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.drills.crowd import Crowd
from benchmarks.drills.house import House, house
from benchmarks.over_http.made import write_version

REPLICAS, RATE_PER_S, CALLERS = 2, 50.0, 800
PATIENCE_S = 60.0
BEGINNING = b"POST /v1/predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: appli"


async def call_slowly(port: int) -> str:
    """Send half of a header; returns the status that is told, or `closed`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(BEGINNING)
    told = await reader.read()
    writer.close()
    return told.split(b" ", 2)[1].decode() if told else "closed"


async def _all_at_once(port: int) -> list[str]:
    return await asyncio.wait_for(asyncio.gather(*(call_slowly(port) for _ in range(CALLERS))), PATIENCE_S)


def call_all(port: int) -> tuple[Counter[str], float]:
    """Have all of them call at once; returns what they were told, and seconds until the last was closed."""
    began = time.monotonic()
    told = asyncio.run(_all_at_once(port))
    return Counter(told), time.monotonic() - began


def beside(home: House, others: Executor, seed: int, slow: bool, seconds: float) -> tuple[Crowd, Counter[str], float]:
    """Have the client ask for the time of slow callers, or for so many seconds without."""
    told: Counter[str] = Counter()
    with Crowd(home.settings.port, RATE_PER_S, seed) as crowd:
        if slow:
            told, seconds = others.submit(call_all, home.settings.port).result()
        else:
            time.sleep(seconds)  # the time itself is what is measured
    return crowd, told, seconds


def main() -> int:
    """Take turns and print; fail where the client lost anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    waits: dict[bool, list[float]] = {False: [], True: []}
    lost = {False: 0, True: 0}
    told: Counter[str] = Counter()
    longest = 0.0
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, get_context("spawn")) as others,
        house(write_version(Path(folder) / "made", "tiny"), REPLICAS) as home,
    ):
        # It imports this file before anything is measured.
        others.submit(time.monotonic).result()
        beside(home, others, 0, slow=False, seconds=5.0)
        for number in range(options.rounds):
            for slow in (True, False):
                crowd, said, seconds = beside(home, others, number, slow, longest)
                waits[slow] += crowd.waits_s
                lost[slow] += len(crowd.unanswered)
                told += said
                longest = max(longest, seconds) if slow else longest
    quick, slowed = (1000 * np.quantile(waits[slow], [0.5, 0.99]) for slow in (False, True))
    print(f"alone: {len(waits[False])} answered, {lost[False]} not; p50 {quick[0]:.1f} ms, p99 {quick[1]:.1f}")
    print(f"beside {CALLERS}: {len(waits[True])} answered, {lost[True]} not; p50 {slowed[0]:.1f} ms, p99 {slowed[1]:.1f}")
    print(f"p99 {slowed[1] / quick[1]:.2f} times; the slow were told {dict(told)}, the last after {longest:.1f} s")
    return 1 if lost[True] + lost[False] else 0


if __name__ == "__main__":
    sys.exit(main())
