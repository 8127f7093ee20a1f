"""python -m cluster: its verbs, what they print, and that `--help` is light."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cluster import jobs, launcher, state
from cluster.__main__ import main
from cluster.errors import ClusterError
from cluster.facts import Facts
from cluster.jobs import Job
from cluster.place import Place
from cluster.storage import Storage

FakeT = TypeVar("FakeT")
VERBS = ("up", "status", "submit", "jobs", "logs", "stop", "drain", "down", "check", "render")
HEAVY = ("ray", "torch", "pandas", "transformers", "optuna", "fastapi")
FACTS = Facts("127.0.0.1:1", "http://127.0.0.1:2", "/tmp/twohead-x", "/tmp/token", (3,), "here", 0.0)


class FakeJobs:
    """Jobs of a cluster that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.found = [_job("job-1", "RUNNING"), _job("job-2", "SUCCEEDED", exit_code=0)]
        self.end = _job("job-1", "SUCCEEDED", exit_code=0)

    def submit(self, words: list[str], shipment: Any, name: str | None, place: Place) -> str:
        self.asked.append((words, shipment.folder, name))
        self.place = place
        return "job-1"

    def lacks(self, place: Place) -> str:
        return "no node fits yet" if place.labels else ""

    def all(self) -> list[Job]:
        return self.found

    def find(self, prefix: str) -> Job:
        return next(job for job in self.found if job.id.startswith(prefix))

    def log(self, job_id: str) -> str:
        return f"log of {job_id}"

    def follow(self, job_id: str, write: Any) -> Job:
        write("a line\n")
        return self.end

    def stop(self, job_id: str) -> Job:
        self.asked.append(job_id)
        return _job(job_id, "STOPPED")


def _job(job_id: str, state: str, exit_code: int | None = None) -> Job:
    return Job(job_id, None, "me@here", state, time.time() - 130, f"python -c 'one\ntwo' {'x' * 80}", exit_code)


def let_reach(fake: FakeT, monkeypatch: pytest.MonkeyPatch, folder: Path) -> FakeT:
    """Let every address lead to a cluster's jobs, from an empty folder."""

    @contextmanager
    def open_jobs(settings: Any) -> Iterator[FakeT]:
        yield fake

    monkeypatch.setattr(jobs, "open_jobs", open_jobs)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("TWOHEAD_STORAGE", raising=False)
    return fake


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeJobs:
    """A cluster with two jobs; the working folder is empty."""
    return let_reach(FakeJobs(), monkeypatch, tmp_path)


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom cluster.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("usage: python -m cluster")
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_the_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out = capsys.readouterr().out
    assert all(f"\n    {verb} " in out for verb in VERBS)


