"""A replica ends with the engine that answers, and with no other one; the end is a stand-in here, but in one test."""

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.ending import EndsWithItsEngine
from serving.engines import own_process
from serving.engines.fork_server import ForkServer
from serving.engines.own_process import OwnProcess, Started
from serving.errors import NotReady
from serving.follower import Follower
from serving.predictor import Predictor
from serving.replica import Replica
from serving.scheduling.scheduler import Scheduler

LONG_S = 60.0
ROWS = [np.array([2, 5, 6, 3], np.int32)]


class House:
    """A follower of a name, a candidate, and the processes that were started for them, in their order."""

    def __init__(self, checkpoint: Path, start: Callable[[], Started]) -> None:
        self._start = start
        self.processes: list[int] = []
        self.watches: list[threading.Thread] = []
        self.looked: list[tuple[int, bool]] = []
        self.has_looked = threading.Event()
        self.ended = threading.Event()
        self.version = 1
        versions: Any = SimpleNamespace(resolve=lambda _: self.version, fetch=lambda *_: checkpoint)
        self.follower, self.candidate = (Follower(versions, name, self._load) for name in ("production", 9))
        self.ending = EndsWithItsEngine(self.follower, self.ended.set)

    def _load(self, folder: Path, version: int) -> Predictor:
        before = set(threading.enumerate())
        process = OwnProcess(self._start, self._look)
        self.processes.append(process.pid)
        self.watches += [one for one in set(threading.enumerate()) - before if one.name == "engine's watch"]
        return Predictor.load(folder, version, precision="float32", maker=process)

    def _look(self) -> None:
        self.ending.look()
        self.has_looked.set()

    def lose(self, number: int) -> None:
        """End a process as the kernel does when memory is short, and wait until that was looked at."""
        os.kill(self.processes[number], signal.SIGKILL)
        self.watches[number].join(LONG_S)
        assert self.has_looked.is_set()


@pytest.fixture(scope="module")
def fork_server() -> ForkServer:
    return ForkServer()


@pytest.fixture
def house(tiny_checkpoint: Path, fork_server: ForkServer) -> House:
    return House(tiny_checkpoint, fork_server.start)


async def test_it_ends_with_the_engine_that_answers_though_nobody_asks(house: House, caplog: pytest.LogCaptureFixture) -> None:
    await house.follower.start()
    house.lose(0)
    assert house.ended.is_set()
    # Whoever looks again says nothing more.
    house.ended.clear()
    with pytest.raises(NotReady, match="process ended"):
        house.follower.current.engine.forward(ROWS)
    house.ending.look()
    assert not house.ended.is_set()
    assert [record.levelno for record in caplog.records if "with it this replica does" in record.message] == [logging.CRITICAL]


async def test_a_candidates_engine_ends_nothing(house: House) -> None:
    await house.follower.start()
    await house.candidate.start()
    house.lose(1)
    assert house.candidate.has_lost_its_engine
    assert not house.ended.is_set()


async def test_a_version_that_was_swapped_out_ends_nothing(house: House) -> None:
    await house.follower.start()
    old: list[Predictor] = [house.follower.current]
    house.version = 2
    await house.follower.refresh()
    assert house.follower.version == 2
    # Some request still holds on to it.
    house.lose(0)
    assert not old[0].is_alive
    assert not house.ended.is_set()
    house.lose(1)
    assert house.ended.is_set()


