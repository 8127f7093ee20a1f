"""What is done to a deployment: each change and each loss ends when everything is as before it."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

import psutil

from benchmarks.drills.asking import Asking
from benchmarks.drills.house import CONTROLLER, FRONT, FRONT_KEEPER, REPLICA, House, until
from cluster.errors import ClusterError

RATE_PER_S = 20.0
# What hangs in a replica that stands still waits for its deadline; the front gives it nothing more.
_FEW = 0.01
# Each another than the one before, and than the default.
_DEADLINES_MS = cycle((29_000, 28_000))


@dataclass(frozen=True)
class Drill:
    """One thing that is done.

    Attributes:
        name: Of its row.
        act: Does it, and returns once the house is whole.
        lost_by: Whose requests may be lost: nobody's, theirs who ask `once`, a `few` of all, or `all` while there is no door.
    """

    name: str
    act: Callable[[House], None]
    lost_by: Literal["nobody", "once", "few", "all"] = "nobody"


@dataclass(frozen=True)
class Told:
    """What became of the requests meanwhile, and a second before and after.

    Attributes:
        once: Of a client that sends each request once.
        again: Of ours as it is.
        whole_s: Until the house was whole again.
    """

    once: Asking
    again: Asking
    whole_s: float


def run(drill: Drill, house: House) -> Told:
    """Do it while two clients ask."""
    with Asking(house.settings.url, RATE_PER_S, 0) as once, Asking(house.settings.url, RATE_PER_S, 5) as again:
        until("a second of answers", lambda: len(again.done) > RATE_PER_S)
        began = time.monotonic()
        drill.act(house)
        seconds = time.monotonic() - began
        settled = len(again.done)
        until("another second of answers", lambda: len(again.done) > settled + RATE_PER_S)
    return Told(once, again, seconds)


def is_kept(drill: Drill, told: Told) -> bool:
    """Tell whether nobody's requests were lost but theirs whose may be."""
    once, again = len(told.once.failed), len(told.again.failed)
    if drill.lost_by == "few":
        return once + again <= _FEW * (told.once.begun + told.again.begun)
    return drill.lost_by == "all" or not (again or (once and drill.lost_by == "nobody"))


def swap(house: House) -> None:
    """Promote the other version."""
    current = house.registry.resolve(house.settings.name)
    (other,) = set(house.versions) - {current}
    house.registry.promote(other)
    until("all replicas answer with it", lambda: house.answers_with(other))


def change_settings(house: House) -> None:
    """Roll out another deadline, which takes new replicas."""
    changed = house.settings.model_copy(update={"deadline_ms": next(_DEADLINES_MS)})
    house.rollout.deploy(changed, None)
    until("only new replicas run", house.is_whole)


def fail_to_roll_out(house: House) -> None:
    """Roll out a name that points to nothing, and then what was there."""
    try:
        house.rollout.deploy(house.settings.model_copy(update={"name": "nobody"}), None)
    except ClusterError:
        house.rollout.deploy(house.settings, None)
    else:
        raise AssertionError("a name that points to nothing is served")
    until("the old replicas run", house.is_whole)


def scale_down(house: House) -> None:
    """From all replicas to one."""
    house.rollout.scale(1, 1)
    until("one is left", house.is_whole)


def scale_up(house: House) -> None:
    """From one to as many as before."""
    house.rollout.scale(house.settings.min_replicas, house.settings.max_replicas)
    until("all run", house.is_whole)


def kill_a_replica(house: House) -> None:
    """With SIGKILL."""
    _lose(house, REPLICA, signal.SIGKILL)


def kill_an_engine(house: House) -> None:
    """The process in which a replica computes, with SIGKILL, as the kernel does where memory is short: the replica ends with it."""
    replica = house.processes(REPLICA)[0]
    # That of a version swapped out may be about to go.
    until("one engine is left", lambda: len(house.engines(replica)) == 1)
    (engine,) = house.engines(replica)
    _lose(house, REPLICA, signal.SIGKILL, engine)


def stop_a_replica(house: House) -> None:
    """With SIGSTOP: it is there, and does nothing."""
    _lose(house, REPLICA, signal.SIGSTOP)


def kill_the_front(house: House) -> None:
    """HAProxy itself, with SIGKILL."""
    _lose(house, FRONT, signal.SIGKILL)


def kill_the_fronts_keeper(house: House) -> None:
    """The process that starts and configures HAProxy, with SIGKILL."""
    _lose(house, FRONT_KEEPER, signal.SIGKILL)


def kill_the_controller(house: House) -> None:
    """With SIGKILL."""
    _lose(house, CONTROLLER, signal.SIGKILL)


def _lose(house: House, title: str, number: signal.Signals, hit: psutil.Process | None = None) -> None:
    before = {process.pid for process in house.processes(title)}
    lost = house.processes(title)[0]
    (hit or lost).send_signal(number)
    until("it is gone", lambda: lost.pid not in _pids(house, title))
    until("another is in its place", lambda: len(_pids(house, title)) == len(before) and house.is_whole())


def _pids(house: House, title: str) -> set[int]:
    return {process.pid for process in house.processes(title)}


DRILLS = (
    Drill("version swap", swap),
    Drill("settings rolled out", change_settings),
    Drill("failed rollout", fail_to_roll_out),
    Drill("scale 3 to 1", scale_down),
    Drill("scale 1 to 3", scale_up),
    Drill("replica killed", kill_a_replica),
    Drill("engine killed", kill_an_engine),
    Drill("replica stopped", stop_a_replica, "few"),
    Drill("HAProxy killed", kill_the_front, "all"),
    Drill("HAProxy's keeper killed", kill_the_fronts_keeper, "all"),
    Drill("controller killed", kill_the_controller),
)
