"""Counts what stands in the training texts: word pieces, and runs of letters within words (`network.letters`), with how rare each is.

Texts are counted in parts, for a text has many more runs than tokens: of a large table all at once would take gigabytes. It does not know
labels or weights.

Source: Salton and Buckley 1988, Term-weighting Approaches in Automatic Text Retrieval, for TF-IDF.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags, hstack, vstack

from training.data.tokens import TokenTable
from training.network.letters import ENDS, RUNS, Spelling, crossing

# What stands in one text only tells classes apart by chance.
_LEAST_TEXTS = 2
# Of every token some hundred numbers are needed at once.
_TOKENS_TOGETHER = 262_144
# Counts of 8 bytes that are kept, so that smaller tables are counted once.
_MOST_KEPT = 32_000_000


@dataclass(frozen=True)
class Terms:
    """Word pieces, or runs of letters, that are counted.

    Attributes:
        ids: Of the pieces, or numbers of the runs, (terms,).
        rarities: Their IDF, (terms,).
    """

    ids: NDArray[np.int64]
    rarities: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)


NO_TERMS = Terms(np.zeros(0, np.int64), np.zeros(0, np.float32))


class Counted:
    """How often what stands where, a part of the texts at a time.

    What stands in one text only is left out, and what stands in every text, as the marks of beginning and end do: its rarity is 0.

    Args:
        table: The texts.
        count: Counts all there is in some texts, (texts, columns).
        columns: How many.

    Attributes:
        terms: What is counted; ids are columns.
        having: In how many texts each of them stands, (terms,), int64.
    """

    def __init__(self, table: TokenTable, count: Callable[[TokenTable], csr_matrix], columns: int) -> None:
        self._count = count
        self._parts = list(table.parts(_TOKENS_TOGETHER))
        self._begins = np.cumsum([0, *map(len, self._parts)])
        having, kept, numbers = np.zeros(columns, np.int64), [], 0
        for part in self._parts:
            counts = count(part)
            having += np.bincount(counts.indices, minlength=columns)
            numbers += counts.nnz
            if numbers <= _MOST_KEPT:
                kept.append(counts)
        texts = len(table)
        ids = np.flatnonzero((having >= _LEAST_TEXTS) & (having < texts))
        self.having = having[ids]
        self.terms = Terms(ids, np.log((1 + texts) / (1 + self.having)).astype(np.float32))
        self._kept = [counts[:, ids] for counts in kept]

    def __len__(self) -> int:
        return int(self._begins[-1])

    def parts(self) -> Iterator[NDArray[np.int64]]:
        """Name all texts by their places, so many at once as `vectors` had better be asked for."""
        for begin, end in zip(self._begins[:-1], self._begins[1:], strict=True):
            yield np.arange(begin, end)

    def vectors(self, texts: NDArray[np.int64], terms: NDArray[np.int64] | None = None) -> csr_matrix:
        """TF-IDF vectors of length 1, (texts, terms).

        The length is that of a vector in which every occurrence has a place of its own, so that a model can sum it in one pass.

        Args:
            texts: Places of some texts, in ascending order.
            terms: Columns to return, by default all; the length is that with all of them.
        """
        owners = np.searchsorted(self._begins, texts, side="right") - 1
        found = [self._scaled(self._rows(part, texts[owners == part] - self._begins[part]), terms) for part in np.unique(owners)]
        return vstack(found, format="csr")

    def _rows(self, part: int, rows: NDArray[np.int64]) -> csr_matrix:
        """Return counts of some texts of a part, (rows, terms)."""
        table = self._parts[part]
        is_whole = len(rows) == len(table)
        if part < len(self._kept):
            return self._kept[part] if is_whole else self._kept[part][rows]
        return self._count(table if is_whole else table.take(rows))[:, self.terms.ids]

    def _scaled(self, counts: csr_matrix, terms: NDArray[np.int64] | None) -> csr_matrix:
        rarities = self.terms.rarities
        lengths = np.sqrt(np.maximum(counts @ rarities**2, np.finfo(np.float32).tiny))
        scaled = (diags(1.0 / lengths) @ counts @ diags(rarities)).tocsr()
        return scaled if terms is None else scaled[:, terms]


def count_pieces(table: TokenTable, vocabulary: int) -> Counted:
    """Count the pieces of each text.

    Args:
        table: The texts.
        vocabulary: How many token ids there are.
    """
    return Counted(table, lambda texts: _pieces(texts, vocabulary), vocabulary)


def count_both(table: TokenTable, spelling: Spelling) -> Counted:
    """Count the pieces of each text, and behind them the runs of letters: their numbers come after all token ids.

    Args:
        table: The texts.
        spelling: Of all pieces.
    """
    within, known, ends = runs_within(spelling), torch.tensor(spelling.table), torch.tensor(ENDS)

    def count(texts: TokenTable) -> csr_matrix:
        pieces = _pieces(texts, len(spelling))
        numbers = crossing(torch.tensor(texts.ids, dtype=torch.int64), known, ends).numpy()
        is_run = np.nonzero(numbers)
        places = np.repeat(np.arange(len(texts)), texts.lengths)[is_run[0]]
        across = csr_matrix((np.ones(len(places), np.float32), (places, numbers[is_run])), shape=(len(texts), RUNS))
        runs = across + pieces @ within
        runs.sum_duplicates()
        return hstack([pieces, runs], format="csr")

    return Counted(table, count, len(spelling) + RUNS)


def divided(terms: Terms, vocabulary: int) -> tuple[Terms, Terms]:
    """Return the pieces, and the runs by their own numbers, of what `count_both` counted.

    Args:
        terms: Of both.
        vocabulary: How many token ids there are.
    """
    pieces = int(np.searchsorted(terms.ids, vocabulary))
    return Terms(terms.ids[:pieces], terms.rarities[:pieces]), Terms(terms.ids[pieces:] - vocabulary, terms.rarities[pieces:])


def runs_within(spelling: Spelling) -> csr_matrix:
    """Count the runs within each piece, (pieces, RUNS).

    Args:
        spelling: Of all pieces.
    """
    return csr_matrix((np.ones(len(spelling.runs), np.float32), (spelling.owners, spelling.runs)), shape=(len(spelling), RUNS))


def _pieces(table: TokenTable, vocabulary: int) -> csr_matrix:
    places = np.repeat(np.arange(len(table)), table.lengths)
    counts = csr_matrix((np.ones(len(places), np.float32), (places, table.ids)), shape=(len(table), vocabulary))
    counts.sum_duplicates()
    return counts
