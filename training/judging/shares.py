"""How a model's answers are spread over classes and over confidence: what serving compares its own answers with.

The confidence of an answer is the probability of the class that is answered. It knows probabilities only, no labels and no texts.
"""

import numpy as np
from numpy.typing import NDArray

from training.judging.metrics import Probabilities
from training.manifest import CONFIDENCE_BINS, AnswerShares


def confidence_bins(confidences: NDArray[np.float64], bins: int = CONFIDENCE_BINS) -> NDArray[np.int64]:
    """Return in which bin of equal width each confidence lies, from 0; bins are open below and closed above."""
    # A softmax may exceed 1 by its last bit.
    numbers: NDArray[np.int64] = np.clip(np.ceil(confidences * bins) - 1, 0, bins - 1).astype(np.int64)
    return numbers


def answer_shares(probabilities: Probabilities) -> AnswerShares:
    """Count how often each class is the most probable one, and how confident the answers are.

    Args:
        probabilities: (texts, classes), calibrated, of at least one text; those without a label count too.
    """
    texts, classes = probabilities.shape
    answers = np.bincount(probabilities.argmax(axis=1), minlength=classes)
    bins = np.bincount(confidence_bins(probabilities.max(axis=1).astype(np.float64)), minlength=CONFIDENCE_BINS)
    return AnswerShares(
        count=texts,
        classes=tuple(float(count) / texts for count in answers),
        confidence=tuple(float(count) / texts for count in bins),
    )
