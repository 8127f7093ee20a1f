"""What a search that goes on takes over from the one that was interrupted."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.storage import Storage
from tests.unit.test_agenda import climbing, make, report
from training.errors import TuningError
from training.search import explorations
from training.search.agenda import Exploration
from training.search.proposing.ledger import Ledger
from training.settings import TrainingSettings


def test_what_was_stopped_stays_stopped_and_is_paid_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = make(tmp_path)
    for trial_id, score in (("t0", 0.2), ("t1", 0.5)):
        begun.suggest(trial_id)
        begun.heard(trial_id, report(score, is_last=False))
    begun.ended("t0", "stopped")
    # Checkpoints are on no disk here: both trials have theirs.
    monkeypatch.setattr(explorations, "last_checkpoint", lambda *_: tmp_path)
    monkeypatch.setattr(explorations, "checkpoints", lambda *_: ["tune-0/trial-1/checkpoint_000000"])
    again = make(tmp_path)
    explorations._remember(SimpleNamespace(storage=None, name="one"), again)  # type: ignore[arg-type]  # all of it that is asked for
    assert {history.name: history.state for history in again.histories.values()} == {"trial-0": "stopped", "trial-1": ""}
    assert again.spent_s == begun.ledger.elapsed_s
    assert again.suggest("t2")["name"] == "trial-1"
    assert again.suggest("t3") is None
    again.heard("t2", report(0.6, epoch=2))
    again.ended("t2", "finished")
    # Both that were to be tried have been: what is left confirms.
    assert again.suggest("t4")["group"] == "confirm-trial"
    assert [event["trial"]["name"] for event in again.ledger.events("epoch")].count("trial-0") == 1


def test_what_was_stopped_and_climbs_since_goes_on_climbing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = climbing(tmp_path)
    begun.suggest("t0")
    begun.heard("t0", report(0.5, is_last=False))
    begun.ended("t0", "stopped")
    assert begun.suggest("t1")["depths"] == (5, 0)
    # Killed before its first epoch with all layers. The scheduler stopped it before, and says so again.
    monkeypatch.setattr(explorations, "replay", lambda *_: {0: 1})
    monkeypatch.setattr(explorations, "last_checkpoint", lambda *_: tmp_path)
    monkeypatch.setattr(explorations, "checkpoints", lambda *_: ["tune-0/trial-0/checkpoint_000000"])
    again = climbing(tmp_path)
    explorations._remember(SimpleNamespace(storage=None, name="one"), again)  # type: ignore[arg-type]  # all of it that is asked for
    assert (again.histories["trial-0"].state, again.histories["trial-0"].depths) == ("", (5, 0))
    # The sampler hears what it heard then: there is no score for what was stopped.
    states = [[trial.state.name for trial in one.explorations[0].proposer.study.trials] for one in (begun, again)]
    assert states == [["PRUNED"]] * 2
    order = again.suggest("t2")
    assert (order["depths"], order["is_climb"]) == ((5, 0), True)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A search whose study is in a file, on a cluster with room for it."""

    def exploration(prepared: Any, *_: Any) -> Exploration:
        explorations._study_storage(prepared)
        return make(tmp_path / "other").explorations[0]

    monkeypatch.setattr(explorations, "most_concurrent", lambda _: 2)
    monkeypatch.setattr(explorations, "_exploration", exploration)
    monkeypatch.setattr(explorations, "checkpoints", lambda *_: [])
    settings = TrainingSettings.model_validate({"heads": {"a": {}, "b": {}}})
    return SimpleNamespace(settings=settings, storage=Storage(str(tmp_path)), folder="searches/one", name="one")


def ledger_of(prepared: Any) -> Ledger:
    return Ledger(prepared.storage, f"{prepared.folder}/ledger")


def test_of_two_that_go_on_with_a_search_one_is_refused_before_it_touches_the_study(
    prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWOHEAD_JOB", "job-2")
    study = tmp_path / prepared.folder / "study.log"
    ledger_of(prepared).append("begun", {})
    explorations.make_agenda(prepared, ledger_of(prepared), None).suggest("t0")
    # Both read the same.
    second, third = ledger_of(prepared), ledger_of(prepared)
    again = explorations.make_agenda(prepared, second, None)
    study.write_text("of the second")
    with pytest.raises(TuningError, match="another process goes on with this search"):
        explorations.make_agenda(prepared, third, None)
    assert study.read_text() == "of the second"
    assert [(one["job"], one["host"]) for one in second.events("resumed")] == [("job-2", socket.gethostname())]
    assert again.suggest("t1")["name"] == "trial-0"
    # It is no trial, and no time.
    assert list(ledger_of(prepared).histories()) == ["trial-0"]


def test_whoever_is_displaced_ends_before_it_asks_the_study_or_writes(prepared: Any) -> None:
    ledger_of(prepared).append("begun", {})
    first = explorations.make_agenda(prepared, ledger_of(prepared), None)
    first.suggest("t0")
    explorations.make_agenda(prepared, ledger_of(prepared), None)
    study = first.explorations[0].proposer.study
    with pytest.raises(TuningError, match="another process"):
        first.suggest("t1")
    assert len(study.trials) == 1
    with pytest.raises(TuningError, match="another process"):
        first.heard("t0", report(0.5))


def test_a_search_that_begins_goes_on_from_nothing(prepared: Any) -> None:
    ledger_of(prepared).append("begun", {})
    ledger = ledger_of(prepared)
    # Its own.
    ledger.append("look", {"look": {"score": 0.5}, "elapsed_s": 1.0})
    explorations.make_agenda(prepared, ledger, None)
    assert ledger.events("resumed") == []
