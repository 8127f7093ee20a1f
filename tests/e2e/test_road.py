"""The whole road by its commands, on a cluster of this machine: search as a job, kill, resume, publish, deploy, ask, scale, watch."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from cluster.facts import read_facts
from cluster.processes import words_of
from cluster.settings import ClusterSettings
from tests.e2e.prometheus import prometheus
from tests.ports import port_shift

SOURCE = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
TEXTS = ["the nurse a", "the driver b d e f g", "c nurse"]
# Nothing is on trial, there is no GPU, and Ray's counters are there from the first event on: nothing is refused or kept, no head abstains.
SILENT = {
    "Agreement with the candidate, by head", "The candidate", "GPUs in use, by node", "Memory of GPUs, by node",
    "Not answered, by reason", "Texts that were not computed", "Abstentions by head",
}  # fmt: skip


@dataclass
class Place:
    """A working folder with settings and a table."""

    folder: Path

    def start(self, *words: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TWOHEAD_"))}
        command = [sys.executable, "-m", *words]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment | {"PYTHONPATH": str(SOURCE), "RAY_worker_niceness": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str, code: int = 0) -> str:
        process = self.start(*words)
        output, _ = process.communicate(timeout=800)
        assert process.returncode == code, output
        return output


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, make_encoder_in: Callable[..., Path]) -> Iterator[Place]:
    from cluster.launcher import free_port

    tmp_path = tmp_path_factory.mktemp("road")
    rows = ["text,job,letter"]
    rows += [
        f"the {'nurse' if i % 2 else 'driver'} {'abc'[i % 3]} {'defg'[i // 6 % 4]} {i},{'nurse' if i % 2 else 'driver'},{'abc'[i % 3]}"
        for i in range(150)
    ]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    settings = {
        "cluster": {"num_cpus": 4, "object_store_bytes": 100_000_000, "dashboard_port": free_port(18_365 + port_shift())},
        "training": {
            "data": {"files": ["table.csv"]},
            "heads": {"job": {}, "letter": {}},
            "encoder": {"name": str(make_encoder_in(tmp_path / "encoder", "bert")), "max_tokens": 16},
            "fit": {"epochs": 10, "patience": 10, "encoder_learning_rate": 5e-3, "head_learning_rate": 2e-2, "batch_texts": 4},
            "search_space": {"encoder_learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}},
            # Which trainings confirm, `integration/test_search.py` asks.
            "tuning": {"num_samples": 5, "grace_period": 10, "max_concurrent_trials": 2, "confirm_top": 1, "confirm_seeds": 1},
        },
        "serving": {
            "port": free_port(18_400 + port_shift()),
            "max_replicas": 2,
            "resources_per_replica": {"cpu": 0.5},
            "precision": "float32",
            "ready_timeout_s": 600,
        },
    }
    (tmp_path / "ray_config.yaml").write_text(yaml.safe_dump(settings))
    found = Place(tmp_path)
    found.run("cluster", "up")
    yield found
    found.start("serving", "stop").communicate(timeout=400)
    found.run("cluster", "down")


def result_of(place: Place) -> dict[str, dict[str, object]]:
    content = json.loads((place.folder / ".twohead/searches/ads/result.json").read_text())
    return {f"trial-{trial['position']}": trial for trial in content["trials"]}


def kill_the_search(folder: Path) -> int:
    """Kill -9 the job's driver and its trials, of this cluster only; returns how many processes that were."""
    facts = read_facts(ClusterSettings(storage=str(folder / ".twohead")))
    assert facts is not None
    victims = []
    for process in facts.session.processes():
        words = words_of(process)
        if "training tune --name ads" in words or words.startswith("ray::ImplicitFunc"):
            victims.append(process)
    for process in victims:
        with suppress(psutil.NoSuchProcess):  # a trial ends with its driver
            process.kill()
    return len(victims)


