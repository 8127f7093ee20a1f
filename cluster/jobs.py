"""Submits commands to a cluster as jobs, and follows, lists and stops them, through Ray's Jobs API.

A job is an ordinary command line that runs on the cluster in a copy of the working folder. It does not know
what the command does: an outcome is an exit code.
"""

import asyncio
import logging
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cluster.cause import cause_of
from cluster.connection import reach
from cluster.dashboard import PATIENCE_S, list_nodes
from cluster.errors import ClusterError, JobError
from cluster.people import user_name
from cluster.place import Place, missing
from cluster.runtime_env import STOP_PATIENCE_S, Shipment, runtime_env
from cluster.settings import ClusterSettings

NAME_KEY, OWNER_KEY = "name", "owner"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# How long a lost connection may stay lost while a log is followed.
LOST_PATIENCE_S = 60.0
_POLL_S = 0.5
# What has room begins within so long.
_START_S = 10.0
_NAMED = 8
_TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
_RETRY_S = 2.0
_LOST_HINT = "`python -m cluster status` tells whether it still runs"


@dataclass(frozen=True)
class Job:
    """A command that was submitted.

    Attributes:
        id: Its name on the cluster.
        name: What `--name` said.
        owner: Who submitted it, and from which machine.
        state: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        started_at_s: Unix time.
        entrypoint: Its command line.
        exit_code: Of the command; None before its end, and after a kill.
    """

    id: str
    name: str | None
    owner: str | None
    state: str
    started_at_s: float | None
    entrypoint: str
    exit_code: int | None

    @property
    def is_ended(self) -> bool:
        """Whether its state is final."""
        return self.state in ENDED


class Jobs:
    """The jobs of one cluster; made by `open_jobs`.

    Args:
        client: Ray's `JobSubmissionClient`.
        settings: The section `cluster`.
        url: Of the dashboard.
    """

    def __init__(self, client: Any, settings: ClusterSettings, url: str = "") -> None:
        self._client = client
        self._settings = settings
        self._url = url

    def submit(self, words: Sequence[str], shipment: Shipment, name: str | None = None, place: Place | None = None) -> str:
        """Ship a folder and start a command in its copy.

        Args:
            words: The command and its arguments, unquoted. A first word `python` becomes this interpreter
                when the cluster is this machine.
            shipment: The folder to ship, see `survey`.
            name: Shown in the list of jobs.
            place: Where the command runs; it waits until there is room.

        Returns:
            The job's id.

        Raises:
            JobError: There is no command.
            ClusterError: The cluster refuses the job.
        """
        if not words:
            raise JobError("there is no command to submit", "put it after two dashes: python -m cluster submit -- python -m training tune")
        job_id = f"job-{secrets.token_hex(4)}"
        first = sys.executable if self._settings.is_local and words[0] in ("python", "python3") else words[0]
        with _told("take the job"):
            submitted: str = self._client.submit_job(
                entrypoint=shlex.join([first, *words[1:]]),
                submission_id=job_id,
                runtime_env=runtime_env(self._settings, shipment, job_id),
                metadata={OWNER_KEY: f"{user_name()}@{socket.gethostname()}"} | ({NAME_KEY: name} if name else {}),
                **_placed(place or Place()),
            )
        return submitted

    def lacks(self, place: Place) -> str:
        """Tell what a job waits for, where no node fits its place yet; see `cluster.place.missing`.

        Raises:
            JobError: There never will be such a node.
        """
        if not place.labels:
            return ""
        labels = [node["labels"] or {} for node in list_nodes(self._url, PATIENCE_S) if node["state"] == "ALIVE"]
        return missing(place, labels, self._settings.launcher)

    def all(self) -> list[Job]:
        """List the submitted jobs, newest first."""
        with _told("list the jobs"):
            found = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: -(job.started_at_s or 0))

    def find(self, prefix: str) -> Job:
        """Find the job with this id, or the only one whose id or id after `job-` begins so.

        Raises:
            JobError: No job or several jobs fit.
        """
        jobs = self.all()
        fitting = [job for job in jobs if prefix and (job.id.startswith(prefix) or job.id.removeprefix("job-").startswith(prefix))]
        exact = [job for job in fitting if job.id == prefix]
        if len(exact or fitting) == 1:
            return (exact or fitting)[0]
        if fitting:
            raise JobError(f"job {prefix!r}: could be {_ids(fitting)}", "give more of the id")
        raise JobError(f"job {prefix!r}: is unknown; there is {_ids(jobs)}" if jobs else f"job {prefix!r}: is unknown; there are no jobs")

    def log(self, job_id: str) -> str:
        """Return what a job has printed so far."""
        with _told("give the log"):
            text: str = self._client.get_job_logs(job_id)
        return text

    def follow(self, job_id: str, write: Callable[[str], object]) -> Job:
        """Give what a job has printed and prints until it ends; a lost connection is taken up where it broke.

        Args:
            job_id: The whole id.
            write: Gets pieces of text that end anywhere.

        Returns:
            The ended job.

        Raises:
            ClusterError: The cluster is gone for longer than a minute.
        """
        shown = _Shown(write)
        lost_at: float | None = None
        while True:
            try:
                asyncio.run(_tail(self._client, job_id, shown))
                job = self._get(job_id)
                if job.is_ended:
                    # The tail may end before the last lines of a job that was stopped.
                    shown.begin()
                    shown.add(self._client.get_job_logs(job_id))
            except _lost() as error:
                lost_at = time.monotonic() if shown.is_begun or lost_at is None else lost_at
                if time.monotonic() - lost_at > LOST_PATIENCE_S:
                    raise ClusterError(f"job {job_id}: lost the cluster while following its log ({cause_of(error)})", _LOST_HINT) from None
            else:
                if job.is_ended:
                    return job
                lost_at = None
            time.sleep(_RETRY_S)

    def wait(self, job_id: str, patience_s: float = float("inf")) -> Job:
        """Wait for a job's end.

        Raises:
            JobError: It did not end in time.
        """
        deadline = time.monotonic() + patience_s
        while True:
            with _told("tell the job's state"):
                job = self._get(job_id)
            if job.is_ended:
                return job
            if time.monotonic() > deadline:
                raise JobError(f"job {job_id}: is still {job.state} after {patience_s:.0f} s", "look at `logs`, or try again")
            time.sleep(_POLL_S)

    def stop(self, job_id: str) -> Job:
        """Ask a job to end (SIGTERM, and SIGKILL after half a minute) and wait until it has.

        Ray stops a job that waits for its node or for CPUs at the moment when it gets them: such a job is returned as it is, PENDING.

        Raises:
            JobError: It did not end.
        """
        with _told("stop the job"):
            self._client.stop_job(job_id)
            deadline = time.monotonic() + _START_S
            while (job := self._get(job_id)).state == "PENDING":
                if time.monotonic() > deadline:
                    return job
                time.sleep(_POLL_S)
        return self.wait(job_id, STOP_PATIENCE_S * 2)

    def _get(self, job_id: str) -> Job:
        return _job(self._client.get_job_info(job_id))


