"""The process that engines are copied from: imports once, never computes, and may be lost."""

import gc
import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest

from serving.engines import fork_server
from serving.engines.fork_server import ForkServer
from serving.engines.own_process import OwnProcess
from serving.errors import NotReady

ROWS = [np.array([2, 5, 6, 3], np.int32)]


@pytest.fixture
def server() -> ForkServer:
    return ForkServer()


def mapped(pid: int) -> set[str]:
    return {Path(entry.path).name for entry in psutil.Process(pid).memory_maps()}


def test_a_copy_needs_not_import_torch_again_and_what_is_copied_has_one_thread(server: ForkServer, tiny_checkpoint: Path) -> None:
    process = OwnProcess(server.start)
    assert "libtorch_cpu.so" in mapped(process.pid)
    process.make(tiny_checkpoint, 0, 1, "float32", ()).forward(ROWS)
    # A thread would be missing in a copy, with the locks that it held.
    assert psutil.Process(server.pid).num_threads() == 1


def test_copies_know_nothing_of_each_other(server: ForkServer, tiny_checkpoint: Path) -> None:
    first, second = OwnProcess(server.start), OwnProcess(server.start)
    engine, other = (process.make(tiny_checkpoint, 0, 1, "float32", ()) for process in (first, second))
    assert first.pid != second.pid
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(NotReady, match="process ended"):
        engine.forward(ROWS)
    assert not engine.is_alive
    other.forward(ROWS)
    assert other.is_alive


def test_one_that_was_lost_is_begun_anew_and_its_copies_go_on(server: ForkServer, tiny_checkpoint: Path) -> None:
    engine = OwnProcess(server.start).make(tiny_checkpoint, 0, 1, "float32", ())
    lost = server.pid
    os.kill(lost, signal.SIGKILL)
    server._process.wait()
    engine.forward(ROWS)
    assert engine.is_alive
    OwnProcess(server.start).make(tiny_checkpoint, 0, 1, "float32", ()).forward(ROWS)
    assert server.pid != lost


def test_one_that_stands_still_is_replaced(server: ForkServer, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> None:
    stopped = psutil.Process(server.pid)
    monkeypatch.setattr(fork_server, "_END_S", 0.2)
    server._requests.settimeout(0.2)
    stopped.suspend()
    with pytest.raises(NotReady, match="copied from does not answer"):
        server.start()
    assert not stopped.is_running()
    OwnProcess(server.start).make(tiny_checkpoint, 0, 1, "float32", ()).forward(ROWS)


def test_it_ends_when_it_is_let_go_and_no_copy_stays_a_zombie(tiny_checkpoint: Path) -> None:
    server = ForkServer()
    process = OwnProcess(server.start)
    pids = [psutil.Process(server.pid), psutil.Process(process.pid)]
    del server
    gc.collect()
    process.make(tiny_checkpoint, 0, 1, "float32", ()).forward(ROWS)
    assert not pids[0].is_running()
    del process
    gc.collect()
    assert not psutil.wait_procs(pids, timeout=30)[1]
