"""Starts the head's own processes again where they end alone, and what they must know is kept.

Ray's control service ends itself when its Redis has not answered for some three seconds, and nothing of Ray's starts it again on a host of
one's own: replicas answer for ten more minutes, then all is lost. This file is sent to the head and run there beside Ray, so it needs
nothing but Python. A process is started again word for word, as Ray's own tests of a lost head do; where the raylet has ended too, Ray
was stopped, and this ends as well.

While the control service is away, two of the others do harm (Ray 2.60), and are kept from it. Ray's autoscaler takes every host that it
has not heard of for 30 s for lost, which after such a time are all, and stops Ray there: it is ended, and begins anew when the hosts are
in again. Two parts of the dashboard ask again and again without a pause, each on a whole core, which the head's replicas miss: they are
halted, and go on when it answers. The other parts go on: one of them tells who asks that the control service is away.

    python3 keeper.py
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

# What their programs or scripts end with. The control service first: the others end without it.
CONTROL = "/gcs/gcs_server"
RAYLET = "/raylet/raylet"
AUTOSCALER = "/autoscaler/_private/monitor.py"
DASHBOARD = "/dashboard/dashboard.py"
# One of these variables has who keeps what it knows.
_STORES = {b"RAY_REDIS_ADDRESS", b"RAY_gcs_storage_path"}
# As they name their processes.
_BUSY = ("ray-dashboard-NodeHead", "ray-dashboard-ServeHead")
_SESSION = b"--session-dir="
_ADDRESS = b"--node-ip-address="
_PORT = b"--gcs_server_port="
_POLL_S = 1.0
# Stopping Ray ends one process after the other: who is alone for so long was not stopped.
_ALONE_S = 5.0
# So long after the control service answers again all hosts have told it that they live.
_SETTLED_S = 20.0
# The dashboard begins a part anew that has told it nothing for five minutes: so often parts go on for so long.
_BREATH_EVERY_S = 60.0
_BREATH_S = 2.0


@dataclass
class Process:
    """One process of this user, as it was found.

    Attributes:
        pid: Its number.
        began: When, in ticks: a number may be given to another process later.
        words: Of its command.
        environment: Its variables.
        child: Where it is ours.
    """

    pid: int
    began: str
    words: list[bytes]
    environment: dict[bytes, bytes] = field(repr=False)
    child: "subprocess.Popen[bytes] | None" = None

    def is_alive(self) -> bool:
        """Tell whether it still runs."""
        return self.child.poll() is None if self.child else _began(self.pid) == self.began

    def value(self, option: bytes) -> bytes:
        """Return the value of an option of its command; nothing where it has none."""
        return next((word.removeprefix(option) for word in self.words if word.startswith(option)), b"")

    def runs(self, part: str) -> bool:
        """Tell whether its program, or the script that it was given, has a path with this end."""
        return any(word.endswith(part.encode()) for word in self.words[:3])

    def end(self) -> None:
        """End it at once: it is not asked."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def again(self) -> "Process":
        """Start it again."""
        silent = subprocess.DEVNULL
        child = subprocess.Popen(self.words, env=self.environment, stdin=silent, stdout=silent, stderr=silent)
        return Process(child.pid, "", self.words, self.environment, child)


