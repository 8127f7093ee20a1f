"""A whole search on a real, local Ray: it finds, survives, resumes and says what failed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
                "tuning": {"num_samples": 4, "max_concurrent_trials": 2, "confirm_top": 2, "confirm_seeds": 1},
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


ENDED_WELL = ("finished", "stopped", "passed over")


def test_a_search_finds_publishes_and_repeats_trial_0(project: Callable[..., Path]) -> None:
    settings = project()
    first = training(settings, "tune", "--name", "one")
    assert first.returncode == 0, first.stderr
    assert "on the test split:" in first.stdout
    assert "TF-IDF + logistic regression" in first.stdout
    result = result_of(settings, "one")
    assert [trial["state"] in ENDED_WELL for trial in result["trials"]] == [True] * 4
    assert result["trials"][1]["origin"] == "heads alone"
    means = {one["position"]: one["mean"] for one in result["confirmed"]}
    scored = [trial for trial in result["trials"] if trial["state"] != "passed over"]
    assert set(means) == {0, *(trial["position"] for trial in sorted(scored, key=lambda trial: -trial["score"])[:2])}
    assert means[result["best"]] == max(means.values()) > 0.5
    assert {entry["against"] for entry in result["comparisons"]} >= {"TF-IDF + logistic regression"}
    assert (settings.parent / "storage/searches/one/report.html").is_file()

    published = training(settings, "publish", "--promote")
    assert "production → version 1" in published.stdout, published.stderr
    from training.checkpoint import verify_checkpoint

    manifest = verify_checkpoint(settings.parent / "storage/registry/versions/000001")
    assert manifest.search["name"] == "one"
    assert manifest.search["trial"] in (f"trial-{result['best']}", f"confirm-{result['best']}-8")
    assert manifest.metrics["test"] == result["metrics"]["test"]
    assert {"report.json", "README.md"} <= set(manifest.files)
    for head in manifest.heads:
        assert head.validation_answers is not None
        assert sum(head.validation_answers.classes) == pytest.approx(1.0)

    second = training(settings, "tune", "--name", "two", "--set", "training.tuning.num_samples=1")
    assert second.returncode == 0, second.stderr
    zero = [next(trial for trial in result_of(settings, name)["trials"] if trial["position"] == 0) for name in ("one", "two")]
    # Who climbs depends on the others; what trial 0 trained first does not.
    epochs = [[(epoch["number"], epoch["loss"], epoch["score"]) for epoch in trial["epochs"]] for trial in zero]
    common = min(map(len, epochs))
    assert common >= 2
    assert epochs[0][:common] == epochs[1][:common]
    assert result_of(settings, "two")["data_digest"] == result["data_digest"]

    taken = training(settings, "tune", "--name", "two")
    assert (taken.returncode, "search 'two' exists already" in taken.stderr) == (2, True)


def test_a_diverging_trial_is_counted_and_the_search_goes_on(project: Callable[..., Path]) -> None:
    # The default configuration is sane; learning rates of 1e30 make the loss infinite at once. With heads of one shape nobody is passed
    # over.
    space = {"encoder_learning_rate": {"choices": [5e-3, 1e30, 2e30, 3e30]}, "head_learning_rate": 2e-2, "hidden_size": 0}
    settings = project(search_space=space, tuning={"num_samples": 6, "max_concurrent_trials": 2, "confirm_top": 0})
    refused = training(settings, "tune", "--name", "one")
    states = [trial["state"] for trial in result_of(settings, "one")["trials"]]
    assert "diverged" in states
    assert refused.returncode == 4
    assert "trials failed, but at most 0 may" in refused.stderr
    assert result_of(settings, "one")["best"] in [
        trial["position"] for trial in result_of(settings, "one")["trials"] if trial["state"] != "diverged"
    ]
    assert training(settings, "tune", "--resume", "one", "--allow-failed", "6").returncode == 0


# One trial at a time: only so is even the uninterrupted search the same every time.
ONE_BY_ONE = {"head_candidates": 8, "num_samples": 5, "max_concurrent_trials": 1, "grace_period": 1, "confirm_top": 1, "confirm_seeds": 1}


def killed(settings: Path, words: list[str], events: int) -> bool:
    """Kill a search and all its processes once its ledger holds so many events; false when it ended before."""
    process = subprocess.Popen(command(settings, *words), cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    ledger = settings.parent / "storage/searches/one/ledger"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if ledger.is_dir() and len(list(ledger.glob("*.json"))) >= events:
            for victim in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                if victim.is_running():
                    os.kill(victim.pid, signal.SIGKILL)
            process.communicate(timeout=30)
            return True
        time.sleep(0.05)  # another process's folder: nothing tells us
    process.communicate(timeout=30)
    return False


def facts_of(settings: Path) -> dict[str, Any]:
    """What must be the same after any number of kills."""
    result = result_of(settings, "one")
    kept = ("position", "state", "score", "epoch", "best_epoch", "point", "origin", "metrics")
    return {
        "trials": [{key: trial[key] for key in kept} for trial in result["trials"]],
        **{key: result[key] for key in ("best", "confirmed", "metrics", "comparisons", "calibration")},
    }


def test_killed_three_times_it_ends_as_if_it_never_was(project: Callable[..., Path]) -> None:
    settings = project(tuning=ONE_BY_ONE)
    assert training(settings, "tune", "--name", "one").returncode == 0
    whole = facts_of(settings)
    events = len(list((settings.parent / "storage/searches/one/ledger").iterdir()))
    shutil.rmtree(settings.parent / "storage")
    moments = sorted(random.Random(11).sample(range(3, events - 1), 3))
    beginnings = [["tune", "--name", "one"], ["tune", "--resume", "one"], ["tune", "--resume", "one"]]
    assert [killed(settings, words, events) for words, events in zip(beginnings, moments, strict=True)] == [True] * 3
    assert not (settings.parent / "storage/searches/one/result.json").exists()
    resumed = training(settings, "tune", "--resume", "latest")
    assert resumed.returncode == 0, resumed.stderr
    assert facts_of(settings) == whole


def newest(folder: Path, pattern: str) -> Path:
    return max(folder.rglob(pattern), key=lambda path: path.stat().st_mtime_ns)


DAMAGES: list[Callable[[Path], list[Path]]] = [
    lambda one: [one / "search.json"],
    lambda one: [one / "ledger/000000.json"],
    lambda one: [max((one / "ledger").iterdir())],
    lambda one: [sorted((one / "ledger").iterdir())[2]],
    lambda one: [one / "study.log"],
    lambda one: [one / "heads.safetensors"],
    lambda one: [one / "heads.json"],
    lambda one: [newest(one / "tune-0", "fit.safetensors")],
    lambda one: [newest(one / "tune-0", "seal.json")],
    lambda one: [*(one / "tune-0").glob("*.pkl"), *(one / "tune-0").glob("experiment_state*")],
]


def resumed_damaged(settings: Path, number: int) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Go on with a copy of a killed search that has one of its files cut short; returns what it printed, and its result."""
    storage = settings.parent / f"storage-{number}"
    shutil.copytree(settings.parent / "storage", storage)
    for file in DAMAGES[number](storage / "searches/one"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return training(settings, "tune", "--resume", "one", "--set", f"cluster.storage={storage}"), storage / "searches/one/result.json"


def test_every_state_file_may_be_cut_short(project: Callable[..., Path]) -> None:
    settings = project(tuning=ONE_BY_ONE | {"num_samples": 3, "confirm_top": 0})
    assert killed(settings, ["tune", "--name", "one"], 7)
    ended = [
        event["trial"]["name"]
        for path in (settings.parent / "storage/searches/one/ledger").iterdir()
        if (event := json.loads(path.read_text())).get("kind") == "ended"
    ]
    # They only wait for each other's Ray: two at once take two thirds of the time.
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(partial(resumed_damaged, settings), range(len(DAMAGES))))
    for resumed, result in found:
        assert resumed.returncode == 0, resumed.stderr
        trials = {f"trial-{trial['position']}": trial for trial in json.loads(result.read_text())["trials"]}
        assert sorted(trials) == ["trial-0", "trial-1", "trial-2"]
        assert all(trial["state"] in ENDED_WELL for trial in trials.values())
        # What had ended was not begun again, whatever was lost: it shows at most the epoch that was damaged.
        assert not [name for name in ended if f"{name}      training  epoch 1" in resumed.stdout]


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


