"""Faults of a search, done to the real thing: a full disk, killed trials, a name that is taken, nothing that works."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from cluster.facts import Facts
from cluster.processes import words_of
from tests.disks import make_room, small_disk
from tests.small_searches import CLUSTER, attach, events_of, result_of, running_ray, start, training, training_here, write_table

# In this process the libraries' own warnings would count as ours.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def ray_that_is_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facts]:
    with running_ray(tmp_path_factory.mktemp("ray")) as facts:
        yield facts


@pytest.fixture
def write(tmp_path: Path, make_encoder: Callable[..., Path], ray_that_is_up: Facts) -> Callable[..., Path]:
    """Write a table and a settings file, whose commands use the Ray that is up; returns the settings file."""
    write_table(tmp_path / "table.csv", lambda index: f"{chr(100 + index % 20)} {chr(100 + index * 3 % 20)}")

    def settings(storage: Path, **training: Any) -> Path:
        section = {
            "data": {"files": [str(tmp_path / "table.csv")]},
            "heads": {"job": {}, "letter": {}},
            "encoder": {"name": str(make_encoder("bert")), "max_tokens": 16},
            "fit": {"epochs": 3, "encoder_learning_rate": 5e-3, "head_learning_rate": 2e-2, "batch_texts": 8},
            "search_space": {"encoder_learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}},
            "tuning": {"num_samples": 4, "max_concurrent_trials": 1, "confirm_top": 0},
        }
        path = tmp_path / "ray_config.yaml"
        path.write_text(yaml.safe_dump({"cluster": CLUSTER | {"storage": str(storage)}, "training": section | training}))
        attach(ray_that_is_up, storage)
        return path

    return settings


WITHOUT_LADDER = {"num_samples": 4, "ladder": False, "max_concurrent_trials": 1, "confirm_top": 0}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "1M") as found:
        yield found


def test_b8_a_full_disk_stops_the_search_and_loses_nothing(write: Callable[..., Path], disk: Path) -> None:
    storage = disk / "storage"
    settings = write(storage)
    full = training_here(settings, "tune", "--name", "one")
    assert full.returncode == 2
    assert "search 'one' cannot go on" in full.stderr
    assert "No space left on device" in full.stderr
    assert "tune --resume one" in full.stderr
    ended = [event for event in events_of(storage) if event["kind"] == "ended" and event["state"] in ("finished", "stopped")]
    assert ended
    make_room(disk)
    resumed = training_here(settings, "tune", "--resume", "one")
    assert resumed.returncode == 0, resumed.stderr
    trials = {f"trial-{trial['position']}": trial for trial in result_of(storage)["trials"]}
    assert len(trials) == 4
    for event in ended:
        name = event["trial"]["name"]
        # One that climbed afterwards can only have gained.
        assert trials[name]["score"] >= event["report"]["score"]
        # What had ended was not trained again.
        epochs = [one["report"]["epoch"] for one in events_of(storage) if one["kind"] == "epoch" and one["trial"]["name"] == name]
        assert len(epochs) == len(set(epochs)) > 0


def kill_trials(process: "subprocess.Popen[str]", facts: Facts, times: int, epoch: str) -> int:
    """Kill the process of the trial that reports such an epoch, whenever one does; returns how often."""
    assert process.stdout is not None
    # Those of the search before may still be ending.
    begun_s = psutil.Process(process.pid).create_time()
    # One that has not gone yet is not killed again.
    killed = set()
    for line in process.stdout:
        if len(killed) < times and re.search(rf" training +epoch {epoch}\b", line):
            for victim in facts.session.processes():
                with suppress(psutil.NoSuchProcess):
                    if "ImplicitFunc" in words_of(victim) and victim.create_time() > begun_s:
                        victim.kill()
                        killed.add((victim.pid, victim.create_time()))
    process.communicate(timeout=300)
    return len(killed)


@pytest.mark.parametrize(
    ("times", "epoch", "state", "code"),
    [(1, "2", "finished", 0), (99, r"\d+", "died", 2)],
    ids=["b2_killed_once", "b3_always_killed"],
)
def test_b2_and_b3_a_killed_trial_is_begun_again_but_not_for_ever(
    write: Callable[..., Path], ray_that_is_up: Facts, tmp_path: Path, times: int, epoch: str, state: str, code: int
) -> None:
    # So many epochs that one is still to come by the time a slow machine has found and killed its process.
    fit = {"epochs": 12, "patience": 12, "encoder_learning_rate": 5e-3, "head_learning_rate": 2e-2, "batch_texts": 8}
    tuning = {"num_samples": 1, "ladder": False, "max_concurrent_trials": 1, "confirm_top": 0}
    settings = write(tmp_path / "storage", fit=fit, tuning=tuning)
    process = start(settings, "tune", "--name", "one")
    assert kill_trials(process, ray_that_is_up, times, epoch) == min(times, 2)
    events = events_of(tmp_path / "storage")
    assert next(event for event in reversed(events) if event["kind"] == "ended")["state"] == state
    if state == "finished":
        # It goes on from the last epoch that Tune has taken over, which it does in a step of its own after it has told of it: the one
        # before by the time of the next, and the last one or not.
        epochs = [event["report"]["epoch"] for event in events if event["kind"] == "epoch"]
        assert sorted(set(epochs)) == list(range(1, 13))
        assert epochs == sorted(epochs)
        assert len(epochs) in (12, 13)
    # One trial, and it died: no score at all is an error of its own.
    assert process.returncode == code


@pytest.mark.parametrize("ladder", [True, False], ids=["first_rung", "trial"])
def test_b4_what_memory_has_no_room_for_is_begun_again_once_and_said(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ladder: bool
) -> None:
    # Of this much of its memory any machine has more in use, so that Ray's monitor ends every worker it sees at work.
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.001")
    storage = tmp_path / "storage"
    settings = write(storage, tuning={"num_samples": 1, "ladder": ladder, "max_concurrent_trials": 1, "confirm_top": 0})
    # A Ray of its own.
    shutil.rmtree(storage / "cluster")
    ended = training(settings, "tune", "--name", "one")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    if ladder:
        assert "a machine ran low on memory, and Ray ended what took most of it twice" in ended.stderr
        assert "tune --resume one" in ended.stderr
    else:
        assert [event["state"] for event in events_of(storage) if event["kind"] == "ended"] == ["out of memory"]


def test_b9_two_searches_of_one_name_do_not_mix(write: Callable[..., Path], tmp_path: Path) -> None:
    settings = write(tmp_path / "storage", tuning=WITHOUT_LADDER)
    first = start(settings, "tune", "--name", "one")
    deadline = time.monotonic() + 200
    while not (tmp_path / "storage/searches/one/search.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)  # another process's file: nothing tells us
    second = training_here(settings, "tune", "--name", "one")
    assert (second.returncode, "search 'one' exists already" in second.stderr) == (2, True)
    _, errors = first.communicate(timeout=300)
    assert first.returncode == 0, errors
    assert len(result_of(tmp_path / "storage")["trials"]) == 4


def test_b16_when_nothing_works_it_says_so_and_publishes_nothing(write: Callable[..., Path], tmp_path: Path) -> None:
    fit = {"epochs": 2, "encoder_learning_rate": 1e30, "head_learning_rate": 1e30, "batch_texts": 8}
    space = {"encoder_learning_rate": 1e30, "head_learning_rate": 1e30}
    settings = write(tmp_path / "storage", fit=fit, search_space=space, tuning=WITHOUT_LADDER)
    failed = training_here(settings, "tune", "--name", "one")
    assert failed.returncode == 2
    assert "no trial brought a score" in failed.stderr
    published = training_here(settings, "publish")
    assert (published.returncode, "no checkpoint there" in published.stderr) == (2, True)