@pytest.mark.timeout(1_800)
def test_from_a_job_that_is_killed_to_an_answer_from_two_replicas(place: Place) -> None:
    job = place.start("cluster", "submit", "--", "python", "-m", "training", "tune", "--name", "ads")
    assert job.stdout is not None
    finished: dict[str, str] = {}
    said = ""
    for line in job.stdout:
        said += line
        if found := re.search(r"(trial-\d) +finished .*score ([\d.]+)", line):
            finished[found.group(1)] = found.group(2)
        # Two later reports follow the end of a trial by more than Tune's second between snapshots of its state.
        if len(finished) >= 2 and re.search(r"trial-[34] +training +epoch 3", line):
            break
    assert len(finished) >= 2
    assert kill_the_search(place.folder) >= 2
    # What it said last arrives some seconds late.
    with job.stdout as rest:
        said += rest.read()
    assert job.wait(timeout=400) == 1

    resumed = place.run("cluster", "submit", "--", "python", "-m", "training", "tune", "--resume", "ads")
    trials = result_of(place)
    assert sorted(trials) == [f"trial-{position}" for position in range(5)]
    assert all(trial["state"] in ("finished", "passed over") for trial in trials.values())
    assert all(trials[name]["state"] == "finished" for name in finished)
    # One that climbs afterwards, as `trial-0.2`, can only gain.
    stayed = {name: score for name, score in finished.items() if f" {name}.2 " not in said + resumed}
    assert {name: f"{trials[name]['score']:.3f}" for name in stayed} == stayed
    assert all(trials[name]["score"] >= float(score) - 0.001 for name, score in finished.items())
    assert not [name for name in finished if re.search(rf"\] {name} +training +epoch", resumed)]

    place.run("training", "publish", "--search", "ads", "--promote")
    place.run("serving", "deploy")
    answer = json.loads(place.run("serving", "ask", "--json", *TEXTS))
    expected = probabilities(place.folder / ".twohead/registry/versions/000001")
    for position, one in enumerate(answer["answers"]):
        for head, scores in expected.items():
            assert list(one["heads"][head]["scores"].values()) == pytest.approx(scores[position], abs=1e-4)

    settings = yaml.safe_load((place.folder / "ray_config.yaml").read_text())
    facts = httpx.get(f"http://127.0.0.1:{settings['serving']['port']}/v1/version", trust_env=False, timeout=30.0).json()
    # It answers as it did when it was made, which it was made to tell.
    (tried,) = facts["calibration"]
    assert (facts["dtype"], tried["precision"], tried["is_chosen"], tried["agreement"]) == ("float32", "float32", True, 1.0)
    assert tried["shift"] < 1e-5

    load = place.start("serving", "load", "--count", "600", "--rate", "40")
    place.run("serving", "scale", "--min", "2", "--max", "2")
    output, _ = load.communicate(timeout=400)
    assert load.returncode == 0, output
    assert re.search(r"\b2 running\b", running(place))


def test_prometheus_has_something_for_every_panel_of_both_dashboards(place: Place, tmp_path: Path) -> None:
    dashboards, configurations = (
        [place.run(package, "render", what) for package in ("serving", "cluster")] for what in ("grafana", "prometheus")
    )
    began = time.time()
    with prometheus(tmp_path, *configurations) as asked:
        load = place.start("serving", "load", "--count", "900", "--rate", "20")
        deadline = time.monotonic() + 300
        while missing := asked.silent(dashboards, began) - SILENT:
            assert time.monotonic() < deadline, missing
            time.sleep(1)  # it asks every ten seconds
        load.communicate(timeout=400)
        assert load.returncode == 0
        assert asked.silent(dashboards, began) == SILENT
        assert {one["metric"]["job"] for one in asked.ask("up")} == {"twohead", "ray"}
        # One that is asked in a busy second answers too late for that time, and is asked again ten seconds later.
        deadline = time.monotonic() + 300
        while down := asked.ask("up == 0"):
            assert time.monotonic() < deadline, down
            time.sleep(1)  # as above


def running(place: Place) -> str:
    """Wait until all replicas run, and return what the status is then."""
    deadline = time.monotonic() + 400
    while True:
        # It ends with 1 while one of them starts, which takes as long as the machine is busy.
        process = place.start("serving", "status")
        output, _ = process.communicate(timeout=400)
        if process.returncode == 0:
            return output
        assert time.monotonic() < deadline, output


def probabilities(folder: Path) -> dict[str, list[list[float]]]:
    """Softmax of the logits that `from_pretrained` gives for each text alone, over the manifest's temperatures."""
    from training.checkpoint import load_tokenizer
    from training.manifest import read_manifest
    from training.network.inputs import TokenInputs
    from training.network.model import TwoHeadBert

    manifest = read_manifest(folder)
    tokenizer = load_tokenizer(folder, manifest)
    model = TwoHeadBert.from_pretrained(str(folder)).eval()
    inputs = TokenInputs(tokenizer.encode(TEXTS), tokenizer.pad_id)
    import numpy as np

    rows = [model(**inputs.batch(np.array([index]))).logits for index in range(len(TEXTS))]
    temperatures = {head.name: head.temperature for head in manifest.heads}
    return {head: [(row[head] / temperatures[head]).softmax(dim=1)[0].tolist() for row in rows] for head in rows[0]}