@pytest.mark.parametrize(
    "tuning",
    [
        {"sampler": "gp", "scheduler": "hyperband", "grace_period": 1},
        {"sampler": "random", "scheduler": "pbt", "grace_period": 1, "max_concurrent_trials": 4, "resources_per_trial": {"cpu": 0.5}},
        {"sampler": "grid", "scheduler": "none", "score_metrics": {"letter": "log_loss"}},
        {"mode": "pareto", "pick": "job >= 0.2, then letter", "grace_period": 1, "num_samples": 5},
    ],
    ids=["gp-hyperband", "random-pbt", "grid-none", "pareto-asha"],
)
def test_every_sampler_scheduler_and_mode_comes_to_an_end(project: Callable[..., Path], tuning: dict[str, Any]) -> None:
    settings = project(tuning={"num_samples": 4, "max_concurrent_trials": 2, "confirm_top": 0} | tuning)
    done = training(settings, "tune", "--name", "one")
    assert done.returncode == 0, done.stderr
    result = result_of(settings, "one")
    assert len(result["trials"]) == tuning.get("num_samples", 4)
    assert all(trial["state"] in ENDED_WELL for trial in result["trials"])
    scores = {trial["position"]: trial["score"] for trial in result["trials"] if trial["state"] != "passed over"}
    # A population never climbs, and a grid leaves nobody out.
    assert len(scores) == len(result["trials"]) or tuning.get("sampler") in ("gp", None)
    if tuning.get("mode") == "pareto":
        assert result["best"] in result["front"]
    else:
        assert scores[result["best"]] == max(scores.values())


