"""python -m cluster down: what is ended, whose jobs are stopped first, and whose are left alone."""

import time
from pathlib import Path
from typing import Any

import pytest

from cluster import jobs, launcher
from cluster.__main__ import main
from cluster.errors import ClusterError, JobError
from cluster.facts import Facts, write_facts
from cluster.jobs import Job
from cluster.machines import ray_up
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from tests.unit.test_cluster_main import let_reach

FACTS = Facts("127.0.0.1:1", "http://127.0.0.1:2", "/tmp/twohead-x", "/tmp/token", (3,), "here", 0.0)
KNOWN = b'{"dashboard_url": "http://lab:8265", "started_at_s": 0}'


class FakeJobs:
    """The jobs of any cluster, and which of them were asked to end; `stubborn` ones do not."""

    def __init__(self) -> None:
        self.stopped: list[str] = []
        self.stubborn: set[str] = set()

    def all(self) -> list[Job]:
        return [_job("job-1", "RUNNING"), _job("job-2", "SUCCEEDED"), _job("job-3", "PENDING")]

    def stop(self, job_id: str) -> Job:
        self.stopped.append(job_id)
        if job_id in self.stubborn:
            raise JobError(f"job {job_id}: is still RUNNING after 60 s")
        return _job(job_id, "STOPPED")


def _job(job_id: str, state: str) -> Job:
    return Job(job_id, None, "somebody@elsewhere", state, time.time(), "true", None)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeJobs:
    """A cluster that every address leads to; the working folder is empty, and home too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return let_reach(FakeJobs(), monkeypatch, tmp_path)


def test_running_jobs_are_ended_in_peace_first(
    there: FakeJobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_facts(ClusterSettings(), FACTS)
    monkeypatch.setattr(launcher, "down", lambda settings: len(there.stopped) + 7)
    assert main(["down"]) == 0
    assert there.stopped == ["job-1", "job-3"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["stopping job job-1 …", "stopping job job-3 …"]
    assert lines[2].endswith("(9 processes ended)")


def test_one_job_that_does_not_end_is_told_and_the_others_are_asked(
    there: FakeJobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there.stubborn = {"job-1"}
    write_facts(ClusterSettings(), FACTS)
    monkeypatch.setattr(launcher, "down", lambda settings: 3)
    assert main(["down"]) == 0
    assert there.stopped == ["job-1", "job-3"]
    assert capsys.readouterr().out.splitlines()[1] == "job job-1: is still RUNNING after 60 s"


def test_a_cluster_that_does_not_answer_is_ended_all_the_same(
    there: FakeJobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(settings: Any) -> Any:
        raise ClusterError("does not answer")

    monkeypatch.setattr(jobs, "open_jobs", gone)
    write_facts(ClusterSettings(), FACTS)
    monkeypatch.setattr(launcher, "down", lambda settings: None)
    assert main(["down"]) == 0
    assert capsys.readouterr().out == "no cluster was running\n"


def test_the_jobs_of_a_cluster_that_goes_on_are_left_alone(there: FakeJobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["down", "--set", "cluster.address=http://head:8265"]) == 0
    # Nothing was started for this storage either.
    assert main(["down"]) == 0
    assert there.stopped == []
    assert capsys.readouterr().out.splitlines() == [
        "the cluster at http://head:8265 was not started from here, and goes on",
        "no cluster was running",
    ]


@pytest.mark.parametrize(
    ("files", "address", "is_ours"),
    [
        ((), "local", False),
        (("facts.json",), "local", False),
        (("launcher.yaml",), "local", True),
        (("launcher.yaml", "facts.json"), "http://lab:8265", True),
        # Other machines than those that go.
        (("launcher.yaml", "facts.json"), "http://others:8265", False),
        (("launcher.yaml",), "http://lab:8265", False),
    ],
)
def test_of_several_machines_those_that_were_started_from_here_are_ours(
    there: FakeJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...], address: str, is_ours: bool
) -> None:
    monkeypatch.setattr(ray_up, "down", lambda settings, say: True)
    for name in files:
        Storage(str(tmp_path / ".twohead/clusters/lab")).write_bytes(name, KNOWN)
    described = "cluster.launcher={cluster_name: lab, provider: {type: local, head_ip: 10.0.0.1}}"
    assert main(["down", "--set", described, "--set", f"cluster.address={address}"]) == 0
    assert there.stopped == (["job-1", "job-3"] if is_ours else [])
