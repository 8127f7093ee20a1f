"""Which engine answers: the fastest on this machine whose answers are those that the version was published with.

Every precision this machine has computes the version's golden texts. It may answer if nearly all labels are the stored ones and no
probability moved far; of those that may, the fastest does. The most precise one must agree in any case: one that does not is broken, or
not the version it says. It does not know how engines compute.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from serving.engines.engine import Engine, Logits
from serving.errors import ServingError
from training.golden import Golden
from training.judging.metrics import probabilities

log = logging.getLogger(__name__)

# Of all heads' labels; and of probability, on average over texts and heads, for the class that moved most.
LEAST_AGREEMENT, MOST_SHIFT = 0.995, 0.02
# Of tokens a batch, as under load; and of those that measure an engine known to agree.
_BATCH_TOKENS, _EXACT_TOKENS = 2_048, 2_048


@dataclass(frozen=True)
class Trial:
    """How an engine did on the golden texts.

    Attributes:
        precision: Of the engine.
        tokens_per_s: Real tokens, after a batch that did not count.
        agreement: Share of labels, over texts and heads, that are the stored ones.
        shift: How far the probability of the class that moved most is from the stored one, on average over texts and heads.
        is_chosen: It answers.
    """

    precision: str
    tokens_per_s: float
    agreement: float
    shift: float
    is_chosen: bool = False

    @property
    def agrees(self) -> bool:
        """Whether its answers are good enough."""
        return self.agreement >= LEAST_AGREEMENT and self.shift <= MOST_SHIFT

    def to_dict(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


def calibrate(
    make: Callable[[str], Engine], precisions: Sequence[str], golden: Golden, temperatures: Mapping[str, float]
) -> tuple[Engine, list[Trial]]:
    """Try engines and return the one to answer with, and how each did.

    Args:
        make: Makes an engine of a precision.
        precisions: To try, the most precise first.
        golden: The version's.
        temperatures: Head → what its logits are divided by.

    Raises:
        ServingError: The most precise one does not answer as the version did when it was made.
    """
    exact = make(precisions[0])
    # The stored answers are its own: some of them tell whether anything is wrong.
    trials = [_try(exact, golden.first(_EXACT_TOKENS), temperatures)]
    if not trials[0].agrees:
        raise ServingError(f"this machine does not answer as the version did when it was made: {_said(trials[0])}")
    best, chosen = exact, trials[0]
    for precision in precisions[1:]:
        engine = make(precision)
        found = _try(engine, golden, temperatures)
        trials.append(found)
        if not found.agrees:
            log.warning("%s is not used: %s", precision, _said(found))
        elif found.tokens_per_s > chosen.tokens_per_s:
            best, chosen = engine, found
    log.info("%s answers, at %.0f tokens per second", chosen.precision, chosen.tokens_per_s)
    return best, [Trial(**one.to_dict() | {"is_chosen": one is chosen}) for one in trials]


def _said(trial: Trial) -> str:
    return (
        f"{trial.agreement:.1%} of the golden texts' labels agree, and a text's probabilities move by up to {trial.shift:.3f} on average;"
        f" at least {LEAST_AGREEMENT:.1%} must agree, and they may move by {MOST_SHIFT}"
    )


def _try(engine: Engine, golden: Golden, temperatures: Mapping[str, float]) -> Trial:
    batches = _batches(golden)
    engine.forward(golden.rows[batches[0]])
    begun = time.perf_counter()
    answers = [engine.forward(golden.rows[batch]) for batch in batches]
    seconds = time.perf_counter() - begun
    found = {head: np.concatenate([one[head] for one in answers]) for head in golden.logits}
    agreement, shift = _compared(found, golden.logits, temperatures)
    return Trial(engine.dtype, sum(map(len, golden.rows)) / seconds, agreement, shift)


def _batches(golden: Golden) -> list[slice]:
    batches, begin, tokens = [], 0, 0
    for place, row in enumerate(golden.rows):
        if place > begin and tokens + len(row) > _BATCH_TOKENS:
            batches.append(slice(begin, place))
            begin, tokens = place, 0
        tokens += len(row)
    return [*batches, slice(begin, len(golden.rows))]


def _compared(found: Logits, stored: Logits, temperatures: Mapping[str, float]) -> tuple[float, float]:
    """Return the share of labels that are the same, and how far a text's probability that moved most moved, on average."""
    same, shifts = [], []
    for head, logits in stored.items():
        if not np.isfinite(found[head]).all():
            return 0.0, 1.0
        ours, theirs = (probabilities(one, temperatures.get(head, 1.0)) for one in (found[head], logits))
        same.append(ours.argmax(axis=1) == theirs.argmax(axis=1))
        shifts.append(np.abs(ours - theirs).max(axis=1))
    return float(np.mean(same)), float(np.mean(shifts))