def test_each_head_alone_is_compared_and_a_version_starts_the_next_search(project: Callable[..., Path]) -> None:
    settings = project(tuning={"num_samples": 2, "max_concurrent_trials": 2, "confirm_top": 1, "confirm_seeds": 1})
    done = training(settings, "tune", "--name", "one", "--compare-single")
    assert done.returncode == 0, done.stderr
    single = [entry for entry in result_of(settings, "one")["comparisons"] if entry["against"] == "one model per head"]
    assert [entry["head"] for entry in single] == ["job", "letter", None]
    assert "one model per head" in done.stdout

    assert training(settings, "publish", "--promote").returncode == 0
    remade = training(settings, "report", "production", "--out", str(settings.parent / "remade"), "--texts")
    assert remade.returncode == 0, remade.stderr
    assert (settings.parent / "remade/README.md").is_file()
    assert "the nurse" in (settings.parent / "remade/report.html").read_text() or not result_of(settings, "one")["errors"]["job"]
    assert result_of(settings, "one")["headline"].split("[")[0] in remade.stdout

    started = training(settings, "tune", "--name", "two", "--from-version", "1", "--with-weights", "--set", "training.fit.epochs=1")
    assert started.returncode == 0, started.stderr
    assert "from the configuration and weights of version 1" in started.stdout
    trials = result_of(settings, "two")["trials"]
    assert [trial["origin"] for trial in trials] == ["default", "version 1"]
    # One epoch from trained weights is better than one from the pretrained ones would be: it starts where version 1 ended.
    assert trials[0]["score"] > 0.9 * result_of(settings, "one")["metrics"]["validation"]["score"]
    refused = training(settings, "tune", "--with-weights")
    assert (refused.returncode, "--with-weights is given without --from-version" in refused.stderr) == (2, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_at_any_moment_its_best_can_be_published_and_it_can_go_on(project: Callable[..., Path], number: signal.Signals) -> None:
    settings = project(tuning=ONE_BY_ONE | {"num_samples": 3, "confirm_top": 0})
    process = subprocess.Popen(
        command(settings, "tune", "--name", "one"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if " training  epoch 1" in line:
            process.send_signal(number)
            break
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "publish what is best so far: python -m training publish --search one" in said
    early = result_of(settings, "one")
    assert "stopped before its end" in early["early"]
    # Not one look at the test texts: the search may go on.
    assert "test" not in early["metrics"]
    published = training(settings, "publish", "--search", "one")
    assert published.returncode == 0, published.stderr
    gone_on = training(settings, "tune", "--resume", "one", "--trials", "4")
    assert gone_on.returncode == 0, gone_on.stderr
    whole = result_of(settings, "one")
    assert len(whole["trials"]) == 4
    assert "early" not in whole
    assert "test" in whole["metrics"]


def test_a_budget_ends_the_search_in_time_and_says_so(project: Callable[..., Path]) -> None:
    settings = project(tuning=ONE_BY_ONE | {"confirm_top": 0})
    ended = training(settings, "tune", "--name", "one", "--minutes", "0.05")
    assert ended.returncode == 0, ended.stderr
    assert "as many trials as fit into 0.05 minutes, at most 1000" in ended.stdout
    assert "best so far trial-" in ended.stdout
    assert 1 <= len(result_of(settings, "one")["trials"]) < 20
    refused = training(settings, "tune", "--minutes", "0")
    assert (refused.returncode, "must be above 0" in refused.stderr) == (2, True)
    refused = training(settings, "tune", "--resume", "one", "--trials", "0")
    assert (refused.returncode, "must be at least 1" in refused.stderr) == (2, True)
