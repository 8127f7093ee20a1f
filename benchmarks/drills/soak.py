"""An hour of life for one deployment: traffic, requests that are refused, callers that leave, versions that change, processes that die.

    make soak
    python -m benchmarks.drills.soak --minutes 10

A crowd asks at seven tenths of what the deployment can answer while it changes, measured first, and sends each request once; our client
asks beside it. Some send what is wrong, and some hang up before their answer. Half a minute after everything is as before, the next thing
is done to the deployment. At the end it prints requests, failures by cause, and how memory and open files grew after the warm-up; it fails
where an answer was lost while there was a door, where more of the crowd was refused than one request in a hundred, where something was not
whole again in time, or where memory grew too much.
"""

import argparse
import asyncio
import math
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import httpx
import numpy as np
import psutil

from benchmarks.drills.asking import TEXTS, Asked, Asking, Beside, causes_of
from benchmarks.drills.crowd import Crowd, Unanswered
from benchmarks.drills.drills import RATE_PER_S, change_settings, kill_a_replica, kill_the_controller, kill_the_front, swap
from benchmarks.drills.house import CONTROLLER, FRONT, FRONT_KEEPER, REPLICA, House, house
from benchmarks.over_http.made import write_version

REPLICAS, LOAD = 2, 0.7
EVERY_S, SAMPLE_S = 30.0, 5.0
WARM_SHARE = 0.2
REFUSED, MOST_REFUSED = 503, 0.01
MOST_SLOPE_MB, MOST_GROWTH_MB = 1.0, 100.0
_MOST_TOLD = 20
_ACTS = (swap, kill_a_replica, swap, kill_the_front, change_settings, kill_the_controller)
_WRONG = (b"{}", b"[", b'{"texts": []}', b'{"texts": [""]}', b'{"texts": ["nurse"], "extra": 1}', b"\xff\xfe")


@dataclass
class Seen:
    """What the deployment's processes held over time.

    Attributes:
        times: By `time.monotonic`.
        after: How many things had been done to it by then.
        megabytes: Kind of process → resident, all of that kind together, at each time.
        files: The same, how many were open.
    """

    times: list[float] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    megabytes: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    files: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def look(self, home: House, after: int) -> None:
        """Take a sample, after so many things were done."""
        counted: set[int] = set()
        # HAProxy is its keeper's child: it comes first, and is counted once.
        for title in (REPLICA, CONTROLLER, FRONT, FRONT_KEEPER):
            memory, files = 0.0, 0
            for process in home.processes(title):
                for one in (process, *process.children(recursive=True)):
                    if one.pid in counted:
                        continue
                    counted.add(one.pid)
                    try:
                        memory += one.memory_info().rss / 1e6
                        files += one.num_fds()
                    except psutil.Error:
                        continue
            self.megabytes[title].append(memory)
            self.files[title].append(files)
        self.times.append(time.monotonic())
        self.after.append(after)

    def slope(self, values: Iterable[float]) -> float:
        """By the minute after the warm-up: the median of the slopes between times in different rounds, each after the same thing was done.

        A replica grows for minutes after it began, and two engines are there for a while after a swap: times within one round, or after
        different things, would tell that instead. The median (Theil-Sen) is not moved by one restarted process. Nan where there was but one
        round, and so nothing to compare.
        """
        points = [point for point in zip(self.times, self.after, values, strict=True) if point[0] >= self._warm]
        pairs = [(a, b) for place, a in enumerate(points) for b in points[place + 1 :] if a[1] != b[1] and (b[1] - a[1]) % len(_ACTS) == 0]
        slopes = [60 * (b[2] - a[2]) / (b[0] - a[0]) for a, b in pairs]
        return statistics.median(slopes) if slopes else math.nan

    def growth(self, values: Iterable[float]) -> float:
        """The last round's median above the first whole one's after the warm-up."""
        points = [point for point in zip(self.times, self.after, values, strict=True) if point[0] >= self._warm]
        first, last = points[0][1], points[-1][1]
        of_first, of_last = (
            [value for _, after, value in points if low <= after < low + len(_ACTS)] for low in (first, last - len(_ACTS) + 1)
        )
        return statistics.median(of_last) - statistics.median(of_first)

    @property
    def _warm(self) -> float:
        return self.times[0] + WARM_SHARE * (self.times[-1] - self.times[0])


