"""The ledger: what was written comes back, and losing one event loses nothing else."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import Storage
from tests.careless import careless_storage, refuse
from training.errors import TuningError
from training.search.deciding.budget import Cost, spent_on, used_by
from training.search.proposing.ledger import Ledger, TrialHistory, sound, trial_facts

POINT = {"rate": 0.1}


def history(number: int) -> TrialHistory:
    return TrialHistory(f"trial-{number}", "trial", number, dict(POINT), 7, "sampler")


def epoch(number: int, score: float = 0.5) -> dict[str, Any]:
    return {"epoch": number, "score": score}


def write(ledger: Ledger, one: TrialHistory, scores: list[float], state: str = "") -> None:
    ledger.append("proposed", {"trial": trial_facts(one)})
    reports = [epoch(position + 1, score) for position, score in enumerate(scores)]
    for report in reports:
        ledger.append("epoch", {"trial": trial_facts(one), "report": report})
    if state:
        ledger.append("ended", {"trial": trial_facts(one), "state": state, "error": "", "report": reports[-1] if reports else {}})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(Storage(str(tmp_path)), "ledger")
    write(ledger, history(0), [0.5, 0.6], "finished")
    write(ledger, history(1), [0.4])
    write(ledger, history(2), [], "died")
    return ledger


def test_another_process_reads_what_was_written(ledger: Ledger, tmp_path: Path) -> None:
    found = Ledger(Storage(str(tmp_path)), "ledger").histories()
    assert found == ledger.histories()
    assert [one["score"] for one in found["trial-0"].epochs] == [0.5, 0.6]
    assert (found["trial-0"].state, found["trial-1"].state, found["trial-2"].state) == ("finished", "", "died")
    assert [one.name for one in sound(list(found.values()), "trial")] == ["trial-0"]


def test_where_a_store_minds_no_condition_of_two_that_go_on_one_is_told() -> None:
    with careless_storage() as (storage, store):
        ours, theirs = Ledger(storage, "ledger"), Ledger(storage, "ledger")
        store.after = lambda path: (store.rm(path), theirs.append("resumed", {"host": "here"}))
        with pytest.raises(TuningError, match="another process goes on with this search"):
            ours.append("resumed", {"host": "here"})
        assert len(Ledger(storage, "ledger").events("resumed")) == 1
        # Whose answer was lost on its way is told nothing.
        store.after = refuse(FileExistsError("000001.json"))
        theirs.append("proposed", {"trial": trial_facts(history(0))})
        assert list(Ledger(storage, "ledger").histories()) == ["trial-0"]


@pytest.mark.parametrize("damage", [b"", b'{"kind": "ep', b"[]", b"\xff\xfe"])
def test_any_one_damaged_event_loses_no_other(ledger: Ledger, tmp_path: Path, damage: bytes) -> None:
    whole = ledger.histories()
    for file in sorted((tmp_path / "ledger").iterdir()):
        content = file.read_bytes()
        file.write_bytes(damage)
        found = Ledger(Storage(str(tmp_path)), "ledger")
        assert found.damaged == [file.name]
        lost = json.loads(content)
        for name, one in whole.items():
            left = found.histories().get(name, replace(one, epochs=[], state="", error=""))
            if name != lost["trial"]["name"]:
                assert left == one, file.name
                continue
            # Of its own trial, what the event itself said may be missing.
            kept = [report for report in one.epochs if lost["kind"] != "epoch" or report["epoch"] != lost["report"]["epoch"]]
            assert [report for report in left.epochs if report in kept] == kept, file.name
            assert lost["kind"] == "ended" or (left.state, left.error) == (one.state, one.error), file.name
        # The last epoch of an ended trial is in its end too.
        if b'"kind": "epoch"' in content and b'"score": 0.6' in content:
            assert found.histories() == whole
        file.write_bytes(content)


def test_a_repeated_epoch_replaces_the_older_report(ledger: Ledger) -> None:
    ledger.append("epoch", {"trial": trial_facts(history(1)), "report": epoch(2, 0.7)})
    ledger.append("epoch", {"trial": trial_facts(history(1)), "report": epoch(1, 0.45)})
    assert [one["score"] for one in ledger.histories()["trial-1"].epochs] == [0.45, 0.7]


def test_what_an_epoch_took_that_is_trained_again_was_taken(ledger: Ledger) -> None:
    for number, cpu_s in ((1, 10.0), (2, 20.0), (3, 30.0), (2, 25.0), (3, 35.0)):
        ledger.append(
            "epoch", {"trial": trial_facts(history(1)), "report": epoch(number, 0.5) | {"epoch_cpu_s": cpu_s, "epoch_s": 2 * cpu_s}}
        )
    last = ledger.histories()["trial-1"].last
    ledger.append("ended", {"trial": trial_facts(history(1)), "state": "finished", "error": "", "report": last})
    found = ledger.histories()["trial-1"]
    assert [one["epoch_cpu_s"] for one in found.epochs] == [10.0, 25.0, 35.0]
    assert (spent_on(found), used_by(found)) == (Cost(140.0, 70.0), Cost(240.0, 120.0))


def test_two_processes_cannot_go_on_with_the_same_search(ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger(Storage(str(tmp_path)), "ledger")
    other.append("proposed", {"trial": trial_facts(history(3))})
    with pytest.raises(TuningError, match="another process goes on with this search"):
        ledger.append("proposed", {"trial": trial_facts(history(3))})
