"""Processes that a test starts, and that end with it however it ends: an open pipe would be held against another test."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def running(command: Sequence[str], **how: Any) -> "Iterator[subprocess.Popen[str]]":
    """Start a process for the length of the block; its output is read through a pipe."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **how)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