def together(kinds: Mapping[str, Sequence[float]]) -> list[float]:
    """Add up what all kinds of processes held at each time."""
    return [sum(values) for values in zip(*kinds.values(), strict=True)]


class Rude(Beside):
    """Sends what is wrong, and leaves before answers come.

    Attributes:
        refused: Status → how often what is wrong was answered with it.
        left: Callers that hung up.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.refused: Counter[str] = Counter()
        self.left = 0

    async def _go_on(self) -> None:
        headers = {"content-type": "application/json"}
        async with httpx.AsyncClient(base_url=self._url, trust_env=False, headers=headers, timeout=10.0) as client:
            for body in cycle(_WRONG):
                if self._ending.is_set():
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


@dataclass(frozen=True)
class Done:
    """One thing that was done to the deployment.

    Attributes:
        name: Of what was done.
        begun: By `time.monotonic`.
        ended: When all was as before, by the same.
    """

    name: str
    begun: float
    ended: float


@dataclass
class Life:
    """What became of an hour.

    Attributes:
        crowd: Asked most of the requests, each once.
        asking: Asked through our client.
        rude: Sent what is wrong, and left.
        seen: The deployment's processes.
        done: To it.
        late: What was not whole again in time.
    """

    crowd: Crowd
    asking: Asking
    rude: Rude
    seen: Seen = field(default_factory=Seen)
    done: list[Done] = field(default_factory=list)
    late: list[str] = field(default_factory=list)

    def unexplained(self) -> tuple[list[Unanswered], list[Unanswered], list[Asked]]:
        """Sort out what was lost although there was a door: refused ones of the crowd, lost ones of the crowd, of our client."""
        shut = [(one.begun, one.ended) for one in self.done if one.name == kill_the_front.__name__]

        def had_a_door(one: Unanswered | Asked) -> bool:
            return all(one.ended < begun or one.begun > ended for begun, ended in shut)

        crowd = [one for one in self.crowd.unanswered if had_a_door(one)]
        refused = [one for one in crowd if one.status == REFUSED]
        return refused, [one for one in crowd if one.status != REFUSED], [one for one in self.asking.failed if had_a_door(one)]

    def is_good(self) -> bool:
        """Tell whether all that is promised held."""
        refused, lost, lost_by_ours = self.unexplained()
        slope, growth = self.memory()
        kept = not lost and not lost_by_ours and len(refused) <= MOST_REFUSED * self.crowd.answered
        return kept and not self.late and not slope > MOST_SLOPE_MB and growth <= MOST_GROWTH_MB

    def memory(self) -> tuple[float, float]:
        """Return megabytes by the minute, and in all, after the warm-up."""
        held = together(self.seen.megabytes)
        return self.seen.slope(held), self.seen.growth(held)

    def when(self, begun: float) -> str:
        """Say after which change a request left."""
        before = [one for one in self.done if one.begun <= begun]
        return f"{begun - before[-1].begun:.1f} s after {before[-1].name} began" if before else "before anything was done"


def capacity_per_s(home: House) -> float:
    """Answers a second to eight callers while settings are rolled out: what it has left when new replicas start, on the same cores."""
    began = time.monotonic()
    with Crowd(home.settings.port) as crowd:
        change_settings(home)
    return crowd.answered / (time.monotonic() - began)


def live(home: House, minutes: float, rate_per_s: float) -> Life:
    """Let it live.

    Args:
        home: The deployment.
        minutes: How long.
        rate_per_s: Of the crowd.
    """
    acts = cycle(_ACTS)
    crowd, asking, rude = Crowd(home.settings.port, rate_per_s), Asking(home.settings.url, RATE_PER_S, 5), Rude(home.settings.url)
    life = Life(crowd, asking, rude)
    with crowd, asking, rude:
        began = time.monotonic()
        sample, act = began, began + EVERY_S
        while time.monotonic() < began + minutes * 60:
            if time.monotonic() >= act:
                do(next(acts), home, life)
                print(f"{(time.monotonic() - began) / 60:5.1f} min  {told_of(life.done[-1], life)}", flush=True)
                act = time.monotonic() + EVERY_S
            if time.monotonic() >= sample:
                life.seen.look(home, len(life.done))
                sample = time.monotonic() + SAMPLE_S
            time.sleep(0.1)  # a schedule
    return life


def do(what: Callable[[House], None], home: House, life: Life) -> None:
    """Do one thing, and write down how long it took until all was as before."""
    begun = time.monotonic()
    try:
        what(home)
    except TimeoutError as error:
        life.late.append(f"{what.__name__}: {error}")
    life.done.append(Done(what.__name__, begun, time.monotonic()))


def told_of(done: Done, life: Life) -> str:
    """Say what it cost."""
    lost = [sum(one.ended >= done.begun for one in some) for some in (life.crowd.unanswered, life.asking.failed)]
    return f"{done.name}: {done.ended - done.begun:.1f} s, not answered {lost[0]} of the crowd, {lost[1]} of our client's"


def report(life: Life) -> str:
    """Say what became of it."""
    refused, lost, lost_by_ours = life.unexplained()
    waits = np.array(life.crowd.waits_s)
    slope, growth = life.memory()
    quantiles = f"p50 {1000 * np.median(waits):.1f} ms, p99 {1000 * np.quantile(waits, 0.99):.0f} ms, longest {waits.max():.1f} s"
    files = together(life.seen.files)
    lines = [
        f"crowd: {sum(life.crowd.statuses.values())} requests, {dict(life.crowd.statuses)}; {quantiles}",
        f"while there was a door: {len(refused)} refused, {len(lost)} lost {dict(Counter(one.status for one in lost)) or ''}",
        f"our client: {len(life.asking.done)} requests, {len(life.asking.failed)} not answered {dict(causes_of(life.asking.failed)) or ''}",
        f"of them while there was a door: {len(lost_by_ours)}",
        f"refused {dict(life.rude.refused)}; {life.rude.left} left before their answer",
        f"after the first {WARM_SHARE:.0%}: memory {slope:+.2f} MB a minute, {growth:+.0f} MB in all; "
        f"open files {files[0]:.0f} to {files[-1]:.0f}; who asked took {time.process_time():.0f} s of CPU",
    ]
    for title, held in life.seen.megabytes.items():
        grown = f"{life.seen.slope(held):+.2f} MB a minute, {life.seen.growth(held):+.0f} MB in all"
        lines.append(f"  {title}: {statistics.median(held):.0f} MB, {grown}; open files {life.seen.growth(life.seen.files[title]):+.0f}")
    lines += [f"  {one.status}: {life.when(one.begun)}, told after {one.ended - one.begun:.2f} s" for one in (*refused, *lost)][:_MOST_TOLD]
    lines += [f"  {one.error}: {life.when(one.begun)}, told after {one.ended - one.begun:.2f} s" for one in lost_by_ours][:_MOST_TOLD]
    for name in dict.fromkeys(one.name for one in life.done):
        times = [one.ended - one.begun for one in life.done if one.name == name]
        lines.append(f"{name:<22}{len(times):>4} times, whole after {statistics.median(times):.1f} s, at most {max(times):.1f}")
    return "\n".join([*lines, *(f"not whole in time: {one}" for one in life.late)])


def main() -> int:
    """Live, print and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, house(write_version(Path(folder) / "made", "tiny"), REPLICAS) as home:
        capacity = capacity_per_s(home)
        print(f"{capacity:.0f} answers a second while it changes, {LOAD * capacity:.0f} asked", flush=True)
        life = live(home, options.minutes, LOAD * capacity)
    print(report(life))
    print("all that is promised held" if life.is_good() else "NOT all that is promised held")
    return 0 if life.is_good() else 1


if __name__ == "__main__":
    sys.exit(main())
