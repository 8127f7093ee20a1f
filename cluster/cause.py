"""Shortens what Ray says of a failure to what a person can read in a line."""

import re

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_RAISED = re.compile(r"^(?:\w+\.)+\w+: ")


def cause(message: str) -> str:
    """Return what was raised, where a message ends in a traceback, and all of it in one line elsewhere; nothing where it says nothing."""
    # Ray's client ends a server's whole answer with a full stop, which stands on a line of its own after a traceback; and a task's error
    # has a coloured line about its process where Python writes "Traceback".
    lines = [line.strip() for line in _COLOUR.sub("", message).splitlines() if line.strip(" .")]
    is_traceback = "Traceback" in message or any(line.startswith('File "') for line in lines)
    return _RAISED.sub("", lines[-1]) if is_traceback and lines else " ".join(lines)


def cause_of(error: Exception) -> str:
    """Return the same of what a client of Ray raised; its type's name where it says nothing."""
    return cause(str(error)) or type(error).__name__
