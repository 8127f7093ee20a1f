"""Where a replica's log lines go, and what stands in them: Serve's own file and format, and the version that answers.

As JSON (`serving.log_format`), a line is an object with asctime, levelname, name, message, replica and version, and what else Serve knows.
Serve writes it; here only the version is added. No line holds a text.
"""

import logging
from collections.abc import Callable
from typing import Any

from serving.settings import ServingSettings


class VersionFilter(logging.Filter):
    """Lets every line pass, and adds the version that answers.

    Args:
        version: Gives its number; None while none does.
    """

    def __init__(self, version: Callable[[], int | None]) -> None:
        super().__init__()
        self._version = version

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the version to a line, once there is one."""
        if (version := self._version()) is not None:
            record.version = version
        return True


def log_with_serve(version: Callable[[], int | None] | None = None) -> None:
    """Let our own log lines go where Serve's go: the replica's file, without request contents; from now on Serve only warns.

    Serve makes a line about every request before it finds that nobody wants them: .02 ms of CPU.

    Args:
        version: Gives the number of the version that answers, for lines that tell it.
    """
    serves = logging.getLogger("ray.serve")
    serves.setLevel(logging.WARNING)
    handlers = serves.handlers
    if version is not None:
        for handler in handlers:
            handler.addFilter(VersionFilter(version))
    ours = logging.getLogger("serving")
    ours.handlers = handlers
    ours.setLevel(logging.INFO)
    ours.propagate = False


def serve_logging(settings: ServingSettings) -> dict[str, Any]:
    """Describe the replicas' log lines in Serve's terms (`LoggingConfig`)."""
    told: dict[str, Any] = {"enable_access_log": False}
    if settings.log_format == "json":
        told |= {"encoding": "JSON", "additional_log_standard_attrs": ["name"]}
    return told
