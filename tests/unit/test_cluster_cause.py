"""What Ray says of a failure, shortened."""

import pytest

from cluster.cause import cause, cause_of
from tests.fake_serve import LATE


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (LATE, "TimeoutError: HTTP proxies not available after 60s."),
        # A task's error as Ray writes it: coloured, and without the word.
        (
            '\x1b[36mray::Controller.deploy()\x1b[39m (pid=7)\n  File "a.py", line 3, in deploy\nValueError: no route.\n.',
            "ValueError: no route.",
        ),
        ("Traceback (most recent call last):\n  File ...\nray.exceptions.RayActorError: The controller died.", "The controller died."),
        ("no node has\n 99 CPUs", "no node has 99 CPUs"),
        (" \n.", ""),
        ("Traceback", "Traceback"),
    ],
)
def test_of_a_traceback_what_was_raised_is_shown_and_all_of_anything_else(message: str, shown: str) -> None:
    assert cause(message) == shown


def test_an_error_without_words_is_told_by_its_type() -> None:
    assert cause_of(OSError("no\nroom")) == "no room"
    assert cause_of(TimeoutError()) == "TimeoutError"
