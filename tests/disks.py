"""Small disks, to fill."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a disk on an empty folder for the length of the block, or skip the test where nobody may.

    Args:
        folder: Is made.
        size: Like `32k` or `200M`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a full disk needs the right to mount one: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def make_room(disk: Path) -> None:
    """Make a small disk larger, as somebody would who deletes things."""
    subprocess.run(["mount", "-o", "remount,size=64M", disk], check=True)
