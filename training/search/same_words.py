"""Sees to it that a search which goes on has the words it began with.

What words say is found anew whenever a search goes on, and no checkpoint has it: heads that were trained beside other words would say
something else, and nothing would tell. So a search writes a sketch of its words into its ledger when it first finds them.

Source: Charikar, Chen and Farach-Colton 2002, Finding Frequent Items in Data Streams, for sketches: two are about as far apart as what
they are of.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cluster.console import say
from training.errors import TuningError
from training.fitting.piece_counts import Terms
from training.fitting.word_weights import HeadWeights, WordWeights
from training.search.prepared import Prepared
from training.search.proposing.ledger import Ledger

_WORDS = "words"
_NUMBERS = 64
# Other processors and libraries add up in another order, which changes 1e-5 of it; one text in twelve more or less changes .07.
_MOST_APART = 0.01
# Odd, near 2^64 divided by the golden ratio: neighbours' products are far apart (Knuth, The Art of Computer Programming, volume 3, 6.4).
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Sketches = Mapping[str, list[float]]


def require_same_words(prepared: Prepared, ledger: Ledger) -> None:
    """Write down what a search's words are, or compare them with those that it began with.

    Args:
        prepared: The search.
        ledger: Its own; it is written to where nothing of them is known.

    Raises:
        TuningError: They are others, or another process goes on with the search.
    """
    found, written = sketches(prepared.assignment.words), ledger.events(_WORDS)
    if not written:
        if ledger.is_resumed:
            say("note      nothing is written down of the words this search began with, so nobody can tell whether they are the same now")
        ledger.append(_WORDS, {"sketches": found})
        return
    before: Sketches = written[0]["sketches"]
    if changed := [head for head in sorted({*found, *before}) if not _are_alike(found.get(head), before.get(head))]:
        raise TuningError(
            f"search {prepared.name!r}: what words say for {', '.join(changed)} is not what it was when the search began, and heads were "
            "trained beside that",
            "go on with the release and the packages that it began with, or begin a new search",
        )


def sketches(words: WordWeights | None) -> dict[str, list[float]]:
    """Sketch what was found, by head.

    Args:
        words: What word pieces say by themselves; nothing where they say nothing.
    """
    return {} if words is None else {head: _sketch(words, one) for head, one in words.heads.items()}


def _sketch(words: WordWeights, head: HeadWeights) -> list[float]:
    # Each is compared by itself: a small one would not be seen beside a large one.
    parts = [_of_weights(words.pieces, head.weights), _hashed(np.arange(len(head.constants)), head.constants)]
    if head.run_weights is not None:
        parts.append(_of_weights(words.runs, head.run_weights))
    return [float(f"{number:.6g}") for number in np.concatenate(parts)]


def _of_weights(terms: Terms, weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sketch weights, (terms, classes), and how rare the terms are."""
    classes = weights.shape[1]
    places = terms.ids[:, None] * (classes + 1) + np.arange(classes)
    return np.concatenate([_hashed(places.ravel(), weights.ravel()), _hashed(terms.ids, terms.rarities)])


def _hashed(places: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Add values up, each with a sign and to a number that its place decides, (numbers,)."""
    # Not by a generator of random numbers, which another release may draw otherwise.
    mixed = (places.astype(np.uint64) + np.uint64(1)) * _FACTOR
    mixed = (mixed ^ (mixed >> np.uint64(29))) * _FACTOR
    signs = np.where(mixed >> np.uint64(63), 1.0, -1.0)
    numbers = ((mixed >> np.uint64(32)) % np.uint64(_NUMBERS)).astype(np.int64)
    return np.bincount(numbers, signs * values, minlength=_NUMBERS).astype(np.float64)


def _are_alike(one: list[float] | None, other: list[float] | None) -> bool:
    if one is None or other is None or len(one) != len(other):
        return False
    ours, theirs = (np.array(numbers).reshape(-1, _NUMBERS) for numbers in (one, other))
    apart, length = np.linalg.norm(ours - theirs, axis=1), np.linalg.norm(theirs, axis=1)
    return bool((apart <= _MOST_APART * length + np.finfo(np.float32).eps).all())
