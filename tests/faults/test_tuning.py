"""Faults of a search, done to the real thing: a full disk, killed trials, a name that is taken, nothing that works."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def write(tmp_path: Path, make_encoder: Callable[..., Path]) -> Callable[..., Path]:
    """Write a table and a settings file; returns the settings file."""
    rows = ["text,job,letter"]
    for index in range(160):
        job, letter = ("nurse", "driver")[index % 2], "abc"[index % 3]
        rows.append(f"the {job} {letter} {chr(100 + index % 20)} {chr(100 + index * 3 % 20)},{job},{letter}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")

    def settings(storage: Path, **training: Any) -> Path:
        section = {
            "data": {"files": [str(tmp_path / "table.csv")]},
            "heads": {"job": {}, "letter": {}},
            "encoder": {"name": str(make_encoder("bert")), "max_tokens": 16},
            "fit": {"epochs": 3, "encoder_learning_rate": 5e-3, "head_learning_rate": 2e-2, "batch_texts": 8},
            "search_space": {"encoder_learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}},
            "tuning": {"num_samples": 4, "max_concurrent_trials": 2, "confirm_top": 0},
        }
        path = tmp_path / "ray_config.yaml"
        path.write_text(yaml.safe_dump({"cluster": {"storage": str(storage), "num_cpus": 2}, "training": section | training}))
        return path

    return settings


def command(settings: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "training", words[0], "--config", str(settings), *words[1:]]


def tune(settings: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(settings, "tune", *words), cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)


def result_of(storage: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((storage / "searches/one/result.json").read_text())
    return content


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(disk)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a full disk needs the right to mount one: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_b8_a_full_disk_stops_the_search_and_loses_nothing(write: Callable[..., Path], small_disk: Path) -> None:
    storage = small_disk / "storage"
    settings = write(storage)
    full = tune(settings, "--name", "one")
    assert full.returncode == 2
    assert "search 'one' cannot go on" in full.stderr
    assert "No space left on device" in full.stderr
    assert "tune --resume one" in full.stderr
    ended = [event for path in (storage / "searches/one/ledger").iterdir() if (event := json.loads(path.read_text()))["kind"] == "ended"]
    subprocess.run(["mount", "-o", "remount,size=64M", str(small_disk)], check=True)
    resumed = tune(settings, "--resume", "one")
    assert resumed.returncode == 0, resumed.stderr
    trials = {f"trial-{trial['position']}": trial for trial in result_of(storage)["trials"]}
    assert len(trials) == 4
    for event in ended:
        if event["state"] in ("finished", "stopped"):
            assert trials[event["trial"]["name"]]["score"] == event["report"]["score"]


def kill_trials(process: "subprocess.Popen[str]", times: int) -> int:
    """Kill the process of the trial that reports, whenever one does; returns how often."""
    assert process.stdout is not None
    kills = 0
    for line in process.stdout:
        if kills < times and " training  epoch 1" in line:
            victims = [child for child in psutil.Process(process.pid).children(recursive=True) if child.name().startswith("ray::")]
            for victim in victims:
                if "ImplicitFunc" in " ".join(victim.cmdline()) and victim.is_running():
                    os.kill(victim.pid, signal.SIGKILL)
                    kills += 1
    process.communicate(timeout=300)
    return kills


@pytest.mark.parametrize(("times", "state", "code"), [(1, "finished", 0), (99, "died", 4)], ids=["b2_killed_once", "b3_always_killed"])
def test_b2_and_b3_a_killed_trial_is_begun_again_but_not_for_ever(
    write: Callable[..., Path], tmp_path: Path, times: int, state: str, code: int
) -> None:
    settings = write(tmp_path / "storage", tuning={"num_samples": 1, "max_concurrent_trials": 1, "confirm_top": 0})
    process = subprocess.Popen(
        command(settings, "tune", "--name", "one"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    kills = kill_trials(process, times)
    assert kills == min(times, 2)
    events = [json.loads(path.read_text()) for path in sorted((tmp_path / "storage/searches/one/ledger").iterdir())]
    assert next(event for event in reversed(events) if event["kind"] == "ended")["state"] == state
    # One trial, and it died: no score at all is an error of its own.
    assert process.returncode == (0 if code == 0 else 2)


def test_b9_two_searches_of_one_name_do_not_mix(write: Callable[..., Path], tmp_path: Path) -> None:
    settings = write(tmp_path / "storage")
    first = subprocess.Popen(
        command(settings, "tune", "--name", "one"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    while not (tmp_path / "storage/searches/one/search.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)  # another process's file: nothing tells us
    second = tune(settings, "--name", "one")
    assert (second.returncode, "search 'one' exists already" in second.stderr) == (2, True)
    _, errors = first.communicate(timeout=300)
    assert first.returncode == 0, errors
    assert len(result_of(tmp_path / "storage")["trials"]) == 4


def test_b16_when_nothing_works_it_says_so_and_publishes_nothing(write: Callable[..., Path], tmp_path: Path) -> None:
    fit = {"epochs": 2, "encoder_learning_rate": 1e30, "head_learning_rate": 1e30, "batch_texts": 8}
    settings = write(tmp_path / "storage", fit=fit, search_space={"encoder_learning_rate": 1e30, "head_learning_rate": 1e30})
    failed = tune(settings, "--name", "one")
    assert failed.returncode == 2
    assert "no trial brought a score" in failed.stderr
    published = subprocess.run(command(settings, "publish"), cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert (published.returncode, "no checkpoint there" in published.stderr) == (2, True)
