"""How long a search says that it took: every second once, also those before its first trial."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cluster.storage import Storage
from tests.unit.test_agenda import make
from training.search import explorations, tuning
from training.search.agenda import Agenda
from training.search.proposing.ledger import Ledger
from training.search.trials import first_rung
from training.search.trials.first_look import Look


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Stop the clock; return what moves it by some seconds."""
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]) -> SimpleNamespace:
    """A search whose first look takes 50 s, whose vectors have no room, and whose trials are not begun."""
    look = Look(1, 1, {"a": 0.5}, 0.5)

    def done(value: Any) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: value))

    def get(found: Any) -> Any:
        if isinstance(found, tuple):
            clock(50.0)
        return found

    monkeypatch.setattr(ray, "remote", lambda function: done((look, 1.0) if function is first_rung._look else None))
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(first_rung, "read_rung", lambda *_: None)
    monkeypatch.setattr(first_rung, "_encoders", lambda _: 1)
    monkeypatch.setattr(tuning, "make_agenda", lambda _, ledger, __: remembering(tmp_path, ledger))
    assignment = SimpleNamespace(
        settings=SimpleNamespace(heads={}, tuning=SimpleNamespace(ladder=True, resources_per_trial=SimpleNamespace(cpu=1, gpu=0))),
        start=None,
        storage=str(tmp_path),
        tokens={"training": [0]},
    )
    return SimpleNamespace(assignment=assignment, folder="searches/one", storage=Storage(str(tmp_path)), name="one")


def remembering(tmp_path: Path, ledger: Ledger) -> Agenda:
    agenda = make(tmp_path)
    agenda.ledger = ledger
    explorations._remember(SimpleNamespace(storage=None, name="one"), agenda)  # type: ignore[arg-type]  # all of it that is asked for
    return agenda


@pytest.mark.parametrize("before_s", [0.0, 300.0])
def test_seconds_until_the_first_look_are_counted_once(
    prepared: Any, tmp_path: Path, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, before_s: float
) -> None:
    written = Ledger(Storage(str(tmp_path)), "ledger")
    written.append("look", {"look": {"score": 0.4}, "elapsed_s": before_s})
    ledger, seen = Ledger(Storage(str(tmp_path)), "ledger"), []

    def fit(_: Any, agenda: Agenda) -> bool:
        clock(7.0)
        seen.append(agenda.elapsed_s)
        return True

    monkeypatch.setattr(tuning, "_fit", fit)
    course = tuning._Course(prepared)
    tuning._run(course, ledger)
    assert seen == [before_s + 57.0]
    assert course.elapsed_s == before_s + 57.0
    # What the next process will go on from.
    assert ledger.elapsed_s == before_s + 50.0