async def test_it_ends_with_an_engine_that_fails_on_every_text_though_its_process_lives(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one on a GPU does after an illegal access; it would be given nearly all requests, because it fails sooner than others answer."""
    await house.follower.start()
    predictor = house.follower.current
    texts = predictor.tokenize(["nurse"])
    scheduler = Scheduler(None, 100.0)
    scheduler.start()
    try:
        assert (await scheduler.submit(predictor, texts, LONG_S)).answers[0].heads.keys() == {"category", "education"}

        def fail(*_: object) -> None:
            raise RuntimeError("AcceleratorError")

        monkeypatch.setattr(OwnProcess, "forward", fail)
        assert not house.ended.is_set()
        with pytest.raises(NotReady, match="the engine fails on every text"):
            await scheduler.submit(predictor, texts, LONG_S)
        assert (house.ended.is_set(), predictor.is_alive) == (True, False)
    finally:
        await scheduler.stop()


async def test_nothing_ends_before_a_version_answers_nor_while_it_can(house: House) -> None:
    house.ending.look()
    await house.follower.start()
    house.ending.look()
    assert not house.ended.is_set()


async def test_an_orderly_end_is_no_loss(house: House) -> None:
    await house.follower.start()
    # The loop holds on to what it has just waited for.
    await asyncio.sleep(0)
    house.follower._current = None
    gc.collect()
    house.watches[0].join(LONG_S)
    assert not house.watches[0].is_alive()
    assert not house.has_looked.is_set()


def test_whoever_waits_for_an_answer_hears_nothing_before_the_loss_was_looked_at(
    tiny_checkpoint: Path, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else they would be told 503 by a replica that is about to end, and not be given to another one."""
    # Who only watches may come late.
    monkeypatch.setattr(own_process, "_watch", lambda life, *_: os.close(life))
    said: list[str] = []
    process = OwnProcess(fork_server.start, lambda: said.append("lost"))
    engine = process.make(tiny_checkpoint, 0, 1, "float32", ())
    os.kill(process.pid, signal.SIGSTOP)
    asked = threading.Event()

    def ask(forward: Callable[[list[Any]], object] = engine.forward) -> None:
        asked.set()
        with pytest.raises(NotReady):
            forward(ROWS)
        said.append("answered")

    asking = threading.Thread(target=ask)
    asking.start()
    assert asked.wait(LONG_S)
    os.kill(process.pid, signal.SIGKILL)
    asking.join(LONG_S)
    assert said == ["lost", "answered"]


# Ray 2.60's own models do.
@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")
@pytest.mark.parametrize("how", ["itself", "by the destructor that Serve calls"])
async def test_once_the_replica_is_to_end_a_lost_engine_ends_nothing(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Ray ends a replica's children first, and an engine on a GPU is one: the replica goes on, to say what it still has to say."""
    ended: list[str] = []
    follower: Any = SimpleNamespace(has_lost_its_engine=True)
    ending = EndsWithItsEngine(follower, lambda: ended.append("ended"))
    if how == "itself":
        ending.stop()
    else:
        from ray import serve

        replica = object.__new__(Replica)
        replica._ending = ending
        # What is deployed is a class that Serve made of it, whose own destructor is to call ours.
        wrapped: Any = serve.ingress()(Replica)
        await wrapped.__del__(replica)
    ending.look()
    assert (ended, caplog.records) == ([], [])


def test_a_replica_that_never_was_whole_can_be_let_go() -> None:
    object.__new__(Replica).__del__()


@pytest.mark.parametrize("answers", [True, False], ids=["answers", "on trial"])
def test_a_process_that_is_ended_here_is_lost_though_the_kernel_has_not_put_it_away(answers: bool) -> None:
    """Its pipes may stay open for ever, in a driver, and meanwhile every request would be refused at once."""
    (ours, theirs), (life, held) = Pipe(), Pipe(duplex=False)
    computing = subprocess.Popen(["sleep", "60"])
    # That we hold its ends ourselves keeps them open when it is gone.
    with theirs, held:
        ended: list[bool] = []
        process = OwnProcess(lambda: Started(computing.pid, ours, life, computing), lambda: ending.look())
        version: Any = SimpleNamespace(is_alive=True)
        follower = Follower(SimpleNamespace(), "production", lambda *_: version)
        follower._current = process if answers else version  # type: ignore[assignment]
        ending = EndsWithItsEngine(follower, lambda: ended.append(process.is_alive))
        assert process.is_alive
        process.end()
        assert computing.wait(LONG_S) == -signal.SIGKILL
        assert (process.is_alive, ended) == (False, [False] if answers else [])
        # By then somebody else may have its number.
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(os, "kill", lambda *_: pytest.fail("it was ended twice"))
            process.end()


def test_the_process_itself_ends_at_once() -> None:
    script = (
        "import types; from serving.ending import EndsWithItsEngine; "
        "EndsWithItsEngine(types.SimpleNamespace(has_lost_its_engine=True)).look(); print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
    assert "the engine's process ended" in done.stderr
