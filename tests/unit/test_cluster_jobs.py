"""cluster.jobs: submitting, finding, following and stopping, against a Jobs API that only remembers."""

import getpass
import shlex
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import jobs as module
from cluster.errors import ClusterError, JobError
from cluster.jobs import Jobs
from cluster.place import Place
from cluster.runtime_env import Shipment
from cluster.settings import ClusterSettings


class FakeApi:
    """Answers like Ray's JobSubmissionClient; `logs` are the attempts to read a log, one after the other."""

    def __init__(self, *ids: str) -> None:
        self.details = {job_id: _details(job_id, start_time=number) for number, job_id in enumerate(ids)}
        self.submitted: dict[str, Any] = {}
        self.logs: list[list[str | Exception]] = []
        self.states: list[str] = []
        self.stopped: list[str] = []
        self.whole: str | None = None

    def submit_job(self, **options: Any) -> str:
        self.submitted = options
        return str(options["submission_id"])

    def list_jobs(self) -> list[Any]:
        return [*self.details.values(), _details(None)]

    def get_job_info(self, job_id: str) -> Any:
        if self.states:
            self.details[job_id].status = self.states.pop(0)
        return self.details[job_id]

    def get_job_logs(self, job_id: str) -> str:
        if self.whole is None:
            raise RuntimeError("Request failed with status code 500: no\nmore")
        return self.whole

    def stop_job(self, job_id: str) -> bool:
        self.stopped.append(job_id)
        return True

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for piece in self.logs.pop(0):
            if isinstance(piece, Exception):
                raise piece
            yield piece


def _details(job_id: str | None, **changes: Any) -> Any:
    base = {"submission_id": job_id, "status": "RUNNING", "metadata": {}, "start_time": 0, "entrypoint": "true", "driver_exit_code": None}
    return SimpleNamespace(**{**base, **changes})


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.0)
    monkeypatch.setattr(module, "_POLL_S", 0.0)
    monkeypatch.setattr(module, "_START_S", 0.01)


def _jobs(api: FakeApi, **settings: Any) -> Jobs:
    return Jobs(api, ClusterSettings(**settings))


def test_words_are_quoted_for_the_shell_and_python_is_this_one(tmp_path: Path) -> None:
    api = FakeApi()
    words = ["python", "-c", "print('a b'); $HOME", "--set", "x.y=[1, 2]", "--", "-f"]
    job_id = _jobs(api, storage=str(tmp_path)).submit(words, Shipment(tmp_path, {}), "first try")
    assert shlex.split(api.submitted["entrypoint"]) == [sys.executable, *words[1:]]
    assert api.submitted["metadata"] == {"owner": f"{getpass.getuser()}@{socket.gethostname()}", "name": "first try"}
    assert api.submitted["runtime_env"]["env_vars"]["TWOHEAD_STORAGE"] == str(tmp_path)
    assert api.submitted["runtime_env"]["env_vars"]["TWOHEAD_JOB"] == job_id
    assert job_id == api.submitted["submission_id"]
    assert job_id.startswith("job-")


@pytest.mark.parametrize(
    ("address", "words"), [("http://head:8265", ["python", "x.py"]), ("local", ["./python", "x"]), ("local", ["true"])]
)
def test_other_programs_stay_as_they_are(tmp_path: Path, address: str, words: list[str]) -> None:
    api = FakeApi()
    _jobs(api, address=address).submit(words, Shipment(tmp_path, {}))
    assert shlex.split(api.submitted["entrypoint"]) == words
    assert "name" not in api.submitted["metadata"]


def test_a_job_runs_where_it_is_told_and_else_on_the_head(tmp_path: Path) -> None:
    api = FakeApi()
    _jobs(api).submit(["true"], Shipment(tmp_path, {}))
    assert not [option for option in api.submitted if option.startswith("entrypoint_")]
    _jobs(api).submit(["true"], Shipment(tmp_path, {}), place=Place({"market": "spot"}, cpus=2.0))
    asked = {option: value for option, value in api.submitted.items() if option.startswith("entrypoint_")}
    assert asked == {"entrypoint_label_selector": {"market": "spot"}, "entrypoint_num_cpus": 2.0}


def test_a_command_is_needed(tmp_path: Path) -> None:
    with pytest.raises(JobError) as raised:
        _jobs(FakeApi()).submit([], Shipment(tmp_path, {}))
    assert raised.value.message == "there is no command to submit"
    assert raised.value.hint == "put it after two dashes: python -m cluster submit -- python -m training tune"


def test_submitted_jobs_are_listed_newest_first() -> None:
    assert [job.id for job in _jobs(FakeApi("job-a", "job-b")).all()] == ["job-b", "job-a"]


@pytest.mark.parametrize("prefix", ["job-ab1", "job-ab", "ab1", "a"])
def test_the_beginning_of_an_id_is_enough(prefix: str) -> None:
    assert _jobs(FakeApi("job-ab1", "job-cd2")).find(prefix).id == "job-ab1"


def test_a_whole_id_wins_over_a_longer_one() -> None:
    assert _jobs(FakeApi("job-a", "job-ab")).find("job-a").id == "job-a"


