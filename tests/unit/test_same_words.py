"""A search that goes on has the words it began with, up to the order in which a processor adds up."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster.storage import Storage
from tests.unit.test_word_pieces import CLASSES, LETTERS, folds, written
from training.data.tokens import TokenTable
from training.errors import TuningError
from training.fitting.word_weights import Asked, WordWeights, find_word_weights
from training.network.letters import spell
from training.search import tuning
from training.search.proposing.ledger import Ledger
from training.search.same_words import require_same_words, sketches


def found(table: TokenTable, labels: NDArray[np.int64], own_folds: NDArray[np.int64], *more: str) -> WordWeights:
    asked = [Asked(name, CLASSES, labels) for name in ("job", *more)]
    words = find_word_weights(table, asked, own_folds, spell(LETTERS), 0)
    assert words is not None
    assert words.reads_letters
    return words


@pytest.fixture(scope="module")
def words() -> WordWeights:
    return found(*written(300, 0), folds(300))


def of(words: WordWeights | None) -> Any:
    return SimpleNamespace(name="one", assignment=SimpleNamespace(words=words))


def begun(folder: Path) -> Ledger:
    return Ledger(Storage(str(folder)), "ledger")


def test_a_search_that_goes_on_has_the_words_it_began_with(words: WordWeights, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_same_words(of(words), begun(tmp_path))
    require_same_words(of(words), begun(tmp_path))
    assert len(begun(tmp_path).events("words")) == 1
    # The same texts in another order: sums are others in their last digits.
    table, labels = written(300, 0)
    order = np.random.default_rng(1).permutation(300)
    again = found(table.take(order), labels[order], folds(300)[order])
    assert sketches(again) != sketches(words)
    require_same_words(of(again), begun(tmp_path))
    assert capsys.readouterr().out == ""


def changes(words: WordWeights) -> dict[str, WordWeights | None]:
    head = words.heads["job"]
    table, labels = written(300, 0)
    fewer = np.arange(280)
    return {
        "other texts": found(table.take(fewer), labels[fewer], folds(300)[fewer]),
        "constants": replace(words, heads={"job": replace(head, constants=head.constants + 1)}),
        "classes": replace(words, heads={"job": replace(head, weights=head.weights[:, ::-1])}),
        "rarity": replace(words, pieces=replace(words.pieces, rarities=words.pieces.rarities * 1.1)),
        "pieces": replace(words, pieces=replace(words.pieces, ids=words.pieces.ids + 1)),
        "letters": replace(words, heads={"job": replace(head, run_weights=None)}),
        "another head": replace(words, heads={**words.heads, "level": head}),
        "none": None,
    }


def test_other_words_are_refused(words: WordWeights, tmp_path: Path) -> None:
    require_same_words(of(words), begun(tmp_path))
    for name, other in changes(words).items():
        with pytest.raises(TuningError, match=r"search 'one': what words say for (job|level) is not what it was") as caught:
            require_same_words(of(other), begun(tmp_path))
        assert "the release and the packages that it began with" in caught.value.hint, name
    require_same_words(of(words), begun(tmp_path))


def test_a_search_of_an_earlier_release_goes_on_with_a_note(words: WordWeights, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun(tmp_path).append("look", {"elapsed_s": 1.0})
    require_same_words(of(words), begun(tmp_path))
    assert "note      nothing is written down of the words this search began with" in capsys.readouterr().out
    # From here on it is.
    with pytest.raises(TuningError, match="what words say for job"):
        require_same_words(of(None), begun(tmp_path))
    assert capsys.readouterr().out == ""


def test_it_is_asked_before_anything_is_done_with_words(words: WordWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    search: Any = SimpleNamespace(name="one", storage=storage, folder="", assignment=SimpleNamespace(words=None))
    require_same_words(of(words), Ledger(storage, "/ledger"))
    monkeypatch.setattr(tuning, "with_budget", lambda prepared, *_: prepared)
    for name in ("quieten", "announce", "note_job", "_used"):
        monkeypatch.setattr(tuning, name, lambda *_: None)
    with pytest.raises(TuningError, match="what words say for job"):
        tuning._see_through(search, search, 0.0)
