"""What ends a search before its end, and what its report is not ended by: Ctrl-C and SIGTERM.

Ray Tune listens to Ctrl-C and to SIGUSR1 while it trains; Ray itself takes SIGTERM where it starts and where it ends. It does not know
what is stopped.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cluster.console import say

_HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM end Tune as Ctrl-C does: every trial has saved its last epoch, and what is best so far can be published."""
    with _as_they_were() as is_ours:
        if is_ours:
            # Tune listens to this one as well as to Ctrl-C.
            signal.signal(signal.SIGUSR1, signal.default_int_handler)
            signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
        yield


@contextmanager
def report_goes_first(*, is_whole: bool) -> Iterator[None]:
    """Make a report, which takes a while and which nobody has to wait for.

    Args:
        is_whole: The search came to its end: whoever stops it now is told once that only the report is missing.
    """
    with _as_they_were() as is_ours:
        if is_ours and is_whole:
            _hear(_tell)
        elif is_ours:
            _hear(signal.default_int_handler)
        yield


def is_stopped_by(error: BaseException) -> bool:
    """Tell whether an error is a signal: Ray exits on SIGTERM while it starts and ends."""
    return isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code == signal.SIGTERM)


def _tell(*_: object) -> None:
    _hear(signal.default_int_handler)
    say("report    is being made; once more ends the search without it")


def _hear(handler: Callable[..., Any]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


@contextmanager
def _as_they_were() -> Iterator[bool]:
    """Put all handlers back, Tune's among them; says whether they can be changed: only the main thread hears signals."""
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    kept = {number: signal.getsignal(number) for number in _HEARD}
    try:
        yield True
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
