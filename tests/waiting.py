"""Waiting for other processes, with an end: where an event tells of something, tests wait for that instead."""

import time
from collections.abc import Callable


def until(what: str, is_so: Callable[[], bool], patience_s: float = 120.0, every_s: float = 0.2) -> float:
    """Look until something is so, fail where it is not in time, and return how many seconds it took."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < patience_s, f"not within {patience_s:.0f} s: {what}"
        time.sleep(every_s)  # neither Ray nor a folder tells of it by itself
    return time.monotonic() - began
