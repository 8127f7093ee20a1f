"""Searches by name: pinned once, found again, and never a path."""

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import SettingsError
from cluster.storage import Storage
from tests.careless import careless_storage
from training.errors import TuningError
from training.search.plan import Plan, Start, check_name, checkpoints, next_attempt, pin, read_plan, search_path
from training.search.proposing.ledger import Ledger
from training.search.proposing.search_space import check_space, trial_settings
from training.search_settings import SearchSpace
from training.settings import TrainingSettings

SETTINGS = TrainingSettings()


def test_a_pinned_search_is_read_back_and_its_name_is_taken(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for name in ("one", "two"):
        assert pin(storage, Plan(name, SETTINGS, f"digest of {name}")).begun
    found = read_plan(storage, "one")
    assert (found.name, found.settings, found.data_digest, found.start) == ("one", SETTINGS, "digest of one", None)
    assert read_plan(storage, "latest").name == "two"
    with pytest.raises(TuningError, match="search 'one' exists already"):
        pin(storage, Plan("one", SETTINGS, "another"))
    with pytest.raises(TuningError, match=r"search 'three' is not in .*; searches: one, two"):
        read_plan(storage, "three")


def test_where_a_store_minds_no_condition_no_two_searches_begin_with_one_name() -> None:
    with careless_storage() as (storage, store):
        other = Plan("one", SETTINGS, "theirs")
        # They looked before ours was there, and their put comes last.
        store.after = lambda path: (store.rm(path), pin(storage, other))
        with pytest.raises(TuningError, match="search 'one' exists already"):
            pin(storage, Plan("one", SETTINGS, "ours"))
        assert read_plan(storage, "one").data_digest == "theirs"
        # It may come later too: when ours has read its own.
        taken = f"{store._strip_protocol(storage.uri)}/searches/two/ledger/000000.json"
        store.after = lambda path: setattr(store, "before", lambda path: store.pipe_file(taken, b"{}"))
        with pytest.raises(TuningError, match="search 'two' exists already"):
            pin(storage, Plan("two", SETTINGS, "ours"))


def test_without_a_search_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(TuningError, match="there is no search in"):
        read_plan(Storage(str(tmp_path)), "latest")


@pytest.mark.parametrize("name", ["latest", "../ads", "a/b", "", ".hidden", "-x", "x" * 81, "a\nb"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(TuningError, match="--name is "):
        check_name(name)


def test_ordinary_names_are_fine() -> None:
    for name in ("ads", "Ads-2026.11", "7", "x" * 80):
        check_name(name)


def test_where_it_started_from_is_pinned_too(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    start = Start(7, {"layer_decay": 0.8, "heads/education/loss": "corn"}, "registry/versions/000007", "digest", "a" * 64, "b" * 64)
    pin(storage, Plan("one", SETTINGS, "digest", start=start))
    assert read_plan(storage, "one").start == start


def test_a_search_goes_on_whose_space_would_be_refused_now(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    old = SETTINGS.model_copy(update={"search_space": SearchSpace.model_validate({"heads": {"category": {"loss": "corn"}}})})
    with pytest.raises(SettingsError, match="only ordered classes can have it"):
        check_space(old)
    pin(storage, Plan("one", old, "digest"))
    found = read_plan(storage, "one").settings
    assert found == old
    assert trial_settings(found, {}).heads["category"].loss == "softmax"


@pytest.mark.parametrize("damaged", ["search.json", "ledger/000000.json"])
def test_either_copy_is_enough(tmp_path: Path, damaged: str) -> None:
    storage = Storage(str(tmp_path))
    pin(storage, Plan("one", SETTINGS, "digest"))
    file = tmp_path / "searches/one" / damaged
    file.write_bytes(file.read_bytes()[:40])
    assert read_plan(storage, "latest").data_digest == "digest"
    for copy in ("search.json", "ledger/000000.json"):
        (tmp_path / "searches/one" / copy).write_bytes(b"")
    with pytest.raises(TuningError, match=r"neither search\.json nor ledger/000000\.json can be read"):
        read_plan(storage, "one")


@pytest.mark.parametrize("lost", ["search.json", "ledger/000000.json"])
def test_a_search_that_lost_a_copy_gets_no_others_settings(tmp_path: Path, lost: str) -> None:
    storage = Storage(str(tmp_path))
    pin(storage, Plan("one", SETTINGS, "its own"))
    (tmp_path / "searches/one" / lost).unlink()
    with pytest.raises(TuningError, match="search 'one' exists already"):
        pin(storage, Plan("one", SETTINGS, "another's"))
    assert read_plan(storage, "one").data_digest == "its own"
    assert not (tmp_path / "searches/one" / lost).exists()


def test_a_search_that_was_ended_as_it_began_keeps_its_first_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    claim, done = storage.claim, []

    def end(*words: Any, **options: Any) -> bytes:
        if done:
            raise KeyboardInterrupt
        done.append(words[0])
        return claim(*words, **options)

    monkeypatch.setattr(storage, "claim", end)
    with pytest.raises(KeyboardInterrupt):
        pin(storage, Plan("one", SETTINGS, "its own"))
    monkeypatch.undo()
    Ledger(storage, search_path("one", "ledger")).append("resumed", {})
    assert storage.names("searches/one/ledger") == ["000000.json", "000001.json"]
    assert read_plan(storage, "one").data_digest == "its own"


def test_checkpoints_are_listed_from_the_newest(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for path in (
        "tune-0/trial-3/checkpoint_000001",
        "tune-0/trial-3/checkpoint_000000",
        "tune-10/trial-3/checkpoint_000000",
        "tune-2/trial-4/x",
    ):
        (tmp_path / "searches/one" / path).mkdir(parents=True)
    found = checkpoints(storage, "one", "trial-3")
    assert [path.removeprefix("searches/one/") for path in found] == [
        "tune-10/trial-3/checkpoint_000000",
        "tune-0/trial-3/checkpoint_000001",
        "tune-0/trial-3/checkpoint_000000",
    ]
    assert next_attempt(storage, "one") == "tune-11"
    assert next_attempt(storage, "two") == "tune-0"