def processes() -> Iterator[Process]:
    """Give the processes of this user."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == os.geteuid() and (began := _began(int(folder.name))):
                words = (folder / "cmdline").read_bytes().split(b"\0")[:-1]
                pairs = (pair.partition(b"=") for pair in (folder / "environ").read_bytes().split(b"\0") if pair)
                yield Process(int(folder.name), began, words, {name: value for name, _, value in pairs})
        except OSError:
            # It ended meanwhile.
            continue


def of_the_head(running: Iterable[Process]) -> tuple[Process, list[Process]] | None:
    """Return the raylet of the head that keeps what it knows, and its processes, the control service first; None without such a head."""
    running = list(running)
    controls = [one for one in running if one.runs(CONTROL) and _STORES & set(one.environment)]
    for control in controls:
        session = control.value(_SESSION) or b"no session"
        same = [one for one in running if any(session in word for word in one.words)]
        raylets = [one for one in same if one.runs(RAYLET)]
        if raylets:
            return raylets[0], [control, *(one for part in (AUTOSCALER, DASHBOARD) for one in same if one.runs(part))]
    return None


class Keeper:
    """Starts again whichever ends, as long as the raylet lives.

    Args:
        raylet: Of the head.
        kept: The processes to be kept, the control service first.
    """

    def __init__(self, raylet: Process, kept: list[Process]) -> None:
        self.raylet = raylet
        self.kept = kept
        self._alone_since: dict[int, float] = {}
        # When the control service began to answer; None while it is away.
        self._answers_since: float | None = -_SETTLED_S
        # Pid → when it began, of those that stand still by our doing.
        self._halted: dict[int, str] = {}

    def run(self) -> None:
        """Keep them until the raylet ends; then end what was started here."""
        # A keeper before this one may have left them halted.
        self._wake_parts()
        try:
            while self.raylet.is_alive():
                time.sleep(_POLL_S)  # none of them is a child of ours: nothing tells of its end
                self._look(time.monotonic())
            # Once the dashboard has ended nobody finds them.
            self._wake_parts()
            for process in self.kept:
                if process.child:
                    process.child.terminate()
                    process.child.wait()
        finally:
            self._wake_parts()

    def _look(self, now: float) -> None:
        control = self.kept[0]
        if not control.is_alive():
            self._answers_since = None
        elif self._answers_since is None and _listens(control):
            _say("the control service answers")
            self._answers_since = now
            self._wake_parts()
        if self._answers_since is None:
            self._calm(now)
        settled = self._answers_since is not None and now - self._answers_since >= _SETTLED_S
        for place, process in enumerate(self.kept):
            if process.is_alive():
                self._alone_since.pop(place, None)
            elif now - self._alone_since.setdefault(place, now) >= _ALONE_S and (settled or process is control):
                _say(f"starting {_name(process)} again")
                self.kept[place] = process.again()
                del self._alone_since[place]

    def _calm(self, now: float) -> None:
        for process in self.kept:
            if process.runs(AUTOSCALER):
                process.end()
        if now % _BREATH_EVERY_S < _BREATH_S:
            self._wake_parts()
        else:
            for pid in self._parts():
                self._halted[pid] = _began(pid)
                _send(pid, signal.SIGSTOP)

    def _wake_parts(self) -> None:
        halted = [pid for pid, began in self._halted.items() if _began(pid) == began]
        for pid in {*halted, *self._parts()}:
            _send(pid, signal.SIGCONT)
        self._halted.clear()

    def _parts(self) -> list[int]:
        found = []
        for process in self.kept:
            for pid in list(_descendants(process.pid)) if process.runs(DASHBOARD) else ():
                # It may have ended meanwhile.
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").startswith(_BUSY):
                        found.append(pid)
        return found


def main() -> int:
    """Find the head's processes, and keep them."""
    found = of_the_head(processes())
    if found is None:
        print("no head of Ray that keeps what it knows runs here", file=sys.stderr)
        return 1
    # Who ends this lets it wake what it has halted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Keeper(*found).run()
    return 0


def _send(pid: int, number: int) -> None:
    # It may have ended meanwhile.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _say(what: str) -> None:
    print(time.strftime("%F %T"), what, flush=True)  # its only log


def _name(process: Process) -> str:
    return next((part for part in (CONTROL, AUTOSCALER, DASHBOARD) if process.runs(part)), "?").rpartition("/")[2]


def _listens(control: Process) -> bool:
    """Tell whether a control service takes connections: first it looks for what it knew."""
    address, port = control.value(_ADDRESS).decode(), control.value(_PORT).decode()
    if not address or not int(port or 0):
        return True  # nobody can tell where it listens
    try:
        with socket.create_connection((address, int(port)), _POLL_S):
            return True
    except OSError:
        return False


def _descendants(pid: int) -> Iterator[int]:
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, thread.read_text().split()):
                yield child
                yield from _descendants(child)


def _began(pid: int) -> str:
    """Return when a process began; nothing where it has ended, even if nobody has asked for its result."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if told[0] in "ZX" else told[19]


if __name__ == "__main__":
    sys.exit(main())
