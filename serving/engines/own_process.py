"""Engines in a process of their own: who answers requests does not take Python's lock from who computes.

A forward pass asks for that lock hundreds of times, and beside a busy event loop waits for it each time; under a flood, refusing requests
then takes the time in which others could be answered. Here the process that computes does nothing else. It ends with its last engine, or
with whoever started it, and a version's memory goes with it. It does not know how engines compute.
"""

import os
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.engines.engine import Logits
from serving.errors import NotReady

_CODE_ROOT = Path(__file__).resolve().parents[2]
# It computes nothing any more when it is told to end.
_END_S = 5.0


@dataclass(frozen=True)
class Started:
    """A process that was started to compute.

    Attributes:
        pid: Its number.
        connection: Our end of what is asked and answered.
        life: Our end of a pipe that only it holds open: it is at its end when the process is.
        child: The process, where it is ours to wait for.
    """

    pid: int
    connection: "Connection[Any, Any]"
    life: "Connection[Any, Any]"
    child: subprocess.Popen[bytes] | None = None


def python_with_our_code(module: str, *descriptors: int) -> subprocess.Popen[bytes]:
    """Start one of our modules in a Python of its own, which gets some of our open descriptors."""
    path = os.pathsep.join([str(_CODE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", module, *map(str, descriptors)]
    return subprocess.Popen(command, pass_fds=descriptors, env={**os.environ, "PYTHONPATH": path})


def start_anew() -> Started:
    """Start a process that imports all it needs by itself, in some seconds."""
    (ours, theirs), (life, held) = Pipe(), Pipe(duplex=False)
    with theirs, held:
        process = python_with_our_code("serving.engines.child", theirs.fileno(), held.fileno())
    return Started(process.pid, ours, life, process)


class OwnProcess:
    """A process that makes engines and computes with them; started at once.

    All of it may be used from several threads, one after another.

    Args:
        start: How to start it.
        lost: Told when it has ended, or was ended, though it was not let go: in any thread, more than once, and before whoever asked it
            hears of that.
    """

    def __init__(self, start: Callable[[], Started] = start_anew, lost: Callable[[], None] | None = None) -> None:
        self._started = start()
        self._lock = threading.Lock()
        self._dropped: deque[int] = deque()
        self._lost = lost
        self._given_up = False
        let_go = threading.Event()
        weakref.finalize(self, _end, self._started, let_go)
        if lost is not None:
            # Of its own, so that nobody closes it while it is read.
            life = os.dup(self._started.life.fileno())
            threading.Thread(target=_watch, args=(life, let_go, lost), name="engine's watch", daemon=True).start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._started.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs, and was not ended here."""
        return not self._given_up and not self._started.life.poll()

    def end(self) -> None:
        """End it at once; one that was stopped, or waits for a driver, hears of nothing else."""
        if not self.is_alive:
            return
        os.kill(self.pid, signal.SIGKILL)
        # The kernel frees its memory before it closes its pipes, and while it waits for a driver does neither.
        self._given_up = True
        if self._lost is not None:
            self._lost()

    def precisions(self) -> list[str]:
        """List what this machine can compute with, the most precise first."""
        found: list[str] = self._ask("precisions")
        return found

    def hardware(self) -> str:
        """Name what it computes on; see `Maker.hardware`."""
        found: str = self._ask("hardware")
        return found

    def make(self, folder: Path, pad_id: int, threads: int, precision: str, typical: Sequence[NDArray[np.int32]]) -> "EngineApart":
        """Make an engine; see `TorchEngine`.

        Raises:
            TwoheadError: See there.
            NotReady: The process ended.
        """
        return EngineApart(self, *self._ask("make", folder, pad_id, threads, precision, list(typical)))

    def forward(self, engine: int, rows: Sequence[NDArray[np.int32]]) -> Logits:
        """Compute logits with one of its engines; see `Engine.forward`.

        Raises:
            RuntimeError: The engine failed.
            NotReady: The process ended.
        """
        logits: Logits = self._ask("forward", engine, np.concatenate(rows), [len(row) for row in rows])
        return logits

    def clock(self, engine: int) -> float:
        """Tell the time of one of its engines; see `Engine.clock`.

        Raises:
            NotReady: The process ended.
        """
        now: float = self._ask("clock", engine)
        return now

    def drop(self, engine: int) -> None:
        """Let an engine go, before the next thing that is asked; may be called from a finaliser."""
        self._dropped.append(engine)

    def _ask(self, verb: str, *arguments: object) -> Any:
        with self._lock:
            dropped = [self._dropped.popleft() for _ in range(len(self._dropped))]
            try:
                self._started.connection.send((dropped, verb, arguments))
                answer = self._started.connection.recv()
            except (EOFError, OSError) as error:
                if self._lost is not None and self._started.life.poll(_END_S):
                    self._lost()
                raise NotReady("the engine's process ended") from error
        if isinstance(answer, Exception):
            try:
                raise answer
            finally:
                # The error knows this frame. Were it known here too, both would stay until they are collected, and the process with them.
                del answer
        return answer


class EngineApart:
    """An engine in another process; see `Engine`."""

    name = "torch"

    def __init__(self, process: OwnProcess, number: int, device: str, dtype: str, pads: bool) -> None:
        self._process = process
        self._number = number
        self.device = device
        self.dtype = dtype
        self.pads = pads
        weakref.finalize(self, process.drop, number)

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self._process.is_alive

    def end(self) -> None:
        """End its process, and every engine in it."""
        self._process.end()

    def clock(self) -> float:
        """Tell the time; see `Engine.clock`."""
        return self._process.clock(self._number)

    def forward(self, rows: Sequence[NDArray[np.int32]]) -> Logits:
        """Compute logits; see `Engine.forward`."""
        return self._process.forward(self._number, rows)


def _watch(life: int, let_go: threading.Event, lost: Callable[[], None]) -> None:
    # Nothing is ever written to it.
    os.read(life, 1)
    os.close(life)
    if not let_go.is_set():
        lost()


def _end(started: Started, let_go: threading.Event) -> None:
    let_go.set()
    started.connection.close()
    if not threading.main_thread().is_alive():
        # The interpreter ends, and threads with it.
        _wait_for(started)
        return
    # The last one to hold an engine may be the loop that answers everybody: it does not wait for a process to go.
    threading.Thread(target=_wait_for, args=(started,), name="engine's end").start()


def _wait_for(started: Started) -> None:
    if not started.life.poll(_END_S):
        os.kill(started.pid, signal.SIGKILL)
    started.life.close()
    if started.child is not None:
        started.child.wait()
