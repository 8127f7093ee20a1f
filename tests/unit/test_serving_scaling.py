"""How many replicas our policy wants, and that it runs where none of our code is."""

import asyncio
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import Overloaded
from serving.scaling import policy as policy_file
from serving.scaling.policy import ASKED, SPEED, WAITING, Backlog
from serving.scaling.reported import report
from serving.scheduling.scheduler import Scheduler

SPEED_HERE = 1_000.0


class Told(NamedTuple):
    timestamp: float
    value: float


class World:
    """A deployment whose replicas report exactly, once a second, what they are asked for in equal shares."""

    def __init__(self, backlog: Backlog, running: int = 1, minimum: int = 1, start_s: float = 10.0) -> None:
        self.backlog, self.minimum, self.start_s = backlog, minimum, start_s
        self.now, self.running, self.target = 1_000.0, running, running
        self.starting: list[float] = []
        self.state: dict[str, Any] = {}
        self.rates: list[float] = [0.0] * 6
        self.waiting = 0.0

    def second(self, asked: float, waiting: float = 0.0) -> int:
        """Let a second pass, in which so many tokens were asked for."""
        self.now += 1.0
        self.running += sum(at <= self.now for at in self.starting)
        self.starting = [at for at in self.starting if at > self.now]
        self.rates = [*self.rates[1:], asked]
        totals = [sum(self.rates[: one + 1]) / max(self.running, 1) for one in range(6)]
        series = [Told(self.now - 5 + one, total) for one, total in enumerate(totals)]
        each = range(self.running)
        metrics = {
            WAITING: {one: [Told(self.now, waiting / self.running)] for one in each},
            ASKED: dict.fromkeys(each, series),
            SPEED: {one: [Told(self.now, SPEED_HERE)] for one in each},
        }
        context = SimpleNamespace(
            policy_state=self.state,
            current_time=self.now,
            current_num_replicas=self.running,
            target_num_replicas=self.target,
            raw_metrics=metrics if self.running else {},
            capacity_adjusted_min_replicas=self.minimum,
        )
        wanted, self.state = self.backlog(context)
        self.starting += [self.now + self.start_s] * max(wanted - self.target, 0)
        self.running -= max(self.running - wanted, 0)
        self.target = wanted
        return wanted

    def seconds(self, asked: Sequence[float], waiting: float = 0.0) -> list[int]:
        return [self.second(one, waiting) for one in asked]


def make(target_p95_ms: float = 1_000.0, hold_s: float = 60.0, idle_s: float = 20.0) -> Backlog:
    return Backlog(target_p95_ms, hold_s, idle_s)


def test_steady_traffic_gets_what_it_needs_and_some_room() -> None:
    wanted = World(make(), running=4).seconds([4_000.0] * 200)
    assert set(wanted[10:]) == {5}


def test_many_replicas_need_less_room_each() -> None:
    few, many = (World(make(), running=count).seconds([count * SPEED_HERE] * 30)[-1] for count in (4, 400))
    assert few / 4 > many / 400 > 1.0


def test_what_runs_stays_until_reports_tell_of_all_that_is_asked() -> None:
    # At first they tell of a part; so they do when the controller was begun anew, which forgets what was.
    wanted = World(make(), running=40).seconds([30_000.0] * 120)
    assert min(wanted[:25]) >= 40
    assert min(wanted) == wanted[-1] == 36


def test_a_jump_is_answered_at_once_and_not_overdone() -> None:
    world = World(make(), running=1)
    world.seconds([500.0] * 60)
    wanted = world.seconds([5_000.0] * 30)
    # The window over which arrivals are averaged has five seconds.
    assert wanted[2] >= 3
    assert wanted[5] >= 6
    assert max(wanted) <= 7


def test_growth_is_met_before_it_comes() -> None:
    world = World(make(), running=2, start_s=20.0)
    world.seconds([1_000.0] * 60)
    grown = [1_000.0 + 50.0 * second for second in range(120)]
    wanted = world.seconds(grown)
    assert wanted[-1] > math.ceil((grown[-1] + 50.0 * 10) / SPEED_HERE)


