"""Runs of two to five letters within words, told from token ids alone.

Word pieces end where an encoder's vocabulary has it, not where a language builds its words; in one that the vocabulary does not know a
piece is a letter or two. Runs of letters cross these borders. Those within one piece are known beforehand; here are those that end in a
piece and begin in one before it, of the same word. A word's first letter has a blank before it and its last one a blank behind, so that
beginnings and ends tell apart. Runs are numbers: letters as digits to the base 256, counted modulo a prime, so that some share one. It
does not know weights.

Sources: scikit-learn's `char_wb` analyser, https://scikit-learn.org/stable/modules/feature_extraction.html, for what a run is; Weinberger
et al. 2009, Feature Hashing for Large Scale Multitask Learning (arXiv 0902.2206), for runs that share a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

# A prime: what letters give modulo a power of two hangs on the last ones alone.
_PRIME = 65_521
#: Numbers that runs can have, from 1 on; 0 is none.
RUNS = _PRIME + 1
_LEAST, _MOST = 2, 5
_BASE = 256
_BLANK = ord(" ")
# A run ends with one to four letters of a piece and begins with the others before it: (letters of the piece, letters before).
_PAIRS = [(own, length - own) for own in range(1, _MOST) for length in range(own + 1, _MOST + 1)]
#: The same in two rows, and 256 to their powers, (4, 10), int64.
ENDS = np.array([(own, count, _BASE**own, _BASE**count) for own, count in _PAIRS], np.int64).T
#: Columns of a spelling: the piece's first one to four letters, each as a number and 0 where it has fewer; its last four at most; how many
#: these are; what letters before them are multiplied by, 0 where there is no room for any; whether it goes on a word.
COLUMNS = _MOST + 3
_LAST, _LENGTH, _ROOM, _GOES_ON = range(_MOST - 1, COLUMNS)


@dataclass(frozen=True)
class Spelling:
    """How the pieces of a vocabulary are written.

    Attributes:
        table: What `crossing` has to know of each piece, (pieces, COLUMNS), int64.
        owners: The piece of each run within a piece, (runs of all pieces,), int64.
        runs: Its number, likewise.
    """

    table: NDArray[np.int64]
    owners: NDArray[np.int64]
    runs: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.table)


def spell(pieces: Sequence[str]) -> Spelling:
    """Find the runs of letters within pieces, and what those that cross their borders hang on.

    Args:
        pieces: The letters of each, a blank first where it begins a word; a mark that is no text is a blank, for words end there.
    """
    table = np.zeros((len(pieces), COLUMNS), np.int64)
    owners, runs = [], []
    for place, piece in enumerate(pieces):
        letters = _letters(piece)
        firsts = [_number(letters[:count]) for count in range(1, min(len(letters), _LAST) + 1)]
        table[place, : len(firsts)] = firsts
        goes_on = not piece.startswith(" ")
        room = _BASE ** len(firsts) if goes_on and len(firsts) < _LAST else 0
        table[place, _LAST:] = _number(letters[-_LAST:]), len(firsts), room, goes_on
        own = _runs_within(letters)
        owners += [place] * len(own)
        runs += own
    return Spelling(table, np.array(owners, np.int64), np.array(runs, np.int64))


def crossing(ids: torch.Tensor, spelling: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Return the numbers of the runs that end in each piece and begin before it.

    Args:
        ids: Token ids, (…, tokens). Each text has a mark at its beginning, so that texts may stand one after the other.
        spelling: The table of a `Spelling`.
        ends: `ENDS`, where the other two are: a GPU that replays what it did cannot be given numbers on the way.

    Returns:
        (…, tokens, 10), int64; 0 where there is no run.
    """
    rows = spelling[ids]
    before, length = _before(rows)
    # Few steps over all ten at once: a short text waits for each.
    own, count, shift, room = ends.unbind()
    first = rows[..., own - 1]
    # Nothing runs on over a blank, nor from one to the next.
    goes_on = rows[..., _GOES_ON] > 0
    is_one_word = goes_on.unsqueeze(-1) | ((own == 1) & (before % _BASE != _BLANK).unsqueeze(-1))
    number = before.unsqueeze(-1) % room * shift + first
    return torch.where(is_one_word & (first > 0) & (length.unsqueeze(-1) >= count), number % _PRIME + 1, 0)


def _before(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last four letters, at most, of the word before each piece as a number, and how many they are."""
    tokens = rows.shape[-2]
    # Before a text there is no letter.
    earlier = functional.pad(rows, (0, 0, _LAST, 0))
    last, length = earlier[..., :tokens, _LAST], earlier[..., :tokens, _LENGTH]
    for step in range(1, _LAST):
        piece = earlier[..., step : step + tokens, :]
        last = (last * piece[..., _ROOM] + piece[..., _LAST]) % _BASE**_LAST
        length = (length * piece[..., _GOES_ON] + piece[..., _LENGTH]).clamp(max=_LAST)
    return last, length


def _letters(piece: str) -> list[int]:
    """A letter beyond ASCII shares its number with some others."""
    codes = [ord(letter) for letter in piece]
    return [code if 0 < code < 128 else 128 + code % 127 for code in codes]


def _number(letters: Sequence[int]) -> int:
    number = 0
    for letter in letters:
        number = number * _BASE + letter
    return number


def _runs_within(letters: Sequence[int]) -> list[int]:
    ends = range(len(letters) + 1)
    return [_number(letters[end - size : end]) % _PRIME + 1 for size in range(_LEAST, _MOST + 1) for end in ends if end >= size]
