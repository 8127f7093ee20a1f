"""A whole search on a real, local Ray: it finds, survives, resumes and says what failed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path, make_encoder: Callable[..., Path]) -> Callable[..., Path]:
    """Write a table and a settings file; returns the settings file."""
    rows = ["text,job,letter"]
    for index in range(160):
        job, letter = ("nurse", "driver")[index % 2], "abc"[index % 3]
        filler = "".join(chr(ord("d") + (index * step) % 20) + " " for step in (1, 3, 7, 11))
        rows.append(f"the {job} {letter} {filler},{job},{'' if index % 10 == 0 else letter}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")

    def write(**training: Any) -> Path:
        settings = {
            "cluster": {"storage": str(tmp_path / "storage"), "num_cpus": 2},
            "training": {
                "data": {"files": [str(tmp_path / "table.csv")]},
                "heads": {"job": {}, "letter": {}},
                "encoder": {"name": str(make_encoder("bert")), "max_tokens": 16},
                "fit": {"epochs": 3, "encoder_learning_rate": 5e-3, "head_learning_rate": 2e-2, "batch_texts": 8},
                "search_space": {"encoder_learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}},
                "tuning": {"num_samples": 4, "max_concurrent_trials": 2},
            }
            | training,
        }
        path = tmp_path / "ray_config.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return write


def command(settings: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "training", words[0], "--config", str(settings), *words[1:]]


def training(settings: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(settings, *words), cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)


def result_of(settings: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((settings.parent / "storage" / "searches" / name / "result.json").read_text())
    return content


def wait_until_written(folder: Path, ended_trials: int) -> None:
    """Tune writes its state at most once a second: wait for the one that knows of the ended trials."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        states = [path.read_text().count('\\"status\\": \\"TERMINATED\\"') for path in folder.glob("experiment_state-*.json")]
        if max(states, default=0) >= ended_trials:
            return
        time.sleep(0.1)  # another process's file: nothing tells us
    pytest.fail("the search never wrote down that its trials ended")


def test_a_search_finds_publishes_and_repeats_trial_0(project: Callable[..., Path]) -> None:
    settings = project()
    first = training(settings, "tune", "--name", "one")
    assert first.returncode == 0, first.stderr
    assert "macro-F1  majority" in first.stdout
    result = result_of(settings, "one")
    assert [trial["state"] in ("finished", "stopped") for trial in result["trials"]] == [True] * 4
    best = next(trial for trial in result["trials"] if trial["position"] == result["best"])
    assert best["score"] == max(trial["score"] for trial in result["trials"]) > 0.5
    assert (settings.parent / "storage/searches/one/report.html").is_file()

    published = training(settings, "publish", "--promote")
    assert "production → version 1" in published.stdout, published.stderr
    from training.checkpoint import verify_checkpoint

    manifest = verify_checkpoint(settings.parent / "storage/registry/versions/000001")
    assert manifest.search == {"name": "one", "trial": str(result["best"])}
    assert manifest.metrics["test"] == result["metrics"]["test"]

    second = training(settings, "tune", "--name", "two", "--set", "training.tuning.num_samples=1")
    assert second.returncode == 0, second.stderr
    zero = [next(trial for trial in result_of(settings, name)["trials"] if trial["position"] == 0) for name in ("one", "two")]
    assert zero[0]["score"] == zero[1]["score"]
    assert result_of(settings, "two")["data_digest"] == result["data_digest"]

    taken = training(settings, "tune", "--name", "two")
    assert (taken.returncode, "search 'two' exists already" in taken.stderr) == (2, True)


def test_a_diverging_trial_is_counted_and_the_search_goes_on(project: Callable[..., Path]) -> None:
    # The default configuration is sane; learning rates of 1e30 make the loss infinite at once.
    space = {"encoder_learning_rate": {"choices": [5e-3, 1e30]}, "head_learning_rate": 2e-2}
    settings = project(search_space=space, tuning={"num_samples": 6, "max_concurrent_trials": 2})
    refused = training(settings, "tune", "--name", "one")
    states = [trial["state"] for trial in result_of(settings, "one")["trials"]]
    assert "diverged" in states
    assert refused.returncode == 4
    assert "trials failed, but at most 0 may" in refused.stderr
    assert result_of(settings, "one")["best"] in [
        trial["position"] for trial in result_of(settings, "one")["trials"] if trial["state"] != "diverged"
    ]
    assert training(settings, "tune", "--resume", "one", "--allow-failed", "6").returncode == 0


def test_killed_in_the_middle_it_resumes_and_loses_no_finished_trial(project: Callable[..., Path]) -> None:
    settings = project(
        fit={"epochs": 12, "patience": 12, "batch_texts": 4}, tuning={"num_samples": 6, "grace_period": 12, "max_concurrent_trials": 2}
    )
    process = subprocess.Popen(
        command(settings, "tune", "--name", "one"), cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    finished: dict[str, str] = {}
    for line in process.stdout:
        if " finished " in line:
            finished[line.split("] ")[1].split()[0]] = line.split("score ")[1].split()[0]
        if len(finished) == 2:
            break
    wait_until_written(settings.parent / "storage/searches/one/tune", ended_trials=2)
    children = psutil.Process(process.pid).children(recursive=True)
    for victim in [*children, psutil.Process(process.pid)]:
        if victim.is_running():
            os.kill(victim.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert not (settings.parent / "storage/searches/one/result.json").exists()

    resumed = training(settings, "tune", "--resume", "latest")
    assert resumed.returncode == 0, resumed.stderr
    trials = {f"trial-{trial['position']}": trial for trial in result_of(settings, "one")["trials"]}
    assert len(trials) == 6
    assert all(trial["state"] == "finished" for trial in trials.values())
    assert not [name for name in finished if f"{name} " in resumed.stdout.replace(f"best      {name}", "")]
    assert {name: f"{trials[name]['score']:.3f}" for name in finished} == finished


def test_changed_data_is_not_resumed(project: Callable[..., Path]) -> None:
    settings = project()
    storage = settings.parent / "storage/searches/one"
    assert training(settings, "tune", "--name", "one", "--set", "training.tuning.num_samples=1").returncode == 0
    assert (storage / "search.json").is_file()
    table = settings.parent / "table.csv"
    table.write_text(table.read_text() + "the nurse z,nurse,a\n")
    refused = training(settings, "tune", "--resume", "one")
    assert refused.returncode == 2
    assert "its data changed since it began" in refused.stderr