def test_up_tells_where_and_never_the_token(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(launcher, "up", lambda settings, say: launcher.Launch(FACTS, is_new=True))
    assert main(["up"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("cluster is up after ")
    assert lines[1:] == ["dashboard and Jobs API: http://127.0.0.1:2", "token: in /tmp/token"]


def test_up_again_is_fine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(launcher, "up", lambda settings, say: launcher.Launch(FACTS, is_new=False))
    assert main(["up"]) == 0
    assert capsys.readouterr().out.startswith("cluster is already running since ")


def test_submit_takes_everything_after_the_dashes(cluster: FakeJobs, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["python", "-m", "training", "tune", "--config", "x.yaml", "--name", "n", "--", "--help"]
    assert main(["submit", "--name", "search", "--", *words]) == 0
    assert cluster.asked == [(words, tmp_path, "search")]
    assert capsys.readouterr().out.splitlines() == [
        f"shipped {tmp_path}: 0 files, 0 B",
        "job job-1",
        "a line",
        "job job-1: SUCCEEDED, exit code 0",
    ]


def test_a_failed_job_is_a_failed_submit(cluster: FakeJobs, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.end = _job("job-1", "FAILED", exit_code=3)
    assert main(["submit", "--", "false"]) == 1
    assert capsys.readouterr().out.endswith("job job-1: FAILED, exit code 3\n")


def test_submit_without_waiting_prints_the_id_alone(cluster: FakeJobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--no-wait", "--", "true"]) == 0
    assert capsys.readouterr().out == "job-1\n"


def test_a_job_can_be_told_where_to_run(cluster: FakeJobs, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--on", "trials", "--on", "market=spot", "--cpus", "2", "--gpus", "0.5"]
    assert main(["submit", "--no-wait", *where, "--", "true"]) == 0
    assert cluster.place == Place({"ray.io/node-group": "trials", "market": "spot"}, 2.0, 0.5)
    said = capsys.readouterr()
    # What a script reads stays the id alone.
    assert (said.out, said.err) == ("job-1\n", "no node fits yet\n")
    assert main(["submit", "--on", "a b", "--", "true"]) == 2
    assert "--on a b: must be a node type like trials, or a label like market=spot" in capsys.readouterr().err


def test_submit_without_dashes_is_refused(cluster: FakeJobs, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["submit", "python", "x.py"])
    assert ended.value.code == 2
    assert "unrecognized arguments: python x.py" in capsys.readouterr().err


def test_ctrl_c_leaves_the_job_running(cluster: FakeJobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(job_id: str, write: Any) -> Job:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "follow", interrupt)
    assert main(["logs", "-f", "job-1"]) == 130
    assert capsys.readouterr().out == "\njob job-1 goes on; `python -m cluster logs -f job-1` follows it, `stop job-1` ends it\n"
    assert cluster.asked == []


def test_jobs_are_a_table_with_short_commands(cluster: FakeJobs, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    event = {"kind": "epoch", "trial": {"name": "trial-0"}, "report": {"score": 0.25}}
    for path, content in (("search.json", "{}"), ("jobs/job-1", ""), ("ledger/000001.json", json.dumps(event))):
        Storage(str(tmp_path)).write_bytes(f"searches/ads/{path}", content.encode())
    assert main(["jobs", "--set", f"cluster.storage={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["JOB", "NAME", "OWNER", "STATE", "STARTED", "BEST", "COMMAND"]
    assert lines[1] == f"job-1  –     me@here  RUNNING    2 min ago  0.250  python -c 'one two' {'x' * 39}…"
    assert len(lines) == 3
    cluster.found = []
    assert main(["jobs"]) == 0
    assert capsys.readouterr().out == "no jobs\n"


def test_logs_print_what_there_is(cluster: FakeJobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "job-2"]) == 0
    assert capsys.readouterr().out == "log of job-2"
    assert main(["logs", "job-1", "--follow"]) == 0
    assert capsys.readouterr().out == "a line\njob job-1: SUCCEEDED, exit code 0\n"


def test_stop_tells_the_end_and_spares_what_has_ended(cluster: FakeJobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", "job-1"]) == 0
    assert main(["stop", "job-2"]) == 0
    assert capsys.readouterr().out == "job job-1: STOPPED\njob job-2: SUCCEEDED\n"
    assert cluster.asked == ["job-1"]


HEADS = {"running": 1, "target": 2, "versions": [3, 4], "requests_per_second": 41.5, "queued_seconds": None}
STATE = {
    "address": "http://127.0.0.1:2",
    "started_at_s": None,
    "nodes": 1,
    "resources": {"CPU": {"used": 1.5, "total": 2.0}, "GPU": {"used": 0.0, "total": 1.0}},
    "hosts": [
        {"name": "one", "address": "10.0.0.1", "is_head": True, "resources": {"CPU": 2.0}},
        {"name": "two", "address": "10.0.0.2", "is_head": False, "resources": {"CPU": 4.0, "GPU": 1.0}},
    ],
    "jobs": [{"id": "job-1", "name": "n", "owner": "me@here", "state": "RUNNING", "started_at_s": None, "best": 0.5, "entrypoint": "true"}],
    "searches": [{"name": "ads", "begun": "x", "jobs": ["job-1"], "done": 3, "running": 2, "failed": 1, "best": 0.5, "is_running": True}],
    "warnings": ["node 10.0.0.3 is lost"],
    "applications": {"twohead": {"status": "RUNNING", "message": "", "replicas": {"Heads": HEADS}}},
}


def test_status_is_one_screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(state, "state", lambda settings, searches: STATE)
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "http://127.0.0.1:2",
        "1 node, CPU 1.5 of 2 in use, GPU 0 of 1 in use",
        "",
        "warning: node 10.0.0.3 is lost",
        "",
        "NODE  ADDRESS         CPU  GPU",
        "one   10.0.0.1  head    2    0",
        "two   10.0.0.2          4    1",
        "",
        "JOB    NAME  OWNER    STATE    STARTED   BEST  COMMAND",
        "job-1  n     me@here  RUNNING  –        0.500  true",
        "",
        "SEARCH  STATE    BEGUN  TRIALS DONE  RUNNING  FAILED   BEST",
        "ads     running  –                3        2       1  0.500",
        "",
        "DEPLOYMENT     STATUS   VERSION  RUNNING  WANTED  REQUESTS/S  QUEUED S",
        "twohead/Heads  RUNNING  3, 4           1       2        41.5         –",
    ]


def test_status_of_an_empty_cluster(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    empty = {
        **STATE,
        "nodes": 2,
        "hosts": [],
        "jobs": [],
        "searches": [],
        "warnings": [],
        "applications": {},
        "started_at_s": time.time() - 2 * 86400,
    }
    monkeypatch.setattr(state, "state", lambda settings, searches: empty)
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "http://127.0.0.1:2, since 2 d ago"
    assert lines[1].startswith("2 nodes, ")
    assert lines[3:] == ["no jobs", "", "nothing is served"]


def test_status_is_watched_until_it_is_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(state, "state", lambda settings, searches: STATE)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    assert main(["status", "--watch", "2"]) == 130
    assert waits == [2, 2]
    assert capsys.readouterr().out.count("\x1b[Hhttp://127.0.0.1:2\x1b[K\n") == 2


def test_a_watched_cluster_that_does_not_answer_once_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[Any] = [STATE, ClusterError("it is busy", "ask again"), STATE]

    def look(settings: object, searches: object) -> dict[str, Any]:
        if isinstance(found[0], ClusterError):
            raise found.pop(0)
        seen: dict[str, Any] = found.pop(0)
        return seen

    def sleep(seconds: float) -> None:
        if not found:
            raise KeyboardInterrupt

    monkeypatch.setattr(state, "state", look)
    monkeypatch.setattr(time, "sleep", sleep)
    assert main(["status", "--watch", "2"]) == 130
    screens = capsys.readouterr().out.split("\x1b[H")[1:]
    assert [screen.split("\x1b")[0] for screen in screens] == ["http://127.0.0.1:2", "it is busy", "http://127.0.0.1:2"]
    assert "hint: ask again" in screens[1]
    # The first look tells as without --watch.
    found.append(ClusterError("no cluster is running"))
    assert main(["status", "--watch", "2"]) == 2


def test_status_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(state, "state", lambda settings, searches: STATE)
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STATE


def test_check_reads_the_section_and_the_launcher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ray_config.yaml"
    path.write_text("cluster: {launcher: {cluster_name: ads, provider: {type: local, head_ip: 10.0.0.1, worker_ips: []}}}")
    assert main(["check", "--config", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: the section cluster is fine\n"
    path.write_text("cluster: {launcher: {cluster_name: ads}}")
    assert main(["check", "--config", str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: cluster.launcher: ")
    path.write_text("cluster: {num_cpus: 0}")
    assert main(["check", "--config", str(path)]) == 2
    assert "cluster.num_cpus is 0" in capsys.readouterr().err
