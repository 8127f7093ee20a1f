"""A whole search on a real, local Ray: it finds, survives, resumes and says what failed."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from cluster.facts import Facts
from cluster.settings import ClusterSettings
from tests.small_searches import CLUSTER, Done, attach, events_of, result_of, running_ray, start, training, training_here, write_table
from training.search import tuning

# In this process the libraries' own warnings would count as ours.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def ray_that_is_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facts]:
    with running_ray(tmp_path_factory.mktemp("ray")) as facts:
        yield facts


@pytest.fixture
def project(tmp_path: Path, make_encoder: Callable[..., Path]) -> Callable[..., Path]:
    """Write a table and a settings file, whose commands start a Ray of their own; returns the settings file."""
    write_table(tmp_path / "table.csv", lambda index: "".join(chr(ord("d") + (index * step) % 20) + " " for step in (1, 3, 7, 11)))

    def write(**training: Any) -> Path:
        settings = {
            "cluster": CLUSTER | {"storage": str(tmp_path / "storage")},
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


@pytest.fixture
def attached(project: Callable[..., Path], ray_that_is_up: Facts) -> Callable[..., Path]:
    """Write the same, whose commands use the Ray that is up."""

    def write(**training: Any) -> Path:
        path = project(**training)
        attach(ray_that_is_up, path.parent / "storage")
        return path

    return write


ENDED_WELL = ("finished", "stopped", "passed over")


def storage_of(settings: Path) -> Path:
    return settings.parent / "storage"


def test_a_search_finds_publishes_and_repeats_trial_0(project: Callable[..., Path], ray_that_is_up: Facts) -> None:
    settings = project()
    # As a user does it the first time: with nothing up.
    first = training(settings, "tune", "--name", "one")
    assert first.returncode == 0, first.stderr
    assert "on the test split:" in first.stdout
    assert "TF-IDF + logistic regression" in first.stdout
    result = result_of(storage_of(settings))
    assert [trial["state"] in ENDED_WELL for trial in result["trials"]] == [True] * 4
    assert result["trials"][1]["origin"] == "heads alone"
    means = {one["position"]: one["mean"] for one in result["confirmed"]}
    scored = [trial for trial in result["trials"] if trial["state"] != "passed over"]
    assert set(means) == {0, *(trial["position"] for trial in sorted(scored, key=lambda trial: -trial["score"])[:2])}
    assert means[result["best"]] == max(means.values()) > 0.5
    assert {entry["against"] for entry in result["comparisons"]} >= {"TF-IDF + logistic regression"}
    assert (settings.parent / "storage/searches/one/report.html").is_file()

    published = training_here(settings, "publish", "--promote")
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

    attach(ray_that_is_up, storage_of(settings))
    second = training_here(settings, "tune", "--name", "two", "--set", "training.tuning.num_samples=1")
    assert second.returncode == 0, second.stderr
    zero = [next(trial for trial in result_of(storage_of(settings), name)["trials"] if trial["position"] == 0) for name in ("one", "two")]
    # Who climbs depends on the others; what trial 0 trained first does not.
    epochs = [[(epoch["number"], epoch["loss"], epoch["score"]) for epoch in trial["epochs"]] for trial in zero]
    common = min(map(len, epochs))
    assert common >= 2
    assert epochs[0][:common] == epochs[1][:common]
    assert result_of(storage_of(settings), "two")["data_digest"] == result["data_digest"]

    taken = training_here(settings, "tune", "--name", "two")
    assert (taken.returncode, "search 'two' exists already" in taken.stderr) == (2, True)


def test_a_diverging_trial_is_counted_and_the_search_goes_on(attached: Callable[..., Path]) -> None:
    # The default configuration is sane; learning rates of 1e30 make the loss infinite at once.
    space = {"encoder_learning_rate": {"choices": [5e-3, 1e30, 2e30, 3e30]}, "head_learning_rate": 2e-2}
    settings = attached(search_space=space, tuning={"num_samples": 6, "ladder": False, "max_concurrent_trials": 1, "confirm_top": 0})
    refused = training_here(settings, "tune", "--name", "one")
    states = [trial["state"] for trial in result_of(storage_of(settings))["trials"]]
    assert "diverged" in states
    assert refused.returncode == 4
    assert "trials failed, but at most 0 may" in refused.stderr
    assert result_of(storage_of(settings))["best"] in [
        trial["position"] for trial in result_of(storage_of(settings))["trials"] if trial["state"] != "diverged"
    ]
    assert training_here(settings, "tune", "--resume", "one", "--allow-failed", "6").returncode == 0


# One trial at a time: only so is even the uninterrupted search the same every time.
ONE_BY_ONE = {"head_candidates": 8, "num_samples": 5, "max_concurrent_trials": 1, "grace_period": 1, "confirm_top": 1, "confirm_seeds": 1}


def killed(settings: Path, words: list[str], events: int) -> bool:
    """Kill a search and all its processes once its ledger holds so many events; false when it ended before."""
    process = start(settings, *words)
    ledger = storage_of(settings) / "searches/one/ledger"
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
    result = result_of(storage_of(settings))
    kept = ("position", "state", "score", "epoch", "best_epoch", "point", "origin", "metrics")
    return {
        "trials": [{key: trial[key] for key in kept} for trial in result["trials"]],
        **{key: result[key] for key in ("best", "confirmed", "metrics", "comparisons", "calibration")},
    }


def test_killed_three_times_it_ends_as_if_it_never_was(attached: Callable[..., Path]) -> None:
    settings = attached(tuning=ONE_BY_ONE)
    assert training_here(settings, "tune", "--name", "one").returncode == 0
    whole, events = facts_of(settings), len(events_of(storage_of(settings)))
    # With it goes what leads to the Ray that is up: what is killed is a search with all of its Ray.
    shutil.rmtree(storage_of(settings))
    moments = sorted(random.Random(11).sample(range(3, events - 1), 3))
    beginnings = [["tune", "--name", "one"], ["tune", "--resume", "one"], ["tune", "--resume", "one"]]
    assert [killed(settings, words, events) for words, events in zip(beginnings, moments, strict=True)] == [True] * 3
    assert not (storage_of(settings) / "searches/one/result.json").exists()
    resumed = training(settings, "tune", "--resume", "latest")
    assert resumed.returncode == 0, resumed.stderr
    assert facts_of(settings) == whole


def newest(folder: Path, pattern: str) -> Path:
    return max(folder.rglob(pattern), key=lambda path: path.stat().st_mtime_ns)


# Those that stand together belong to different steps of going on, so that each is missed by itself.
DAMAGES: dict[str, Callable[[Path], list[Path]]] = {
    "plan-study-tune": lambda one: [
        *(one / "search.json", one / "study.log"),
        *(one / "tune-0").glob("*.pkl"),
        *(one / "tune-0").glob("experiment_state*"),
    ],
    "first-event-heads": lambda one: [one / "ledger/000000.json", one / "heads.safetensors"],
    "last-event-heads-record": lambda one: [max((one / "ledger").iterdir()), one / "heads.json"],
    "third-event-weights": lambda one: [sorted((one / "ledger").iterdir())[2], newest(one / "tune-0", "fit.safetensors")],
    "seal": lambda one: [newest(one / "tune-0", "seal.json")],
}


@pytest.fixture(scope="module")
def killed_search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a search that is killed once, by the first test that needs it."""
    return tmp_path_factory.mktemp("killed")


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_every_state_file_may_be_cut_short(
    damage: str, killed_search: Path, project: Callable[..., Path], ray_that_is_up: Facts, tmp_path: Path
) -> None:
    if not (killed_search / "storage").exists():
        settings = project(tuning=ONE_BY_ONE | {"num_samples": 3, "confirm_top": 0})
        assert killed(settings, ["tune", "--name", "one"], 7)
        shutil.copytree(tmp_path, killed_search, dirs_exist_ok=True)
        shutil.rmtree(tmp_path / "storage")
    storage = tmp_path / "storage"
    shutil.copytree(killed_search / "storage", storage)
    attach(ray_that_is_up, storage)
    ended = [event["trial"]["name"] for event in events_of(storage) if event["kind"] == "ended"]
    for file in DAMAGES[damage](storage / "searches/one"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    # The table and the encoder are those of the killed search.
    resumed = training_here(killed_search / "ray_config.yaml", "tune", "--resume", "one", "--set", f"cluster.storage={storage}")
    assert resumed.returncode == 0, resumed.stderr
    trials = {f"trial-{trial['position']}": trial for trial in result_of(storage)["trials"]}
    assert sorted(trials) == ["trial-0", "trial-1", "trial-2"]
    assert all(trial["state"] in ENDED_WELL for trial in trials.values())
    # What had ended was not begun again, whatever was lost: it shows at most the epoch that was damaged.
    assert not [name for name in ended if f"{name}      training  epoch 1" in resumed.stdout]


def test_changed_data_is_not_resumed(attached: Callable[..., Path]) -> None:
    settings = attached(tuning={"num_samples": 1, "ladder": False, "confirm_top": 0})
    storage = settings.parent / "storage/searches/one"
    assert training_here(settings, "tune", "--name", "one").returncode == 0
    assert (storage / "search.json").is_file()
    table = settings.parent / "table.csv"
    table.write_text(table.read_text() + "the nurse z,nurse,a\n")
    refused = training_here(settings, "tune", "--resume", "one")
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
def test_every_sampler_scheduler_and_mode_comes_to_an_end(attached: Callable[..., Path], tuning: dict[str, Any]) -> None:
    settings = attached(tuning={"num_samples": 4, "max_concurrent_trials": 1, "confirm_top": 0} | tuning)
    done = training_here(settings, "tune", "--name", "one")
    assert done.returncode == 0, done.stderr
    result = result_of(storage_of(settings))
    assert len(result["trials"]) == tuning.get("num_samples", 4)
    assert all(trial["state"] in ENDED_WELL for trial in result["trials"])
    scores = {trial["position"]: trial["score"] for trial in result["trials"] if trial["state"] != "passed over"}
    # A population never climbs, and a grid leaves nobody out.
    assert len(scores) == len(result["trials"]) or tuning.get("sampler") in ("gp", None)
    if tuning.get("mode") == "pareto":
        assert result["best"] in result["front"]
    else:
        assert scores[result["best"]] == max(scores.values())


def test_each_head_alone_is_compared_and_a_version_starts_the_next_search(attached: Callable[..., Path]) -> None:
    settings = attached(tuning={"num_samples": 2, "max_concurrent_trials": 1, "confirm_top": 1, "confirm_seeds": 1})
    done = training_here(settings, "tune", "--name", "one", "--compare-single")
    assert done.returncode == 0, done.stderr
    single = [entry for entry in result_of(storage_of(settings))["comparisons"] if entry["against"] == "one model per head"]
    assert [entry["head"] for entry in single] == ["job", "letter", None]
    assert "one model per head" in done.stdout

    assert training_here(settings, "publish", "--promote").returncode == 0
    remade = training_here(settings, "report", "production", "--out", str(settings.parent / "remade"), "--texts")
    assert remade.returncode == 0, remade.stderr
    assert (settings.parent / "remade/README.md").is_file()
    assert "the nurse" in (settings.parent / "remade/report.html").read_text() or not result_of(storage_of(settings))["errors"]["job"]
    assert result_of(storage_of(settings))["headline"].split("[")[0] in remade.stdout

    started = training_here(settings, "tune", "--name", "two", "--from-version", "1", "--with-weights", "--set", "training.fit.epochs=1")
    assert started.returncode == 0, started.stderr
    assert "from the configuration and weights of version 1" in started.stdout
    trials = result_of(storage_of(settings), "two")["trials"]
    assert [trial["origin"] for trial in trials] == ["default", "version 1"]
    # One epoch from trained weights is better than one from the pretrained ones would be: it starts where version 1 ended.
    assert trials[0]["score"] > 0.9 * result_of(storage_of(settings))["metrics"]["validation"]["score"]
    refused = training_here(settings, "tune", "--with-weights")
    assert (refused.returncode, "--with-weights is given without --from-version" in refused.stderr) == (2, True)


def stopped(settings: Path, number: signal.Signals, *words: str, after: str = " training  epoch 1") -> Done:
    """Send a signal to a search that has said something, at first of a trial's first epoch, and wait for its end."""
    process = start(settings, *words)
    assert process.stdout is not None
    for line in process.stdout:
        if after in line:
            process.send_signal(number)
            break
    said, errors = process.communicate(timeout=120)
    return Done(process.returncode, said, errors)


@contextmanager
def exiting(_: ClusterSettings) -> Iterator[None]:
    """Do as Ray does on SIGTERM while it starts."""
    raise SystemExit(signal.SIGTERM)
    yield


def test_stopped_at_any_moment_its_best_can_be_published_and_it_can_go_on(
    attached: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = attached(tuning=ONE_BY_ONE | {"num_samples": 3, "ladder": False, "confirm_top": 0})
    for number, words in ((signal.SIGINT, ("tune", "--name", "one")), (signal.SIGTERM, ("tune", "--resume", "one"))):
        ended = stopped(settings, number, *words)
        assert ended.returncode == 130, ended.stderr
        assert "publish what is best so far: python -m training publish --search one" in ended.stdout
        early = result_of(storage_of(settings))
        assert "stopped before its end" in early["early"]
        # Not one look at the test texts: the search may go on.
        assert "test" not in early["metrics"]
    with monkeypatch.context() as patched:
        patched.setattr(tuning, "connect", exiting)
        assert training_here(settings, "tune", "--resume", "one").returncode == 130
    assert result_of(storage_of(settings))["published"] == early["published"]
    published = training_here(settings, "publish", "--search", "one")
    assert published.returncode == 0, published.stderr
    gone_on = training_here(settings, "tune", "--resume", "one", "--trials", "4")
    assert gone_on.returncode == 0, gone_on.stderr
    whole = result_of(storage_of(settings))
    assert len(whole["trials"]) == 4
    assert "early" not in whole
    assert "test" in whole["metrics"]


@pytest.mark.parametrize(
    ("after", "number"),
    [("words by themselves", signal.SIGINT), ("words by themselves", signal.SIGTERM), ("Ray  ", signal.SIGINT), ("Ray  ", signal.SIGTERM)],
)
def test_stopped_before_anything_has_trained_what_words_say_can_be_published(
    attached: Callable[..., Path], after: str, number: signal.Signals
) -> None:
    settings = attached(tuning=ONE_BY_ONE | {"num_samples": 2, "confirm_top": 0})
    ended = stopped(settings, number, "tune", "--name", "one", after=after)
    assert ended.returncode == 130, ended.stderr
    early = result_of(storage_of(settings))
    assert "with 0 of at least 2 trials" in early["early"]
    assert [(trial["origin"], trial["cpu_seconds"]) for trial in early["trials"]] == [("words alone", 0.0)]
    assert "It is what words say by themselves" in early["headline"]
    # Judged as it will be served: the whole model, loaded and asked, says what was said before anything was encoded.
    assert early["metrics"]["validation"]["score"] == pytest.approx(early["published"]["score"], abs=1e-6)
    published = training_here(settings, "publish", "--search", "one", "--promote")
    assert published.returncode == 0, published.stderr
    gone_on = training_here(settings, "tune", "--resume", "one")
    assert gone_on.returncode == 0, gone_on.stderr
    assert "words alone" not in {trial["origin"] for trial in result_of(storage_of(settings))["trials"]}


def test_stopped_while_ray_starts_what_words_say_can_be_published(project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "connect", exiting)
    settings = project(tuning={"num_samples": 2})
    assert training_here(settings, "tune", "--name", "one").returncode == 130
    assert [trial["origin"] for trial in result_of(storage_of(settings))["trials"]] == ["words alone"]


def test_where_training_spoils_what_words_say_they_are_published(attached: Callable[..., Path]) -> None:
    fit = {"epochs": 1, "encoder_learning_rate": 5e-3, "head_learning_rate": 50.0, "batch_texts": 8}
    tuning = {"num_samples": 1, "max_concurrent_trials": 1, "ladder": False, "confirm_top": 1, "confirm_seeds": 1, "refit": True}
    settings = attached(fit=fit, search_space={"encoder_learning_rate": 5e-3, "head_learning_rate": 50.0}, tuning=tuning)
    done = training_here(settings, "tune", "--name", "one")
    assert done.returncode == 0, done.stderr
    assert "(words by themselves" in done.stdout
    result = result_of(storage_of(settings))
    assert [(trial["position"], trial["origin"]) for trial in result["trials"]] == [(0, "default"), (1, "words alone")]
    assert (result["best"], result["published"]["name"]) == (1, "words")
    assert "nothing that trained was better" in result["headline"]
    assert "the published model learned from the validation texts too" not in " ".join(result["notes"])
    assert result["metrics"]["validation"]["score"] == pytest.approx(result["published"]["score"], abs=1e-6)
    assert "default" in {entry["against"] for entry in result["comparisons"]}
    assert training_here(settings, "publish", "--promote").returncode == 0


def test_a_budget_ends_the_search_in_time_and_says_so(attached: Callable[..., Path]) -> None:
    settings = attached(tuning=ONE_BY_ONE | {"confirm_top": 0})
    ended = training_here(settings, "tune", "--name", "one", "--minutes", "0.05")
    assert ended.returncode == 0, ended.stderr
    assert "as many trials as fit into 0.05 minutes, at most 1000" in ended.stdout
    assert "best so far trial-" in ended.stdout
    assert 1 <= len(result_of(storage_of(settings))["trials"]) < 20
    refused = training_here(settings, "tune", "--minutes", "0")
    assert (refused.returncode, "must be above 0" in refused.stderr) == (2, True)
    refused = training_here(settings, "tune", "--resume", "one", "--trials", "0")
    assert (refused.returncode, "must be at least 1" in refused.stderr) == (2, True)
