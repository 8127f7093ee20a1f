"""Counts what stands in the training texts: word pieces, and runs of letters within words (`network.letters`), with how rare each is.

It does not know labels or weights.

Source: Salton and Buckley 1988, Term-weighting Approaches in Automatic Text Retrieval, for TF-IDF.
"""

from dataclasses import dataclass
from functools import cached_property

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


@dataclass(frozen=True)
class Counted:
    """How often what stands where.

    Attributes:
        terms: What is counted.
        counts: (texts, terms).
    """

    terms: Terms
    counts: csr_matrix

    def __add__(self, other: "Counted") -> "Counted":
        """Put other terms of the same texts beside these."""
        ids, rarities = (np.concatenate([getattr(one.terms, name) for one in (self, other)]) for name in ("ids", "rarities"))
        return Counted(Terms(ids, rarities), hstack([self.counts, other.counts], format="csr"))

    @cached_property
    def vectors(self) -> csr_matrix:
        """TF-IDF vectors of length 1, (texts, terms).

        The length is that of a vector in which every occurrence has a place of its own, so that a model can sum it in one pass.
        """
        rarities = self.terms.rarities
        lengths = np.sqrt(np.maximum(self.counts @ rarities**2, np.finfo(np.float32).tiny))
        return (diags(1.0 / lengths) @ self.counts @ diags(rarities)).tocsr()


def count_pieces(table: TokenTable, vocabulary: int) -> Counted:
    """Count the pieces of each text.

    Args:
        table: The texts.
        vocabulary: How many token ids there are.
    """
    return _kept(_pieces(table, vocabulary))


def count_runs(table: TokenTable, spelling: Spelling) -> Counted:
    """Count the runs of letters of each text.

    Args:
        table: The texts.
        spelling: Of all pieces.
    """
    known, ends = torch.tensor(spelling.table), torch.tensor(ENDS)
    over = []
    for part in table.parts(_TOKENS_TOGETHER):
        numbers = crossing(torch.tensor(part.ids, dtype=torch.int64), known, ends).numpy()
        is_run = np.nonzero(numbers)
        places = np.repeat(np.arange(len(part)), part.lengths)[is_run[0]]
        over.append(csr_matrix((np.ones(len(places), np.float32), (places, numbers[is_run])), shape=(len(part), RUNS)))
    found = (vstack(over) + _pieces(table, len(spelling)) @ runs_within(spelling)).tocsr()
    found.sum_duplicates()
    return _kept(found)


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


def _kept(counts: csr_matrix) -> Counted:
    """Leave out what stands in one text only, and what stands in every text, as the marks of beginning and end do: its rarity is 0."""
    texts = counts.shape[0]
    having = np.bincount(counts.indices, minlength=counts.shape[1])
    ids = np.flatnonzero((having >= _LEAST_TEXTS) & (having < texts))
    return Counted(Terms(ids, np.log((1 + texts) / (1 + having[ids])).astype(np.float32)), counts[:, ids])