def test_work_that_waits_asks_for_more() -> None:
    world = World(make(), running=2)
    calm = world.seconds([1_000.0] * 30, waiting=900.0)[-1]
    late = world.seconds([1_000.0] * 5, waiting=6_000.0)[-1]
    assert (calm, late) == (2, 4)


def test_what_was_needed_stays_for_a_while_and_then_goes() -> None:
    world = World(make(hold_s=60.0), running=5)
    world.seconds([4_000.0] * 30)
    wanted = world.seconds([500.0] * 90)
    assert min(wanted[:55]) == 5
    assert wanted[-1] == 1


def test_on_and_off_does_not_flap() -> None:
    world = World(make(hold_s=60.0), running=5)
    wanted = world.seconds([4_000.0 if second // 20 % 2 else 400.0 for second in range(400)])
    assert len(set(wanted[100:])) == 1


@pytest.mark.parametrize(("minimum", "last"), [(0, 0), (1, 1)])
def test_the_last_one_goes_when_nobody_asks_for_long(minimum: int, last: int) -> None:
    world = World(make(hold_s=5.0, idle_s=20.0), minimum=minimum)
    world.second(100.0)
    wanted = world.seconds([0.0] * 40)
    assert set(wanted[:20]) == {1}
    assert wanted[-1] == last


def test_asking_in_time_keeps_the_last_one() -> None:
    world = World(make(hold_s=5.0, idle_s=20.0), minimum=0)
    assert set(world.seconds([100.0 if second % 15 == 0 else 0.0 for second in range(200)])) == {1}


@pytest.mark.parametrize("is_seen_away", [True, False], ids=["seen without any", "come back at once"])
def test_one_that_comes_back_stays_for_as_long_as_the_first(is_seen_away: bool) -> None:
    world = World(make(hold_s=5.0, idle_s=20.0), minimum=0)
    world.seconds([0.0] * 60)
    assert world.running == 0
    if is_seen_away:
        world.seconds([0.0] * 60)
    # Serve itself begins one when somebody asks; what it tells first is a single point.
    world.running = world.target = 1
    world.now += 1.0
    context = SimpleNamespace(
        policy_state=world.state, current_time=world.now, current_num_replicas=1, target_num_replicas=1, capacity_adjusted_min_replicas=0,
        raw_metrics={WAITING: {1: [Told(world.now, 0.0)]}, ASKED: {1: [Told(world.now, 0.0)]}, SPEED: {1: [Told(world.now, SPEED_HERE)]}},
    )  # fmt: skip
    wanted, world.state = world.backlog(context)
    assert wanted == 1
    assert world.seconds([0.0] * 30)[:19] == [1] * 19
    assert world.target == 0


def test_nothing_is_changed_while_nothing_is_known() -> None:
    for running, metrics in ((0, {}), (3, {}), (3, None), (3, {SPEED: {1: []}}), (3, {SPEED: {1: [Told(1.0, 0.0)]}})):
        context = SimpleNamespace(
            policy_state={}, current_time=1.0, current_num_replicas=running, target_num_replicas=3, raw_metrics=metrics,
            capacity_adjusted_min_replicas=0,
        )  # fmt: skip
        assert make()(context)[0] == 3


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=40))
def test_whatever_comes_it_wants_a_whole_number_that_is_enough(seconds: list[tuple[float, float]]) -> None:
    world = World(make())
    for asked, waiting in seconds:
        wanted = world.second(asked, waiting)
        assert isinstance(wanted, int)
        assert wanted >= max(1, math.floor(sum(world.rates[1:]) / 5 / SPEED_HERE))
        # Serve keeps it in its controller's checkpoint.
        assert pickle.loads(pickle.dumps(world.state)) == world.state