@contextmanager
def open_jobs(settings: ClusterSettings) -> Iterator[Jobs]:
    """Give the jobs of the running cluster.

    Raises:
        ClusterError: No cluster is running, or it does not answer.
    """
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    with reach(settings) as url:
        with _told("answer"):
            client = JobSubmissionClient(url)
        yield Jobs(client, settings, url)


class _Shown:
    """Counts the characters that were written, so that a log that begins anew is taken up where it broke."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._done = 0
        self._seen = 0

    @property
    def is_begun(self) -> bool:
        """Whether anything of the log has come since `begin`."""
        return self._seen > 0

    def begin(self) -> None:
        """Expect the log from its first character."""
        self._seen = 0

    def add(self, text: str) -> None:
        """Write what of the next piece was not written yet."""
        fresh = text[max(0, self._done - self._seen) :]
        self._seen += len(text)
        if fresh:
            self._write(fresh)
            self._done = self._seen


async def _tail(client: Any, job_id: str, shown: _Shown) -> None:
    shown.begin()
    async for piece in client.tail_job_logs(job_id):
        shown.add(piece)


def _lost() -> tuple[type[Exception], ...]:
    import aiohttp
    from ray.exceptions import RayError

    return (aiohttp.ClientError, OSError, RuntimeError, RayError)


@contextmanager
def _told(doing: str) -> Iterator[None]:
    """Turn what Ray's client raises into an error that a person can read."""
    from ray.exceptions import RayError

    try:
        yield
    except (OSError, RuntimeError, ValueError, RayError) as error:
        said = f"the cluster could not {doing}: {cause_of(error)}"
        raise ClusterError(said, "`python -m cluster status` tells what is running") from error


def _placed(place: Place) -> dict[str, Any]:
    # What is left out stays Ray's default, which keeps a job that asks for nothing on the head.
    found = {"entrypoint_num_cpus": place.cpus, "entrypoint_num_gpus": place.gpus, "entrypoint_label_selector": dict(place.labels)}
    return {name: value for name, value in found.items() if value}


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        name=(details.metadata or {}).get(NAME_KEY),
        owner=(details.metadata or {}).get(OWNER_KEY),
        state=str(getattr(details.status, "value", details.status)),
        started_at_s=details.start_time / 1000 if details.start_time else None,
        entrypoint=details.entrypoint,
        exit_code=details.driver_exit_code,
    )


def _ids(jobs: Sequence[Job]) -> str:
    listed = ", ".join(job.id for job in jobs[:_NAMED])
    return listed if len(jobs) <= _NAMED else f"{listed} and {len(jobs) - _NAMED} more"
