"""Runs of letters are those that scikit-learn counts in the text, however its words are cut into pieces."""

from collections import Counter

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer

from training.network.letters import ENDS, RUNS, crossing, spell

MARK = " "
WORDS = st.lists(st.lists(st.text("abcdé中", min_size=1, max_size=6), min_size=1, max_size=6), max_size=5)
count_runs = CountVectorizer(analyzer="char_wb", ngram_range=(2, 5)).build_analyzer()


def runs_of(pieces: list[str]) -> Counter[int]:
    """Count the runs of one text, given as its pieces."""
    spelling = spell(pieces)
    over = crossing(torch.arange(len(pieces)), torch.from_numpy(spelling.table), torch.tensor(ENDS))
    return Counter(over[over > 0].tolist()) + Counter(spelling.runs.tolist())


def number(run: str) -> int:
    """Return the number that a run has in a piece of its own, where it is the longest and so the last."""
    return int(spell([run]).runs[-1])


@settings(deadline=None)
@given(WORDS)
def test_they_are_those_of_the_text(words: list[list[str]]) -> None:
    text = " ".join("".join(word) for word in words)
    pieces = [MARK, *(piece if place else f" {piece}" for word in words for place, piece in enumerate(word)), MARK]
    assert runs_of(pieces) == Counter(number(run) for run in count_runs(text))


def test_texts_one_after_the_other_or_beside_each_other_do_not_touch() -> None:
    pieces = [MARK, " do", "ct", "or", " n", "urse"]
    table, ends = torch.from_numpy(spell(pieces).table), torch.tensor(ENDS)
    first, second = [0, 1, 2, 3, 0], [0, 4, 5, 0]
    alone = [crossing(torch.tensor(row), table, ends) for row in (first, second)]
    assert torch.equal(crossing(torch.tensor(first + second), table, ends), torch.cat(alone))
    beside = crossing(torch.tensor([first, [*second, 0]]), table, ends)
    assert torch.equal(beside[0], alone[0])
    assert torch.equal(beside[1, :4], alone[1])


def test_numbers_have_a_place_and_pieces_without_letters_none() -> None:
    spelling = spell([" a", "b", ""])
    found = crossing(torch.tensor([0, 1, 2, 1]), torch.from_numpy(spelling.table), torch.tensor(ENDS))
    assert found.min() >= 0
    assert max(found.max(), spelling.runs.max()) < RUNS
    assert not found[2].any()
    assert np.array_equal(spelling.owners, [0])
