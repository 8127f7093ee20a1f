"""A process that has imported what engines need, and is copied for each of them.

Importing torch and transformers takes seconds of a core and hundreds of megabytes; a copy takes neither: a version that is promoted is
there sooner, and what was imported lies in memory once. A GPU's driver does not bear being copied: `start_anew` is for engines there.
"""

import socket
import struct
import subprocess
import threading
import weakref
from multiprocessing.connection import Pipe

from serving.engines.own_process import Started, python_with_our_code
from serving.errors import NotReady

#: A process's number, as the other end answers it.
PID = struct.Struct("q")
_END_S = 5.0
# Importing takes seconds, and many on a machine that is busy.
_START_S = 120.0


class ForkServer:
    """The process that is copied; started at once, and begun anew when it was lost.

    It ends when this is let go, or with whoever made it; its copies go on until they are let go themselves.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begin()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def start(self) -> Started:
        """Start a copy; the first one waits until all is imported.

        Raises:
            NotReady: The process ended meanwhile or stands still; the next one is asked of a new one.
        """
        with self._lock:
            if self._process.poll() is not None:
                self._let_go()
            if not self._let_go.alive:
                self._begin()
            (ours, theirs), (life, held) = Pipe(), Pipe(duplex=False)
            with theirs, held:
                return Started(self._copy(theirs.fileno(), held.fileno()), ours, life)

    def _copy(self, *descriptors: int) -> int:
        try:
            socket.send_fds(self._requests, [b"+"], descriptors)
            pid: int = PID.unpack(self._requests.recv(PID.size, socket.MSG_WAITALL))[0]
        # Nothing came: it ended, or stands still.
        except (OSError, struct.error) as error:
            self._let_go()
            raise NotReady("the process that engines are copied from does not answer") from error
        return pid

    def _begin(self) -> None:
        self._requests, theirs = socket.socketpair()
        self._requests.settimeout(_START_S)
        with theirs:
            self._process = python_with_our_code("serving.engines.fork_server_child", theirs.fileno())
        self._let_go = weakref.finalize(self, _end, self._process, self._requests)


def _end(process: subprocess.Popen[bytes], requests: socket.socket) -> None:
    requests.close()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
