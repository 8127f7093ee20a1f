"""This user's folder for what may be lost, and what tells one machine's processor from another's."""

import os
import platform
import stat
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """Return where things of a kind are kept between processes; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twohead" / kind


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, each for this user alone, as XDG has it.

    Raises:
        OSError: One cannot be made.
    """
    # mkdir's own `parents` gives its mode to the last one only, and the others to this user's group where the umask is 002.
    if not folder.parent.exists():
        make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def is_own(path: Path) -> bool:
    """Tell whether a path exists and nobody but this user and root can change what it leads to."""
    return find_shared(path) is None


def find_shared(path: Path) -> Path | None:
    """Return what somebody but this user and root can change on the way to a path: it, or a folder above it; nothing where all is ours.

    As OpenSSH's StrictModes: every folder above it counts, since who may write to one can put another in the place of the next. What
    cannot be looked at is taken for somebody else's.
    """
    try:
        whole = path.resolve(strict=True)
        found = [(one, one.stat()) for one in (whole, *whole.parents)]
    except OSError:
        return path
    for one, facts in found:
        is_guarded = not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or facts.st_mode & stat.S_ISVTX
        if facts.st_uid not in (0, os.geteuid()) or not is_guarded:
            return one
    return None


def processor() -> str:
    """Return what the processor is and can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
