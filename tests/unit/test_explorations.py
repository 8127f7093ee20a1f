"""What a search that goes on takes over from the one that was interrupted."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.test_agenda import climbing, make, report
from training.search import explorations


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
