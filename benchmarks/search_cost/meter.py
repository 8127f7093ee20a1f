"""CPU seconds of a command and of everything it starts, also of what it leaves behind when it ends.

The kernel hands orphans to the nearest "subreaper" above them, so this process becomes one: nothing a command starts can leave its tree.
Living processes are read from /proc; a process that ended counts with what it had when it was last seen. What an earlier command left
behind is in the tree as well, also when it has ended, and is not counted.
"""

import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_TICKS = os.sysconf("SC_CLK_TCK")
_INTERVAL_S = 0.2


@dataclass
class Meter:
    """Measures one command.

    Attributes:
        cpu_s: CPU seconds so far, of all its processes.
        peak_bytes: Most memory that any one process held.
        gpu_busy: Shares of time in which the GPU computed, one a reading.
    """

    cpu_s: float = 0.0
    peak_bytes: int = 0
    gpu_busy: list[float] = field(default_factory=list)
    _seen: dict[tuple[int, str], float] = field(default_factory=dict)
    _earlier: frozenset[tuple[int, str]] = frozenset()
    _begun: float = field(default_factory=time.monotonic)

    @property
    def wall_s(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._begun

    def begin(self) -> None:
        """Leave out every process that is there now."""
        self.look()
        self._earlier = frozenset(self._seen)
        self._seen.clear()
        self.cpu_s, self.peak_bytes, self._begun = 0.0, 0, time.monotonic()

    def look(self) -> None:
        """Read what all descendants of this process have used; the reading of one that is gone stays."""
        children: dict[int, list[_Process]] = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and (found := _read(folder)) is not None:
                children.setdefault(found.parent, []).append(found)
        waiting = [os.getpid()]
        while waiting:
            for one in children.get(waiting.pop(), ()):
                waiting.append(one.pid)
                if (one.pid, one.started) not in self._earlier:
                    self._seen[one.pid, one.started] = one.cpu_s
                    self.peak_bytes = max(self.peak_bytes, one.resident_bytes)
        self.cpu_s = sum(self._seen.values())


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    started: str
    cpu_s: float
    resident_bytes: int


def _read(folder: Path) -> _Process | None:
    try:
        fields = (folder / "stat").read_text().rpartition(") ")[2].split()
        pages = int((folder / "statm").read_text().split()[1])
    except OSError:
        # It ended meanwhile.
        return None
    used = (int(fields[11]) + int(fields[12])) / _TICKS
    return _Process(int(folder.name), int(fields[1]), fields[19], used, pages * os.sysconf("SC_PAGE_SIZE"))


def measure(
    command: Sequence[str],
    environment: dict[str, str],
    folder: Path,
    on_look: Callable[[Meter], bool],
    log: Path,
    read_gpu: Callable[[], float] | None = None,
) -> Meter:
    """Run a command and measure it, to its end or until it is told to stop.

    Args:
        command: And its arguments.
        environment: Beside this process's own.
        folder: It works in.
        on_look: Called after every reading, a few times a second; tells whether that is enough.
        log: Takes what it prints.
        read_gpu: Tells for how many hundredths of the time the GPU computed lately.

    Raises:
        RuntimeError: It failed.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    meter, ended, is_enough = Meter(), threading.Event(), False
    meter.begin()
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT)
        waiter = threading.Thread(target=lambda: (process.wait(), ended.set()))
        waiter.start()
        while not ended.wait(_INTERVAL_S):
            meter.look()
            if read_gpu is not None:
                meter.gpu_busy.append(read_gpu() / 100)
            if not is_enough and on_look(meter):
                is_enough = True
                process.terminate()
        waiter.join()
    if process.returncode and not is_enough:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}; see {log}")
    on_look(meter)
    return meter
