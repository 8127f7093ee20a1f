"""Starts the head's own processes again where they end alone, and what they must know is kept.

Ray's control service ends itself when its Redis has not answered for some three seconds, and nothing of Ray's starts it again on a host of
one's own: replicas answer for ten more minutes, then all is lost. This file is sent to the head and run there beside Ray, so it needs
nothing but Python. A process is started again word for word, as Ray's own tests of a lost head do; where the raylet has ended too, Ray
was stopped, and this ends as well.

    python3 keeper.py
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

# What their programs or scripts end with. The control service first: the others end without it.
CONTROL = "/gcs/gcs_server"
RAYLET = "/raylet/raylet"
OTHERS = ("/autoscaler/_private/monitor.py", "/dashboard/dashboard.py")
# One of these variables has who keeps what it knows.
_STORES = {b"RAY_REDIS_ADDRESS", b"RAY_gcs_storage_path"}
_SESSION = b"--session-dir="
_POLL_S = 1.0
# Stopping Ray ends one process after the other: who is alone for so long was not stopped.
_ALONE_S = 5.0


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

    def runs(self, part: str) -> bool:
        """Tell whether its program, or the script that it was given, has a path with this end."""
        return any(word.endswith(part.encode()) for word in self.words[:3])

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
    """Return the raylet of the head that keeps what it knows, and the processes to be kept; None where there is no such head."""
    running = list(running)
    controls = [one for one in running if one.runs(CONTROL) and _STORES & set(one.environment)]
    for control in controls:
        session = next((word.removeprefix(_SESSION) for word in control.words if word.startswith(_SESSION)), b"no session")
        same = [one for one in running if any(session in word for word in one.words)]
        raylets = [one for one in same if one.runs(RAYLET)]
        if raylets:
            return raylets[0], [control, *(one for part in OTHERS for one in same if one.runs(part))]
    return None


def keep(raylet: Process, kept: list[Process]) -> None:
    """Start again whichever ends, until the raylet does; then end what was started here."""
    alone_since: dict[int, float] = {}
    while raylet.is_alive():
        time.sleep(_POLL_S)  # none of them is a child of ours: nothing tells of its end
        for place, process in enumerate(kept):
            if process.is_alive():
                alone_since.pop(place, None)
            elif time.monotonic() - alone_since.setdefault(place, time.monotonic()) >= _ALONE_S:
                print(f"{time.strftime('%F %T')} starting {process.words[0].decode()} again", flush=True)  # its only log
                kept[place] = process.again()
                del alone_since[place]
    for process in kept:
        if process.child:
            process.child.terminate()
            process.child.wait()


def main() -> int:
    """Find the head's processes, and keep them."""
    found = of_the_head(processes())
    if found is None:
        print("no head of Ray that keeps what it knows runs here", file=sys.stderr)
        return 1
    keep(*found)
    return 0


def _began(pid: int) -> str:
    """Return when a process began; nothing where it has ended, even if nobody has asked for its result."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if told[0] in "ZX" else told[19]


if __name__ == "__main__":
    sys.exit(main())
