"""What a search that is stopped knows: whose score counts, and whose checkpoint can be loaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.judging.comparison import WORDS_ALONE
from training.search import winner as module
from training.search.deciding.contest import standings, winner
from training.search.proposing.ledger import PASSED_OVER, TrialHistory
from training.search.winner import found_so_far
from training.search_settings import TuningSettings

PREPARED: Any = None
TUNING = TuningSettings()


def history(name: str, score: float, *, state: str = "finished") -> TrialHistory:
    group, number, *seed = name.replace("confirm-", "confirm-trial-", 1).rsplit("-", 2 if name.startswith("confirm") else 1)
    report = {"epoch": 1, "best_number": 1, "score": score, "head_scores": {"a": score}}
    return TrialHistory(name, group, int(number), {}, int(*seed or "7"), "sampler", [report], state)


@pytest.fixture(autouse=True)
def checkpoints(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of trials whose checkpoint is lost."""
    lost: set[str] = set()
    monkeypatch.setattr(module, "last_checkpoint", lambda _, one, folder: None if one.name in lost else Path(folder))
    return lost


def test_what_trains_again_decides_nothing_before_it_has_ended() -> None:
    searched = [history("trial-0", 0.70), history("trial-1", 0.80), history("trial-2", 0.78)]
    words = replace(history("trial-3", 0.60), name="words", origin=WORDS_ALONE)
    live = [history("confirm-1-8", 0.55, state=""), history("refit-1", 0.99, state="")]
    found, lost = found_so_far(PREPARED, [*searched, *live])
    assert (found, lost) == (searched, [])
    assert winner(standings([*found, words], TUNING), TUNING)[0].number == 1
    # What has ended counts.
    whole = replace(live[0], state="finished")
    assert whole in found_so_far(PREPARED, [*searched, whole])[0]


def test_what_explores_counts_with_what_it_has_and_only_with_its_checkpoint(checkpoints: set[str]) -> None:
    begun = replace(history("trial-3", 0.9, state=""), epochs=[])
    histories = [history("trial-0", 0.7), history("trial-1", 0.8, state=""), history("trial-2", 0.0, state="died"), begun]
    found, _ = found_so_far(PREPARED, histories)
    assert [(one.name, one.state) for one in found] == [("trial-0", "finished"), ("trial-1", "stopped")]
    checkpoints.add("trial-0")
    assert [one.name for one in found_so_far(PREPARED, histories)[0]] == ["trial-1"]


def test_a_configuration_with_a_training_that_died_stays_out_of_a_stopped_search_too(checkpoints: set[str]) -> None:
    searched = [history("trial-0", 0.70), history("trial-1", 0.80)]
    again = [history("confirm-1-8", 0.79), history("confirm-0-8", 0.70), history("confirm-0-9", 0.71)]
    died = replace(history("confirm-1-9", 0.0, state="died"), epochs=[])
    # So a climb that died is written down: what it had before it climbed is not what was to be confirmed.
    climbed = replace(history("confirm-1-9", 0.75, state="stopped"), error="died while it climbed")
    checkpoints.add("confirm-1-9")
    for one in (died, climbed):
        found, lost = found_so_far(PREPARED, [*searched, *again, one])
        assert (found, lost) == ([*searched, *again], [one])
        assert winner(standings([*found, *lost], TUNING), TUNING)[0].number == 0


def test_whoever_was_passed_over_is_known_of_a_stopped_search_as_of_a_whole_one() -> None:
    passed = replace(history("trial-1", 0.0, state=PASSED_OVER), epochs=[])
    found, others = found_so_far(PREPARED, [history("trial-0", 0.7), passed])
    assert ([one.name for one in found], others) == (["trial-0"], [passed])
    assert winner(standings([*found, *others], TUNING), TUNING)[0].number == 0
