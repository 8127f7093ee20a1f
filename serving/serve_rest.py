"""Asks Ray Serve's REST interface, which a dashboard answers: its errors become ours, and what was only late is asked again.

It does not know what is deployed, nor when that answers.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from cluster.cause import cause_of
from cluster.errors import ClusterError
from serving.app import Config

Say = Callable[[str], None]
_T = TypeVar("_T")

# What a cluster that has just begun may need before it tells of Serve: its dashboard imports Serve for the first request.
PATIENCE_S = 60.0
_PAUSE_S = 1.0
# 501 is left out: Serve is not installed there.
_LATE = (500, 502, 503, 504)


class _LateError(ClusterError):
    """The interface failed by itself, which passes where something in the cluster was only late."""


class ServeClient(Protocol):
    """What is used of Ray's client of Serve's REST interface."""

    def get_serve_details(self) -> Config:
        """Describe what runs."""
        ...

    def deploy_applications(self, config: Config) -> None:
        """Make these applications, and no others, run."""
        ...

    def delete_applications(self) -> None:
        """End Serve."""
        ...

    def _upload_working_dir_if_needed(self, runtime_env: Config) -> None:
        """Upload a local folder, and put its URI in its place."""
        ...


def client_at(dashboard_url: str, say: Say) -> ServeClient:
    """Return Ray's client of Serve behind a dashboard that `cluster.connection` found.

    Raises:
        ClusterError: The dashboard does not answer, or fails for longer than `PATIENCE_S`.
    """
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    client: ServeClient = _in_time("the dashboard", lambda: ServeSubmissionClient(dashboard_url), None, _once(say))
    return client


class ServeRest:
    """Serve's REST interface in one cluster.

    Every call raises `ClusterError` where the dashboard does not answer or refuses. One that fails by itself (HTTP 500, 502, 503, 504) is
    made again, which is said once, until a moment of `time.monotonic`: by default `PATIENCE_S` after it began. It may end later than this
    by what Serve takes for one answer, a minute where its proxies start; Ray's client waits for an answer without a limit of its own.

    Args:
        client: Ray's, of the cluster's dashboard.
        say: Takes a line of progress.
    """

    def __init__(self, client: ServeClient, say: Say) -> None:
        self._client = client
        self._say = _once(say)

    def details(self, until: float | None = None) -> Config:
        """Describe what runs; `until` is when to give up."""
        return _in_time("Serve", self._client.get_serve_details, until, self._say)

    def put(self, make: Callable[[Config], Config], until: float | None = None) -> Config:
        """Make applications, and no others, run, and return what was put.

        Args:
            make: Returns them for what `details` describes at that moment, as others may have come or gone since the last try.
            until: When to give up.
        """

        def put() -> Config:
            config = make(self._client.get_serve_details())
            self._client.deploy_applications(config)
            return config

        return _in_time("Serve", put, until, self._say)

    def delete(self, check: Callable[[Config], None]) -> None:
        """End Serve; it may still be there afterwards.

        Args:
            check: Raises where it must not for what `details` describes at that moment.
        """

        def delete() -> None:
            check(self._client.get_serve_details())
            self._client.delete_applications()

        _in_time("Serve", delete, None, self._say)

    def upload(self, runtime_env: Config) -> None:
        """Upload the folder that `runtime_env` names, and put its URI in its place."""
        _in_time("the upload of the code", lambda: self._client._upload_working_dir_if_needed(runtime_env), None, self._say)


def _once(say: Say) -> Say:
    """Say no line twice in a row."""
    told = ""

    def say_once(line: str) -> None:
        nonlocal told
        if line != told:
            say(line)
            told = line

    return say_once


def _in_time(what: str, call: Callable[[], _T], until: float | None, say: Say) -> _T:
    until = time.monotonic() + PATIENCE_S if until is None else until
    while True:
        try:
            with _explained(what):
                return call()
        except _LateError as error:
            # After its minute Serve fails for proxies that are still being started; the next request finds them.
            if time.monotonic() > until:
                raise
            say(f"{error.message.rstrip('.')}; asked again")
            time.sleep(_PAUSE_S)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what Ray's client raises into our own error."""
    import requests

    try:
        yield
    except (RuntimeError, ConnectionError, requests.RequestException) as error:
        found = cause_of(error)
        kind = _LateError if _status_of(error) in _LATE else ClusterError
        raise kind(f"{what}: {found}", "`python -m cluster status` tells what is running") from error


def _status_of(error: Exception) -> int | None:
    """Find the HTTP status of what Ray's client raises: where it is made it raises `requests.HTTPError`, later it puts it into words."""
    response = getattr(error, "response", None)
    if response is not None:
        return int(response.status_code)
    found = re.match(r"Request failed with status code (\d+)", str(error))
    return int(found[1]) if found else None
