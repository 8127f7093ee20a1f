"""The other end of `own_process`: makes engines and computes with them until whoever started it lets go.

    python -m serving.engines.child DESCRIPTOR DESCRIPTOR

The first is what is asked and answered through; the second is only held, until this process ends.
It does one thing after another, and answers each with a result or an error. It knows no text: neither do the errors.
"""

import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from cluster.errors import TwoheadError
from serving.engines.engine import Engine, Logits
from serving.engines.torch_engine import InProcess
from serving.errors import ServingError

# What a forward pass raises about its input or its machine. Anything else ends the process, and the replica is replaced.
_FAILURES = (RuntimeError, ArithmeticError, LookupError, TypeError, ValueError, MemoryError, OSError)


class Workshop:
    """The engines of this process."""

    def __init__(self) -> None:
        self._maker = InProcess()
        self._engines: dict[int, Engine] = {}
        self._made = 0

    def drop(self, engine: int) -> None:
        """Let an engine go."""
        self._engines.pop(engine, None)

    def do(self, verb: str, arguments: tuple[Any, ...]) -> Any:
        """Do what is asked."""
        if verb == "forward":
            return self._forward(*arguments)
        if verb == "clock":
            return self._engines[arguments[0]].clock()
        if verb == "make":
            return self._make(*arguments)
        return self._maker.precisions() if verb == "precisions" else self._maker.hardware()

    def _make(
        self, folder: Path, pad_id: int, threads: int, precision: str, typical: Sequence[NDArray[np.int32]]
    ) -> tuple[int, str, str, bool]:
        engine = self._maker.make(folder, pad_id, threads, precision, typical)
        self._made += 1
        self._engines[self._made] = engine
        return self._made, engine.device, engine.dtype, engine.pads

    def _forward(self, engine: int, ids: NDArray[np.int32], lengths: list[int]) -> Logits:
        return self._engines[engine].forward(np.split(ids, np.cumsum(lengths)[:-1]))


def work(connection: "Connection[Any, Any]") -> None:
    """Do what is asked, one after another, until the other end is closed."""
    workshop = Workshop()
    while True:
        try:
            dropped, verb, arguments = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        for engine in dropped:
            workshop.drop(engine)
        connection.send(_answer(workshop, verb, arguments))


def _answer(workshop: Workshop, verb: str, arguments: tuple[Any, ...]) -> Any:
    try:
        return workshop.do(verb, arguments)
    except TwoheadError as error:
        return error
    except RuntimeError as error:
        # Torch's own classes need not exist where this is read.
        return RuntimeError(type(error).__name__)
    except _FAILURES as error:
        return ServingError(f"the engine failed: {type(error).__name__}")


def work_to_the_end(descriptor: int) -> NoReturn:
    """Do what is asked through a descriptor, and end this process."""
    # Ctrl-C in a terminal reaches the whole group; whoever started this decides when it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work(Connection(descriptor))
    # Nothing here is worth the second that Python takes to clear up after torch.
    os._exit(0)


if __name__ == "__main__":
    work_to_the_end(int(sys.argv[1]))
