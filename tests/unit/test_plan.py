"""Searches by name: pinned once, found again, and never a path."""

from pathlib import Path

import pytest

from cluster.storage import Storage
from training.errors import TuningError
from training.plan import Plan, check_name, pin, read_plan
from training.settings import TrainingSettings

SETTINGS = TrainingSettings()


def test_a_pinned_search_is_read_back_and_its_name_is_taken(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for name in ("one", "two"):
        pin(storage, Plan(name, SETTINGS, f"digest of {name}"))
    assert read_plan(storage, "one") == Plan("one", SETTINGS, "digest of one")
    assert read_plan(storage, "latest").name == "two"
    with pytest.raises(TuningError, match="search 'one' exists already"):
        pin(storage, Plan("one", SETTINGS, "another"))
    with pytest.raises(TuningError, match=r"search 'three' is not in .*; searches: one, two"):
        read_plan(storage, "three")


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
