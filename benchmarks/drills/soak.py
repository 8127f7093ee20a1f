"""An hour of life for one deployment: traffic, requests that are refused, callers that leave, versions that change, processes that die.

    make soak
    python -m benchmarks.drills.soak --minutes 10

A steady client asks at seven tenths of what the deployment can answer, measured first. Beside it, some send what is wrong and some hang up
before their answer. Every half minute one thing is done to the deployment, in turn. At the end it prints requests, failures by cause, and
how memory and open files grew after the warm-up; it fails where the steady client lost an answer while there was a door, where something
was not whole again in time, or where memory grew too much.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import httpx
import numpy as np
import psutil

from benchmarks.drills.asking import TEXTS, Asking, causes_of
from benchmarks.drills.drills import change_settings, kill_a_replica, kill_the_controller, kill_the_front, swap
from benchmarks.drills.house import CONTROLLER, FRONT, FRONT_KEEPER, REPLICA, House, house
from benchmarks.over_http.made import write_version
from serving.client import AsyncClient

REPLICAS, LOAD = 2, 0.7
EVERY_S, SAMPLE_S = 30.0, 5.0
WARM_SHARE = 0.2
MOST_SLOPE_MB, MOST_GROWTH_MB = 1.0, 100.0
_ACTS = (swap, kill_a_replica, swap, kill_the_front, change_settings, kill_the_controller)
_WRONG = (b"{}", b"[", b'{"texts": []}', b'{"texts": [""]}', b'{"texts": ["nurse"], "extra": 1}', b"\xff\xfe")


@dataclass
class Seen:
    """What the deployment's processes held over time.

    Attributes:
        times: By `time.monotonic`.
        megabytes: Resident, all of them together.
        files: Open in all of them.
    """

    times: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def look(self, home: House) -> None:
        """Take a sample."""
        memory, files = 0.0, 0
        for title in (REPLICA, CONTROLLER, FRONT, FRONT_KEEPER):
            for process in home.processes(title):
                for one in (process, *process.children(recursive=True)):
                    try:
                        memory += one.memory_info().rss / 1e6
                        files += one.num_fds()
                    except psutil.Error:
                        continue
        self.times.append(time.monotonic())
        self.megabytes.append(memory)
        self.files.append(files)

    def slope_mb(self, after: float) -> float:
        """Megabytes a minute, the median of all pairs' slopes (Theil-Sen), which one restarted process does not move."""
        points = [(when / 60, value) for when, value in zip(self.times, self.megabytes, strict=True) if when >= after]
        slopes = [(b[1] - a[1]) / (b[0] - a[0]) for place, a in enumerate(points) for b in points[place + 1 :]]
        return statistics.median(slopes) if slopes else 0.0

    def growth_mb(self, after: float) -> float:
        """The last tenth's median above the first tenth's, after the warm-up."""
        values = [value for when, value in zip(self.times, self.megabytes, strict=True) if when >= after]
        tenth = max(1, len(values) // 10)
        return statistics.median(values[-tenth:]) - statistics.median(values[:tenth])


class Rude(threading.Thread):
    """Sends what is wrong, and leaves before answers come.

    Attributes:
        refused: Status → how often what is wrong was answered with it.
        left: Callers that hung up.
    """

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url, self.ending = url, threading.Event()
        self.refused: Counter[str] = Counter()
        self.left = 0

    def run(self) -> None:
        """Until told to end."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        headers = {"content-type": "application/json"}
        async with httpx.AsyncClient(base_url=self._url, trust_env=False, headers=headers, timeout=10.0) as client:
            for body in cycle(_WRONG):
                if self.ending.is_set():
                    return
                try:
                    self.refused[str((await client.post("/v1/predict", content=body)).status_code)] += 1
                except httpx.TransportError as error:
                    self.refused[type(error).__name__] += 1
                await self._leave()
                await asyncio.sleep(0.2)  # five callers of each kind a second

    async def _leave(self) -> None:
        try:
            async with httpx.AsyncClient(base_url=self._url, trust_env=False) as client:
                await client.post("/v1/predict", json={"texts": [TEXTS[2]] * 32}, timeout=httpx.Timeout(5.0, read=0.005))
        except httpx.TransportError:
            self.left += 1


def capacity_per_s(home: House, seconds: float = 10.0) -> float:
    """Answers a second to eight callers in turn, by the steady client itself: on few cores it takes its share of them."""
    return asyncio.run(_capacity_per_s(home.settings.url, seconds))


async def _capacity_per_s(url: str, seconds: float) -> float:
    ended = time.monotonic() + seconds

    async def ask(client: AsyncClient, caller: int) -> int:
        answered = 0
        while time.monotonic() < ended:
            await client.predict([TEXTS[(caller + answered) % len(TEXTS)]])
            answered += 1
        return answered

    async with AsyncClient(url, timeout_s=10.0) as client:
        return sum(await asyncio.gather(*(ask(client, caller) for caller in range(8)))) / seconds


def live(home: House, minutes: float, rate_per_s: float, late: list[str]) -> tuple[Asking, Rude, Seen, list[tuple[str, float, int]]]:
    """Let it live; returns who asked, who was rude, what was seen, and what was done: name, seconds, requests lost meanwhile.

    Args:
        home: The deployment.
        minutes: How long.
        rate_per_s: Of the steady client.
        late: Takes what was not whole again in time.
    """
    seen, done, acts = Seen(), list[tuple[str, float, int]](), cycle(_ACTS)
    rude = Rude(home.settings.url)
    with Asking(home.settings.url, rate_per_s, 5) as asking:
        rude.start()
        began = time.monotonic()
        sample, act = began, began + EVERY_S
        while time.monotonic() < began + minutes * 60:
            if time.monotonic() >= act:
                what, lost, started = next(acts), len(asking.failed), time.monotonic()
                try:
                    what(home)
                except TimeoutError as error:
                    late.append(f"{what.__name__}: {error}")
                done.append((what.__name__, time.monotonic() - started, len(asking.failed) - lost))
                print(f"{(time.monotonic() - began) / 60:5.1f} min  {what.__name__}: {done[-1][1]:.1f} s, {done[-1][2]} lost", flush=True)
                act = time.monotonic() + EVERY_S
            if time.monotonic() >= sample:
                seen.look(home)
                sample = time.monotonic() + SAMPLE_S
            time.sleep(0.1)  # a schedule
        rude.ending.set()
        rude.join()
    return asking, rude, seen, done


def unexplained(asking: Asking, done: list[tuple[str, float, int]]) -> int:
    """Requests that the steady client lost although there was a door."""
    return len(asking.failed) - sum(lost for name, _, lost in done if name == kill_the_front.__name__)


def main() -> int:
    """Live, print and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, house(write_version(Path(folder) / "made", "tiny"), REPLICAS) as home:
        capacity = capacity_per_s(home)
        print(f"{capacity:.0f} answers a second at most, {LOAD * capacity:.0f} asked", flush=True)
        late: list[str] = []
        asking, rude, seen, done = live(home, options.minutes, LOAD * capacity, late)
    warm = seen.times[0] + WARM_SHARE * (seen.times[-1] - seen.times[0])
    slope, growth = seen.slope_mb(warm), seen.growth_mb(warm)
    causes = causes_of(asking.failed)
    waits = np.array([one.ended - one.begun for one in asking.done if not one.error])
    print(
        f"requests {len(asking.done)}, lost {len(asking.failed)} {dict(causes) or ''}; p50 {1000 * np.median(waits):.1f} ms, "
        f"p99 {1000 * np.quantile(waits, 0.99):.0f} ms, longest {waits.max():.1f} s"
    )
    print(f"refused {dict(rude.refused)}; {rude.left} left before their answer")
    print(
        f"after the first {WARM_SHARE:.0%}: memory {slope:+.2f} MB a minute, {growth:+.0f} MB in all; "
        f"open files {seen.files[0]} to {seen.files[-1]}"
    )
    for name in dict.fromkeys(name for name, _, _ in done):
        times = [seconds for other, seconds, _ in done if other == name]
        print(f"{name:<22}{len(times):>4} times, whole after {statistics.median(times):.1f} s, at most {max(times):.1f}")
    print("\n".join(f"not whole in time: {one}" for one in late) or "always whole again in time")
    return 1 if unexplained(asking, done) or late or slope > MOST_SLOPE_MB or growth > MOST_GROWTH_MB else 0


if __name__ == "__main__":
    sys.exit(main())
