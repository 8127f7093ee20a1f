"""How far the answers of one forward pass are from those of another, head by head, on the same texts.

Differences are of calibrated probabilities, because those are what an answer shows. It does not know where the texts come from.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from training.judging.metrics import Probabilities, probabilities
from training.manifest import HeadFacts
from training.network.inputs import Batch, TokenInputs, plan_batches

Forward = Callable[[Batch], Mapping[str, NDArray[np.float32]]]

# A float32 pass that orders its operations differently moves a probability by 1e-7 to 1e-6.
CLEAR_MARGIN = 1e-4
_BATCH_TOKENS = 2048
_BATCH_TEXTS = 16


class HeadParity(BaseModel):
    """One head's differences.

    Attributes:
        largest: Largest difference of a class's calibrated probability.
        mean: Mean difference.
        equal_answers: Share of texts with the same most probable class.
        clear_changes: Texts with another class although the first pass preferred its own by more than `CLEAR_MARGIN`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    largest: float
    mean: float
    equal_answers: float
    clear_changes: int


def answer_all(forward: Forward, inputs: TokenInputs, heads: Sequence[HeadFacts]) -> dict[str, Probabilities]:
    """Compute every head's calibrated probabilities, (texts, classes), in the order of the texts."""
    answers = {head.name: np.zeros((len(inputs.table), len(head.classes)), np.float32) for head in heads}
    for indices in plan_batches(inputs.lengths, _BATCH_TOKENS, _BATCH_TEXTS):
        logits = forward(inputs.batch(indices))
        for head in heads:
            answers[head.name][indices] = probabilities(logits[head.name], head.temperature)
    return answers


def compare(expected: Mapping[str, Probabilities], found: Mapping[str, Probabilities]) -> dict[str, HeadParity]:
    """Compare the answers of two forward passes, head by head."""
    return {head: _compare_head(expected[head], found[head]) for head in expected}


def _compare_head(expected: Probabilities, found: Probabilities) -> HeadParity:
    difference = np.abs(expected.astype(np.float64) - found)
    ordered = np.sort(expected, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    equal = expected.argmax(axis=1) == found.argmax(axis=1)
    return HeadParity(
        largest=float(difference.max()),
        mean=float(difference.mean()),
        equal_answers=float(equal.mean()),
        clear_changes=int((~equal & (margin > CLEAR_MARGIN)).sum()),
    )