@pytest.mark.parametrize(
    ("prefix", "ids", "message"),
    [
        ("a", ["job-ab", "job-ac"], "job 'a': could be job-ac, job-ab"),
        ("x", ["job-ab", "job-ac"], "job 'x': is unknown; there is job-ac, job-ab"),
        ("", ["job-ab"], "job '': is unknown; there is job-ab"),
        ("x", [], "job 'x': is unknown; there are no jobs"),
        (
            "x",
            [f"job-{n}" for n in range(10)],
            f"job 'x': is unknown; there is {', '.join(f'job-{n}' for n in range(9, 1, -1))} and 2 more",
        ),
    ],
)
def test_an_id_that_fits_no_or_several_jobs_is_said(prefix: str, ids: list[str], message: str) -> None:
    with pytest.raises(JobError) as raised:
        _jobs(FakeApi(*ids)).find(prefix)
    assert raised.value.message == message


def test_a_log_is_followed_to_the_end() -> None:
    api = FakeApi("job-a")
    api.logs, api.states, api.whole = [["one\n", "two\n"]], ["FAILED"], "one\ntwo\n"
    api.details["job-a"].driver_exit_code = 3
    text: list[str] = []
    job = _jobs(api).follow("job-a", text.append)
    assert ("".join(text), job.state, job.exit_code) == ("one\ntwo\n", "FAILED", 3)


def test_a_lost_connection_is_taken_up_where_it_broke() -> None:
    api = FakeApi("job-a")
    api.logs = [
        ["one\n", "tw", RuntimeError("closed")],
        [OSError("refused")],
        ["one\ntwo\nth", RuntimeError("closed")],
        ["one\ntwo\n", "three\n"],
    ]
    api.states, api.whole = ["SUCCEEDED"], "one\ntwo\nthree\n"
    text: list[str] = []
    assert _jobs(api).follow("job-a", text.append).state == "SUCCEEDED"
    assert "".join(text) == "one\ntwo\nthree\n"


def test_a_log_that_ends_before_its_job_is_read_again() -> None:
    api = FakeApi("job-a")
    api.logs, api.states, api.whole = [["one\n"], ["one\n", "two\n"]], ["RUNNING", "SUCCEEDED"], "one\ntwo\n"
    text: list[str] = []
    _jobs(api).follow("job-a", text.append)
    assert "".join(text) == "one\ntwo\n"


def test_what_a_job_says_last_is_not_lost_with_the_end_of_its_tail() -> None:
    api = FakeApi("job-a")
    api.logs, api.states, api.whole = [["one\n"]], ["STOPPED"], "one\nput away\n"
    text: list[str] = []
    _jobs(api).follow("job-a", text.append)
    assert "".join(text) == "one\nput away\n"


def test_a_cluster_that_stays_lost_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    api = FakeApi("job-a")
    api.logs = [["one\n", RuntimeError("closed")], [OSError("refused\nby the host")]]
    monkeypatch.setattr(module, "LOST_PATIENCE_S", -1.0)
    with pytest.raises(ClusterError) as raised:
        _jobs(api).follow("job-a", lambda text: None)
    assert raised.value.message == "job job-a: lost the cluster while following its log (closed)"
    assert raised.value.hint == "`python -m cluster status` tells whether it still runs"


def test_stopping_waits_for_the_end() -> None:
    api = FakeApi("job-a")
    api.states = ["RUNNING", "RUNNING", "STOPPED"]
    assert _jobs(api).stop("job-a").state == "STOPPED"
    assert api.stopped == ["job-a"]


def test_a_job_that_waits_for_room_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    api = FakeApi("job-a")
    api.details["job-a"].status = "PENDING"
    assert _jobs(api).stop("job-a").state == "PENDING"
    # One that only starts is.
    monkeypatch.setattr(module, "_START_S", 60.0)
    api.states = ["PENDING", "RUNNING", "STOPPED"]
    assert _jobs(api).stop("job-a").state == "STOPPED"


def test_of_a_servers_traceback_its_cause_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = (
        "Request failed with status code 500: Traceback (most recent call last):\n  File ...\nOSError: [Errno 28] No space left\n. \n."
    )
    api = FakeApi("job-a")

    def refuse(*_: object) -> None:
        raise RuntimeError(answered)

    monkeypatch.setattr(api, "get_job_logs", refuse)
    with pytest.raises(ClusterError, match=r"^the cluster could not give the log: OSError: \[Errno 28\] No space left$"):
        _jobs(api).log("job-a")


def test_a_job_that_does_not_end_is_said() -> None:
    with pytest.raises(JobError) as raised:
        _jobs(FakeApi("job-a")).wait("job-a", patience_s=0.0)
    assert raised.value.message == "job job-a: is still RUNNING after 0 s"
    assert raised.value.hint == "look at `logs`, or try again"


def test_what_ray_raises_is_said_in_one_line() -> None:
    with pytest.raises(ClusterError) as raised:
        _jobs(FakeApi("job-a")).log("job-a")
    assert raised.value.message == "the cluster could not give the log: Request failed with status code 500: no more"
    assert raised.value.hint == "`python -m cluster status` tells what is running"
