"""An engine in a process of its own answers the same, fails the same, and ends when it should."""

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from serving.engines.fork_server import _START_S, ForkServer
from serving.engines.own_process import OwnProcess, Started, start_anew
from serving.engines.torch_engine import InProcess
from serving.errors import NotReady, ServingError
from serving.predictor import Predictor

ROWS = [np.array([2, 5, 6, 3], np.int32), np.array([2, 7, 3], np.int32)]


def ended(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return True
    _, alive = psutil.wait_procs([process], timeout=30)
    return not alive


@pytest.fixture(scope="module")
def fork_server() -> ForkServer:
    return ForkServer()


@pytest.fixture(scope="module", params=["anew", "copied"])
def start(request: pytest.FixtureRequest, fork_server: ForkServer) -> Callable[[], Started]:
    return start_anew if request.param == "anew" else fork_server.start


@pytest.fixture(scope="module")
def process(start: Callable[[], Started]) -> OwnProcess:
    return OwnProcess(start)


def test_it_answers_what_the_same_engine_here_answers(process: OwnProcess, tiny_checkpoint: Path) -> None:
    ours, theirs = (maker.make(tiny_checkpoint, 0, 1, "float32", ()) for maker in (InProcess(), process))
    assert (theirs.name, theirs.device, theirs.dtype, theirs.pads) == (ours.name, ours.device, ours.dtype, ours.pads)
    before = theirs.clock()
    expected, found = ours.forward(ROWS), theirs.forward(ROWS)
    assert theirs.clock() > before
    assert found.keys() == expected.keys()
    for head in expected:
        np.testing.assert_array_equal(found[head], expected[head])
    assert process.precisions() == InProcess().precisions()
    assert process.hardware() == InProcess().hardware()


def test_several_engines_live_in_one_process_until_nobody_wants_them(process: OwnProcess, tiny_checkpoint: Path) -> None:
    first, second = (process.make(tiny_checkpoint, 0, 1, "float32", ()) for _ in range(2))
    number = first._number
    first.forward(ROWS)
    del first
    gc.collect()
    second.forward(ROWS)
    with pytest.raises(ServingError, match="KeyError"):
        process.forward(number, ROWS)


def test_errors_arrive_as_what_they_are(process: OwnProcess, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="OSError"):
        process.make(tmp_path / "nothing", 0, 1, "float32", ())
    with pytest.raises(ServingError, match=r"serving\.precision is float8"):
        process.make(tiny_checkpoint, 0, 1, "float8", ())
    engine = process.make(tiny_checkpoint, 0, 1, "float32", ())
    with pytest.raises((RuntimeError, ServingError)):
        engine.forward([np.array([10_000_000], np.int32)])
    engine.forward(ROWS)


def test_a_process_that_was_killed_is_told_as_not_ready(start: Callable[[], Started], tiny_checkpoint: Path) -> None:
    process = OwnProcess(start)
    engine = process.make(tiny_checkpoint, 0, 1, "float32", ())
    assert engine.is_alive
    os.kill(process.pid, signal.SIGKILL)
    assert ended(process.pid)
    with pytest.raises(NotReady, match="process ended"):
        engine.forward(ROWS)
    assert not engine.is_alive


def test_a_process_that_stands_still_is_ended_in_the_middle_of_a_batch(start: Callable[[], Started], tiny_checkpoint: Path) -> None:
    predictor = Predictor.load(tiny_checkpoint, 1, precision="float32", maker=(process := OwnProcess(start)))
    os.kill(process.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as elsewhere:
        computed = elsewhere.submit(predictor.engine.forward, ROWS)
        assert predictor.is_alive
        predictor.end()
        with pytest.raises(NotReady, match="process ended"):
            computed.result(30)
    assert ended(process.pid)
    assert not predictor.is_alive
    # And once more, which must not hit somebody else with its number.
    predictor.end()


def test_it_ends_with_its_last_engine(start: Callable[[], Started], tiny_checkpoint: Path) -> None:
    process = OwnProcess(start)
    pid = process.pid
    predictor = Predictor.load(tiny_checkpoint, 1, precision="float32", maker=process)
    del process
    gc.collect()
    predictor.warm()
    assert predictor.is_alive
    assert psutil.pid_exists(pid)
    del predictor
    gc.collect()
    assert ended(pid)


def test_whoever_lets_it_go_last_does_not_wait_for_its_end() -> None:
    gone, closed = threading.Event(), threading.Event()
    connection: Any = SimpleNamespace(close=lambda: None)
    life: Any = SimpleNamespace(poll=lambda _: gone.wait(30) or True, close=closed.set)
    process = OwnProcess(lambda: Started(os.getpid(), connection, life))
    before = set(threading.enumerate())
    del process
    gc.collect()
    (waiting,) = set(threading.enumerate()) - before
    assert not closed.is_set()
    gone.set()
    waiting.join(30)
    assert closed.is_set()


@pytest.mark.parametrize("how", ["start_anew", "server.start"])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_whoever_started_it(signum: int, how: str) -> None:
    script = (
        "import sys; from serving.engines.own_process import *; from serving.engines.fork_server import ForkServer; "
        f"server = ForkServer(); one = OwnProcess({how}); print(one.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        engine = int(starter.stdout.readline())
        processes = psutil.Process(starter.pid).children(recursive=True)
        assert engine in [process.pid for process in processes]
        starter.send_signal(signum)
        assert starter.wait() == -signum
    # What still imports sees only then that nobody is left.
    assert not psutil.wait_procs(processes, timeout=_START_S + 30)[1]
