"""A search on a real, local Ray that is killed, damaged or stopped: what there is can be published, and it goes on."""

import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from cluster.errors import ClusterError
from cluster.facts import Facts
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from tests.small_searches import ENDED_WELL, ONE_BY_ONE, Done, attach, events_of, result_of, start, storage_of, training, training_here
from training.search import tuning
from training.search.proposing.ledger import Ledger

# In this process the libraries' own warnings would count as ours.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def killed(settings: Path, words: list[str], events: int) -> bool:
    """Kill a search and all its processes once its ledger holds so many events; false when it ended before."""
    process = start(settings, *words)
    ledger = storage_of(settings) / "searches/one/ledger"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if ledger.is_dir() and len(list(ledger.glob("*.json"))) >= events:
            for victim in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                with suppress(psutil.NoSuchProcess):  # children end with their Ray
                    victim.kill()
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


def nowhere(_: ClusterSettings) -> NoReturn:
    raise ClusterError("no Ray")


def test_changed_data_is_not_resumed(project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = project(tuning={"num_samples": 1, "ladder": False, "confirm_top": 0})
    storage = settings.parent / "storage/searches/one"
    with monkeypatch.context() as patched:
        # Begun is enough: the data are compared before anybody looks at what trained.
        patched.setattr(tuning, "connect", nowhere)
        begun = training_here(settings, "tune", "--name", "one")
    assert (begun.returncode, "error: no Ray" in begun.stderr) == (2, True)
    assert (storage / "search.json").is_file()
    table = settings.parent / "table.csv"
    table.write_text(table.read_text() + "the nurse z,nurse,a\n")
    refused = training_here(settings, "tune", "--resume", "one")
    assert refused.returncode == 2
    assert "its data changed since it began" in refused.stderr


def stopped(settings: Path, number: signal.Signals, *words: str, after: str = " training  epoch 1") -> Done:
    """Send a signal to a search that has said something, at first of a trial's first epoch, and wait for its end."""
    process = start(settings, *words)
    assert process.stdout is not None
    for line in process.stdout:
        if after in line:
            process.send_signal(number)
            break
    said, errors = process.communicate(timeout=400)
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
        assert "The search was stopped before its end" in (storage_of(settings) / "searches/one/best/README.md").read_text()
    with monkeypatch.context() as patched:
        patched.setattr(tuning, "connect", exiting)
        assert training_here(settings, "tune", "--resume", "one").returncode == 130
    assert result_of(storage_of(settings))["published"] == early["published"]
    published = training_here(settings, "publish", "--search", "one")
    assert published.returncode == 0, published.stderr
    told = training_here(settings, "report", "1", "--out", str(settings.parent / "told"))
    assert told.returncode == 0, told.stderr
    assert "on the validation texts, which chose it" in told.stdout
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


def test_stopped_while_another_goes_on_it_leaves_the_best_to_that_one(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = project(tuning={"num_samples": 2})

    def taken_over(_: ClusterSettings) -> NoReturn:
        Ledger(Storage(str(storage_of(settings))), "searches/one/ledger").append("resumed", {"host": "elsewhere"})
        raise SystemExit(signal.SIGTERM)

    monkeypatch.setattr(tuning, "connect", taken_over)
    ended = training_here(settings, "tune", "--name", "one")
    assert ended.returncode == 2
    assert "another process goes on with this search" in ended.stderr
    assert not (storage_of(settings) / "searches/one/best").exists()


def test_stopped_while_ray_starts_what_words_say_can_be_published(project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "connect", exiting)
    settings = project(tuning={"num_samples": 2})
    assert training_here(settings, "tune", "--name", "one").returncode == 130
    assert [trial["origin"] for trial in result_of(storage_of(settings))["trials"]] == ["words alone"]
