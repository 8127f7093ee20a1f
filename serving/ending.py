"""Ends a replica's process with the engine that answers in it.

Without an engine it would refuse sooner than others answer, and a front that gives a request to whoever has the fewest would give it
nearly all of them until checks miss it. A process that is gone is given nothing more, what it had is given to another one, and Serve
begins it anew. It does not know how an engine is lost.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable

from serving.follower import Follower

log = logging.getLogger(__name__)


class EndsWithItsEngine:
    """Looks whether the version that answers has lost its engine; used from any thread.

    Args:
        follower: Knows which version answers. Engines of versions on trial, or not in service yet or any more, end nothing.
        end: Ends this process, without a word to whoever waits for it.
    """

    def __init__(self, follower: Follower, end: Callable[[], None] | None = None) -> None:
        self._follower = follower
        self._end = end or _end_this_process
        self._lock = threading.Lock()
        self._has_ended = False

    def stop(self) -> None:
        """End nothing from now on: the process is told to end by others, and its engine may go first."""
        with self._lock:
            self._has_ended = True

    def look(self) -> None:
        """End the process, once, where nothing can be computed any more."""
        with self._lock:
            if self._has_ended or not self._follower.has_lost_its_engine:
                return
            self._has_ended = True
            log.critical("the engine's process ended, and with it this replica does, so that others are asked and Serve begins it anew")
            self._end()


def _end_this_process() -> None:
    # No answer may leave any more: whoever gets none is given to another replica.
    os.kill(os.getpid(), signal.SIGKILL)