def test_starts_are_learned() -> None:
    def learned(start_s: float) -> float:
        world = World(make(), start_s=start_s)
        for _ in range(6):
            world.seconds([500.0] * 120)
            world.seconds([3_000.0] * 60)
        found: float = world.state["start_s"]
        return found

    assert learned(40.0) > learned(10.0) + 20.0


def test_it_runs_where_none_of_our_code_is(tmp_path: Path) -> None:
    from ray import cloudpickle

    # As Serve does with a policy that is named by its path.
    cloudpickle.register_pickle_by_value(policy_file)
    try:
        carried = cloudpickle.dumps(Backlog)
    finally:
        cloudpickle.unregister_pickle_by_value(policy_file)
    (tmp_path / "policy.pickle").write_bytes(carried)
    program = (
        "import json, pickle, sys, types; sys.modules |= {'serving': None, 'cluster': None, 'training': None};"
        "made = pickle.load(open('policy.pickle', 'rb'))(1000.0, 60.0, 60.0);"
        "told = [types.SimpleNamespace(timestamp=float(at), value=2000.0 * at) for at in range(6)];"
        "metrics = {'waiting_tokens': {1: told[:1]}, 'asked_tokens': {1: told}, 'tokens_per_s': {1: told[1:2]}};"
        "print(json.dumps(made(types.SimpleNamespace(policy_state={}, current_time=9.0, current_num_replicas=1, target_num_replicas=1,"
        "raw_metrics=metrics, capacity_adjusted_min_replicas=1))[0]))"
    )
    found = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == 2


class Words(list[int]):
    """Token ids that are themselves the answer."""


class Echo:
    """Answers with what it is asked."""

    pads = False
    batch_tokens = 8

    def compute(self, texts: Sequence[Any], /) -> Sequence[Any]:
        return list(texts)


def run_scheduler(ask: Callable[[Scheduler], Any], max_queue_s: float = 100.0) -> dict[str, float]:
    async def run() -> dict[str, float]:
        scheduler = Scheduler(None, max_queue_s)
        scheduler.expect_speed(500.0)
        scheduler.start()
        try:
            await ask(scheduler)
            return report(scheduler)
        finally:
            await scheduler.stop()

    return asyncio.run(run())


def test_a_replica_reports_all_that_was_asked_for_and_what_waits() -> None:
    async def ask(scheduler: Scheduler) -> None:
        await scheduler.submit(Echo(), [Words([1, 2]), Words([3])], 10.0)

    told = run_scheduler(ask)
    assert (told[ASKED], told[WAITING]) == (3.0, 0)
    # Three tokens are no batch that tells how fast the engine can be.
    assert told[SPEED] == 500.0


def test_large_batches_tell_the_speed() -> None:
    async def ask(scheduler: Scheduler) -> None:
        await scheduler.submit(Echo(), [Words([1] * 8)], 10.0)

    assert run_scheduler(ask)[SPEED] != 500.0


def test_what_is_computed_makes_a_batch_large_not_what_is_asked() -> None:
    class Padding(Echo):
        """Computes every text of a batch as long as the longest."""

        pads = True

    async def ask(scheduler: Scheduler) -> None:
        # Three tokens in batches of four, which is half of what makes one as fast as any.
        await scheduler.submit(Padding(), [Words([1]), Words([1, 2])], 10.0)

    assert run_scheduler(ask)[SPEED] != 500.0


def test_what_is_refused_was_asked_for_too() -> None:
    async def ask(scheduler: Scheduler) -> None:
        await scheduler.submit(Echo(), [Words([1] * 4)], 10.0)
        waiting = asyncio.create_task(scheduler.submit(Echo(), [Words([1] * 8)] * 3, 10.0, "one"))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            scheduler.admit("one")
        with pytest.raises(Overloaded):
            await scheduler.submit(Echo(), [Words([1] * 5)], 10.0, "one")
        await waiting

    # Four, three times eight, as many as before where nobody had read them, and five.
    assert run_scheduler(ask, max_queue_s=0.001)[ASKED] == pytest.approx(4 + 24 + (0.9 * 4 + 0.1 * 24) + 5)
