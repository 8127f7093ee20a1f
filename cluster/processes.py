"""Processes of a Ray that we started: which they are, what they are called, and their end.

Every one inherits `TWOHEAD_SESSION`, the path of its session's own folder; by that mark, never by a name alone, it is found again. Any of
them may end at any moment, so that none that was found is sure to be there still.
"""

import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from cluster.errors import ClusterError

MARK_VARIABLE = "TWOHEAD_SESSION"
END_GRACE_S = 10.0
_POLL_S = 0.05


def is_marked(pid: int, folder: Path) -> bool:
    """Tell whether a process lives and belongs to the session with this folder."""
    try:
        process = psutil.Process(pid)
    except psutil.Error:
        return False
    return _lives(process) and belongs(process, folder)


def belongs(process: Any, folder: Path) -> bool:
    """Tell whether a process carries the mark of the session with this folder."""
    try:
        return _has_mark(process, folder) or _is_titled_and_writes_to(process, folder)
    except (psutil.Error, OSError):
        return False


def _has_mark(process: Any, folder: Path) -> bool:
    if sys.platform != "linux":
        return bool(process.environ().get(MARK_VARIABLE) == str(folder))
    # Not psutil's environ(), which stops at the first gap, see below.
    return f"{MARK_VARIABLE}={folder}".encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")


def _is_titled_and_writes_to(process: Any, folder: Path) -> bool:
    # A process of Ray that gives itself a title overwrites the beginning of its environment, and a short one wholly.
    return bool(str(process.name()).startswith("ray::")) and any(file.path.startswith(f"{folder}/") for file in process.open_files())


def name_of(process: Any) -> str:
    """Return a process's name, or nothing where it has ended."""
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def words_of(process: Any) -> str:
    """Return what a process was called with, or nothing where it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def end_processes(processes: Iterable[Any], grace_s: float) -> int:
    """Send SIGTERM, wait, send SIGKILL to what is left, and wait for that.

    Raises:
        ClusterError: A process is still there after SIGKILL.
    """
    ended = list(processes)
    _signal(ended, "terminate")
    left = _outlasting(ended, grace_s)
    _signal(left, "kill")
    # A busy machine takes its time to end even what is killed.
    after_s = max(grace_s, END_GRACE_S)
    if left := _outlasting(left, after_s):
        pids = ", ".join(str(process.pid) for process in left)
        raise ClusterError(f"processes {pids}: did not end {after_s:.0f} s after SIGKILL", "they wait for a disk or a device; see `ps`")
    return len(ended)


def _signal(processes: Iterable[Any], method: str) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            getattr(process, method)()


def _outlasting(processes: list[Any], grace_s: float) -> list[Any]:
    # Not psutil.wait_procs: orphans that nobody reaps stay as zombies in many containers, and it would wait for them.
    deadline = time.monotonic() + grace_s
    while (left := [process for process in processes if _lives(process)]) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return left


def _lives(process: Any) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
