"""How long a search says that it took, every second once, and what ends its first rung: a limit that is used up before a trial began."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cluster.storage import Storage
from tests.unit.test_agenda import make
from training.search import explorations, tuning
from training.search.agenda import Agenda
from training.search.deciding.budget import Budget
from training.search.proposing.ledger import Ledger, TrialHistory
from training.search.trials import first_rung
from training.search.trials.first_look import Look

# What the tasks of the first rung take, by the clock.
LOOK_S, ENCODE_S = 50.0, 100.0


@dataclass(eq=False)
class Task:
    """One that ends at a time, with a value or an error."""

    value: Any
    ends_at: float


@dataclass
class Cluster:
    """Stands for Ray: tasks take so long, all at once, by a clock that nothing else moves."""

    now: float = 1_000.0
    wanted: dict[str, dict[str, float]] = field(default_factory=dict)
    cancelled: list[Task] = field(default_factory=list)
    encoding: list[tuple[Any, float]] = field(default_factory=lambda: [(None, ENCODE_S)] * 2)

    def remote(self, **wanted: float) -> Callable[[Any], Any]:
        def of(function: Any) -> Any:
            self.wanted[function.__name__] = wanted
            look = (Look(1, 1, {"a": 0.5}, 0.5), 40.0), LOOK_S
            found = {"_look": iter([look]), "_encode": iter(self.encoding), "_explore": iter([([], 0.0)])}[function.__name__]

            def begin(*_: Any) -> Task:
                value, seconds = next(found)
                return Task(value, self.now + seconds)

            return SimpleNamespace(remote=begin)

        return of

    def wait(self, tasks: Sequence[Task], num_returns: int, timeout: float) -> tuple[list[Task], list[Task]]:
        assert num_returns == 1
        first = min(tasks, key=lambda one: one.ends_at)
        self.now = min(max(first.ends_at, self.now), self.now + timeout)
        return ([first] if first.ends_at <= self.now else []), [one for one in tasks if one is not first or one.ends_at > self.now]

    def get(self, tasks: Sequence[Task]) -> list[Any]:
        for one in tasks:
            if isinstance(one.value, BaseException):
                raise one.value
        return [one.value for one in tasks]

    def cancel(self, task: Task, *, force: bool) -> None:
        assert force
        self.cancelled.append(task)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 6.0}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    for name in ("remote", "wait", "get", "cancel", "cluster_resources"):
        monkeypatch.setattr(ray, name, getattr(made, name))
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(first_rung, "_encoders", lambda _: 2)
    monkeypatch.setattr(first_rung, "read_rung", lambda *_: None)
    monkeypatch.setattr(tuning, "read_rung", lambda *_: None)
    monkeypatch.setattr(tuning, "slots", lambda _: 2)
    return made


def prepared_in(tmp_path: Path, **limits: float) -> Any:
    """A search whose first look takes 50 s and encoding 100, whose vectors have no room, and whose trials are not begun."""
    each = SimpleNamespace(cpu=3, gpu=1)
    own = SimpleNamespace(ladder=True, resources_per_trial=each, **{"time_budget_s": None, "cpu_budget_s": None, **limits})
    settings = SimpleNamespace(heads={}, tuning=own)
    assignment = SimpleNamespace(settings=settings, start=None, storage=str(tmp_path), tokens={"training": [0]})
    return SimpleNamespace(assignment=assignment, settings=settings, folder="searches/one", storage=Storage(str(tmp_path)), name="one")


@pytest.fixture
def agenda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Agenda:
    made = make(tmp_path)

    def remembering(_: Any, ledger: Ledger, __: Any) -> Agenda:
        made.ledger = ledger
        explorations._remember(SimpleNamespace(storage=None, name="one"), made)  # type: ignore[arg-type]  # all of it that is asked for
        return made

    monkeypatch.setattr(tuning, "make_agenda", remembering)
    return made


def begun(tmp_path: Path, elapsed_s: float = 0.0, **look: Any) -> Ledger:
    Ledger(Storage(str(tmp_path)), "ledger").append("look", {"look": {"score": 0.4}, "elapsed_s": elapsed_s, **look})
    return Ledger(Storage(str(tmp_path)), "ledger")


def run(prepared: Any, ledger: Ledger, cluster: Cluster, before_s: float = 0.0) -> tuning._Course:
    course = tuning._Course(prepared, cluster.now, spent_s=before_s)
    # Tables are read and words counted.
    cluster.now += 5.0
    tuning._run(course, ledger)
    return course


@pytest.mark.parametrize("before_s", [0.0, 300.0])
def test_every_second_is_counted_once(
    tmp_path: Path, cluster: Cluster, agenda: Agenda, monkeypatch: pytest.MonkeyPatch, before_s: float
) -> None:
    ledger, seen = begun(tmp_path, before_s), []

    def fit(_: Any, agenda: Agenda) -> bool:
        cluster.now += 7.0
        seen.append(agenda.elapsed_s)
        return True

    monkeypatch.setattr(tuning, "fit", fit)
    course = run(prepared_in(tmp_path), ledger, cluster, before_s)
    assert seen == [before_s + 5.0 + LOOK_S + ENCODE_S + 7.0]
    assert course.elapsed_s == seen[0]
    assert course.is_whole
    # What the next process will go on from.
    assert ledger.elapsed_s == before_s + 5.0 + LOOK_S


def test_who_encodes_ends_with_its_task_where_it_holds_a_gpu(
    tmp_path: Path, cluster: Cluster, agenda: Agenda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "fit", lambda *_: True)
    run(prepared_in(tmp_path), begun(tmp_path), cluster)
    # Ray reads it of what `remote` is told, and of nothing else.
    wanted = {"num_cpus": 3, "num_gpus": 1}
    assert cluster.wanted == {"_look": wanted, "_encode": wanted, "_explore": {"num_cpus": 3, "num_gpus": 0}}


# Two processes with three processors each encode; the look is one of them, and took 40 CPU seconds.
@pytest.mark.parametrize(
    ("limits", "after_s", "cpu_s"),
    [
        ({"time_budget_s": 30.0}, 30.0, 75.0),
        ({"time_budget_s": 95.0}, 95.0, 40.0 + 40.0 * 6),
        ({"cpu_budget_s": 160.0}, 5.0 + LOOK_S + 20.0, 40.0 + 20.0 * 6),
        ({"time_budget_s": 3.0}, 5.0, 0.0),
    ],
    ids=["while it looks", "while it encodes", "by its CPU seconds", "before it begins"],
)
def test_a_limit_that_is_used_up_on_the_first_rung_ends_the_search_where_words_are_a_model(
    tmp_path: Path, cluster: Cluster, limits: dict[str, float], after_s: float, cpu_s: float, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = begun(tmp_path, is_model=True)
    course = run(prepared_in(tmp_path, **limits), ledger, cluster)
    assert (course.is_whole, course.histories, course.elapsed_s) == (True, [], after_s)
    assert cluster.cancelled
    assert "so what words say by themselves is published" in capsys.readouterr().out
    # Who goes on, goes on from there, and with what is left.
    again = Ledger(Storage(str(tmp_path)), "ledger")
    assert again.elapsed_s == after_s
    assert tuning._used(course.prepared, again)["cpu_budget_s"] == pytest.approx(cpu_s)


def test_what_was_used_until_somebody_stopped_it_is_written_down(tmp_path: Path, cluster: Cluster) -> None:
    # As a signal is raised while Ray waits.
    cluster.encoding = [(None, ENCODE_S), (KeyboardInterrupt(), 30.0)]
    ledger = begun(tmp_path, is_model=True)
    with pytest.raises(KeyboardInterrupt):
        run(prepared_in(tmp_path), ledger, cluster)
    assert (len(cluster.cancelled), ledger.elapsed_s) == (1, 5.0 + LOOK_S + 30.0)
    assert ledger.cut_cpu_s == pytest.approx(40.0 + 29.0 * 6)


def test_the_first_that_fails_ends_the_first_rung_for_all(tmp_path: Path, cluster: Cluster) -> None:
    cluster.encoding = [(None, ENCODE_S), (RuntimeError("another encoder"), 10.0)]
    with pytest.raises(RuntimeError, match="another encoder"):
        run(prepared_in(tmp_path), begun(tmp_path, is_model=True), cluster)
    assert cluster.now == 1_000.0 + 5.0 + LOOK_S + 10.0


def test_trials_that_wait_to_go_on_are_not_given_up_for_a_first_rung_without_room(
    tmp_path: Path, cluster: Cluster, agenda: Agenda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "fit", lambda *_: True)
    course = tuning._Course(prepared_in(tmp_path, time_budget_s=30.0), cluster.now, [TrialHistory("trial-0", "trial", 0, {}, 7, "default")])
    tuning._run(course, begun(tmp_path, is_model=True))
    assert cluster.cancelled == []


def test_where_there_is_nothing_to_publish_the_first_rung_goes_on(
    tmp_path: Path, cluster: Cluster, agenda: Agenda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "fit", lambda *_: True)
    course = run(prepared_in(tmp_path, time_budget_s=30.0), begun(tmp_path), cluster)
    assert (cluster.cancelled, course.elapsed_s) == ([], 5.0 + LOOK_S + ENCODE_S)


def test_a_limit_that_is_used_up_when_the_first_trial_would_begin_lets_none_begin(
    tmp_path: Path, cluster: Cluster, agenda: Agenda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "fit", lambda *_: pytest.fail("a trial would begin"))
    agenda.budget = Budget(wall_s=5.0 + LOOK_S + ENCODE_S)
    course = run(prepared_in(tmp_path), begun(tmp_path, is_model=True), cluster)
    assert (course.is_whole, course.histories) == (True, [])
