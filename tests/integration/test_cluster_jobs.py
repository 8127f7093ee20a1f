"""Tuning jobs on a real cluster of this machine: one that fails as a whole, one that is stopped and resumed, many in a row."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.dashboard import PATIENCE_S, list_state
from cluster.errors import ClusterError
from cluster.facts import Facts, read_facts
from cluster.jobs import open_jobs
from cluster.processes import name_of
from cluster.runtime_env import survey
from cluster.session import applied_to_ray, client_environment, free_port
from cluster.settings import ClusterSettings
from tests.ports import port_shift
from tests.waiting import until

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parents[2]
# Leaves a placement group and an actor behind, as a program that was ended would.
CARELESS = """
import ray
ray.init()
group = ray.util.placement_group([{"CPU": 0.1}])
ray.get(group.ready())
print(ray.get(ray.remote(num_cpus=0)(lambda: 6 * 7).remote()))
"""
# The same name on the driver's path and on a worker's.
SAYING = """
import ray
from mine import named
ray.init()
print(f"here {named()}, on a worker {ray.get(ray.remote(num_cpus=0)(lambda: __import__('mine').named()).remote())}")
"""


@dataclass
class Place:
    """A working folder with a table, a tiny encoder and a cluster that is up."""

    folder: Path

    def how(self) -> dict[str, Any]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TWOHEAD_"))}
        environment = kept | {"PYTHONPATH": str(SOURCE), "RAY_worker_niceness": "0"}
        return {"cwd": self.folder, "env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-m", "cluster", *words], **self.how())

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "cluster", *words], timeout=800, check=False, **self.how())

    def events(self, name: str) -> list[dict[str, Any]]:
        files = sorted((self.folder / f".twohead/searches/{name}/ledger").glob("*.json"))
        return [json.loads(file.read_text()) for file in files]

    @property
    def settings(self) -> ClusterSettings:
        return ClusterSettings(storage=str(self.folder / ".twohead"))

    def facts(self) -> Facts:
        found = read_facts(self.settings)
        assert found
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, make_encoder_in: Callable[..., Path]) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("jobs")
    rows = ["text,job,letter"]
    rows += [f"the {('nurse', 'driver')[index % 2]} {'abc'[index % 3]} {index},{index % 2},{'abc'[index % 3]}" for index in range(160)]
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    training = {
        "data": {"files": ["table.csv"]},
        "heads": {"job": {}, "letter": {}},
        "encoder": {"name": str(make_encoder_in(folder / "encoder")), "max_tokens": 16},
        "fit": {"epochs": 3, "frozen_layers": 0, "batch_texts": 8},
        "search_space": {"encoder_learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}},
        "tuning": {"num_samples": 2, "ladder": False, "scheduler": "none", "confirm_top": 0, "max_concurrent_trials": 1},
    }
    cluster = {"num_cpus": 2, "object_store_bytes": 100_000_000, "dashboard_port": free_port(18_265 + port_shift())}
    (folder / "ray_config.yaml").write_text(yaml.safe_dump({"cluster": cluster, "training": training}))
    found = Place(folder)
    done = found.run("up")
    assert done.returncode == 0, done.stderr
    yield found
    found.run("down")


def test_a_search_whose_trials_all_fail_is_a_failed_job_that_says_why(place: Place) -> None:
    space = "training.search_space={encoder_learning_rate: {choices: [1.0e+30, 2.0e+30]}, head_learning_rate: 1.0e+30}"
    more = ("--set", space, "--set", "training.fit.encoder_learning_rate=1e30", "--set", "training.fit.head_learning_rate=1e30")
    done = place.run("submit", "--name", "bad", "--", "python", "-m", "training", "tune", "--name", "bad", *more)
    assert done.returncode == 1
    assert "error: no trial brought a score: trial-0 diverged, trial-1 diverged" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(": FAILED, exit code 2")
    row = next(line for line in place.run("jobs").stdout.splitlines() if " bad " in line)
    assert "FAILED" in row


@pytest.mark.timeout(1_800)
def test_a_stopped_job_is_resumed_where_it_was(place: Place) -> None:
    tune = ("python", "-m", "training", "tune")
    # So many that the first is not over by the time a slow and busy machine has told and stopped it.
    more = ("--set", "training.fit.epochs=80", "--set", "training.fit.patience=80")
    job = place.run("submit", "--no-wait", "--", *tune, "--name", "one", *more).stdout.strip()
    until("an epoch is written down", lambda: any(event["kind"] == "epoch" for event in place.events("one")), 400)
    told = place.run("status", "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    search = next(one for one in found["searches"] if one["name"] == "one")
    assert (search["jobs"], search["is_running"]) == ([job], True)
    assert place.run("stop", job).stdout == f"job {job}: STOPPED\n"
    before = {(event["trial"]["name"], event["report"]["epoch"]) for event in place.events("one") if event["kind"] == "epoch"}
    assert not any(event["kind"] == "ended" for event in place.events("one"))
    done = place.run("submit", "--", *tune, "--resume", "one")
    assert done.returncode == 0, done.stdout
    epochs = [(event["trial"]["name"], event["report"]["epoch"]) for event in place.events("one") if event["kind"] == "epoch"]
    ends = [(event["trial"]["name"], event["state"]) for event in place.events("one") if event["kind"] == "ended"]
    assert sorted(ends) == [("trial-0", "finished"), ("trial-1", "finished")]
    # At most the last epoch of each was trained twice.
    assert len(epochs) <= len(set(epochs)) + len({trial for trial, _ in before})


def test_two_jobs_at_once_each_run_their_own_code(place: Place, tmp_path: Path) -> None:
    running = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(f"def named():\n    return {name!r}\n")
        (tmp_path / name / "say.py").write_text(SAYING)
        running[name] = place.start("submit", "--working-dir", str(tmp_path / name), "--", "python", "say.py")
    for name, submitted in running.items():
        told, _ = submitted.communicate(timeout=300)
        assert submitted.returncode == 0, told
        assert f"here {name}, on a worker {name}\n" in told


def test_twenty_jobs_in_a_row_leave_nothing(place: Place) -> None:
    (place.folder / "careless.py").write_text(CARELESS)
    assert "42" in place.run("submit", "--", "python", "careless.py").stdout
    session = place.facts().session

    def processes() -> list[str]:
        names = [name_of(process) for process in session.processes()]
        # The pool of idle workers is Ray's own, and does not grow with jobs. Its watcher of a job, a loop of sh and sleep, outlives
        # that by a second.
        return sorted(name for name in names if name and name not in ("sh", "sleep") and not name.startswith("ray::IDLE"))

    def folders() -> set[str]:
        newest = (session.ray_folder / "session_latest").resolve()
        kept = {path for path in newest.rglob("*") if path.is_dir() and "logs" not in path.relative_to(newest).parts}
        return {str(path) for path in kept} | {str(path) for path in session.folder.iterdir()}

    def groups() -> list[Any]:
        try:
            with applied_to_ray(client_environment(session.token_path)):
                told = list_state(place.facts().dashboard_url, "placement_groups", PATIENCE_S)
        except ClusterError as error:
            return [error.message]  # nobody knows that they are gone
        return [group for group in told if group["state"] != "REMOVED"]

    looks: list[list[str]] = []

    def are_settled() -> bool:
        looks.append(processes())
        return looks[-1] in looks[-2:-1]

    until("the first job has left", lambda: groups() == [] and not any("Supervisor" in name for name in processes()))
    # A worker of Ray's pool has its name a moment after it was started.
    until("no process starts or ends", are_settled, every_s=2.0)
    was, had = looks[-1], folders()
    with open_jobs(place.settings) as jobs:
        shipment = survey(place.settings, place.folder)
        # Five at a time: the processes of twenty would wait for each other longer than Ray waits for them.
        for _ in range(4):
            submitted = [jobs.submit(["python", "careless.py"], shipment) for _ in range(5)]
            assert [jobs.wait(job, 300).state for job in submitted] == ["SUCCEEDED"] * 5
    until("their processes and placement groups go", lambda: processes() == was and groups() == [])
    assert folders() == had
