"""Whether a version's answers still are spread as its answers about the validation texts were.

The population stability index of two distributions over the same bins is the sum of (p - q) ln(p / q): 0 where they are equal. It is
usually read as: below .1 little has changed, up to .25 something, above it much. Those bounds know nothing of how many answers were
counted: with 23 classes and 150 validation texts it is .15 on average over 2,000 answers though nothing changed. So what chance alone
brings is told beside it.

A bin without answers would make it infinite. Half an answer is therefore added to every bin on both sides: an epsilon of .5 / (n + b / 2)
for n answers in b bins. The class of an answer is the most probable one, also where the head abstains. A window is that of one replica,
and its texts need not be independent: many alike in one request are a shift too. It does not know where answers come from.

Sources: Siddiqi 2006, Credit Risk Scorecards (the index and its usual reading); Yurdakul and Naranjo 2020, Statistical Properties of the
Population Stability Index, Journal of Risk Model Validation 14 (its distribution by chance: (1/n + 1/m) times chi-squared with b - 1
degrees of freedom). Simulated with 2 to 100 bins, 90 to 1,000 against 200 to 2,000 answers of the same distribution, 0 to 6 of 100
windows exceed what is told here; few where most bins are nearly empty.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from serving.messages import HeadAnswer
from training.judging.shares import confidence_bins
from training.manifest import CONFIDENCE_BINS, HeadFacts

WINDOW = 2_000
LEAST = 200

_SMOOTHING = 0.5
_CHANCE = 0.05

Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Stability:
    """An index, and what it exceeds in one of twenty windows though nothing changed."""

    index: float
    by_chance: float


def stability(expected: Counts, found: Counts) -> Stability:
    """Compare two distributions.

    Args:
        expected: Answers a bin, (bins,), of the reference.
        found: Answers a bin, (bins,), of the window.
    """
    # Bins that are empty on both sides tell nothing, and are none that chance could fill.
    used = (expected > 0) | (found > 0)
    p, q = ((one[used] + _SMOOTHING) / (one[used] + _SMOOTHING).sum() for one in (expected, found))
    freedom = max(int(used.sum()) - 1, 1)
    by_chance = float(chdtri(freedom, _CHANCE)) * (1 / expected.sum() + 1 / found.sum())
    return Stability(float(((q - p) * np.log(q / p)).sum()), by_chance)


class _Window:
    """The last answers of one head, and the distributions they are compared with."""

    def __init__(self, head: HeadFacts) -> None:
        self._shares = head.validation_answers
        self._classes = head.classes
        self._named: deque[str] = deque(maxlen=WINDOW)
        self._confidences: deque[float] = deque(maxlen=WINDOW)

    def note(self, told: HeadAnswer) -> None:
        self._named.append(told.class_ if told.class_ is not None else _most_probable(told))
        self._confidences.append(told.probability)

    def compare(self) -> tuple[Stability, Stability] | None:
        if self._shares is None or len(self._named) < LEAST:
            return None
        named = Counter(self._named)
        classes = np.array([named[name] for name in self._classes], dtype=np.float64)
        bins = np.bincount(confidence_bins(np.array(self._confidences)), minlength=CONFIDENCE_BINS).astype(np.float64)
        expected = [np.array(shares) * self._shares.count for shares in (self._shares.classes, self._shares.confidence)]
        return stability(expected[0], classes), stability(expected[1], bins)


class Drift:
    """The last answers of one version, compared with those about its validation texts.

    Args:
        heads: Of the version; those whose manifest does not tell how the answers were spread are left out.
    """

    def __init__(self, heads: Sequence[HeadFacts]) -> None:
        self._windows = {head.name: _Window(head) for head in heads if head.validation_answers is not None}

    def note(self, answer: Mapping[str, HeadAnswer]) -> None:
        """Take in the heads' answers about one text."""
        for name, window in self._windows.items():
            if (told := answer.get(name)) is not None:
                window.note(told)

    def compare(self) -> dict[str, tuple[Stability, Stability]]:
        """Return, by head, how stable classes and confidence are; without heads that gave fewer than 200 answers."""
        compared = {name: window.compare() for name, window in self._windows.items()}
        return {name: found for name, found in compared.items() if found is not None}


def _most_probable(told: HeadAnswer) -> str:
    scores = told.scores or {}
    return max(scores, key=scores.__getitem__, default="")
