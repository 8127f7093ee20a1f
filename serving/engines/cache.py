"""This user's folder for what may be lost, and what tells one machine's processor from another's."""

import os
import platform
import stat
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """Return where things of a kind are kept between processes; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twohead" / kind


def is_own(path: Path) -> bool:
    """Tell whether a path exists and nobody but this user and root can change what it leads to.

    As OpenSSH's StrictModes: every folder above it counts, since who may write to one can put another in the place of the next.
    """
    try:
        whole = path.resolve(strict=True)
        found = [one.stat() for one in (whole, *whole.parents)]
    except OSError:
        return False
    for facts in found:
        is_guarded = not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or facts.st_mode & stat.S_ISVTX
        if facts.st_uid not in (0, os.geteuid()) or not is_guarded:
            return False
    return True


def processor() -> str:
    """Return what the processor is and can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
