"""Which engine answers: the fastest on this machine whose answers are those that the version was published with.

Every precision this machine has computes the version's golden texts. It may answer if nearly all labels are the stored ones and
probabilities moved little; of those that may, the fastest does. The most precise one must agree in any case: one that does not is broken,
or not the version it says. The first golden texts measure speed, and are what an engine may be fitted to; the others judge it. It does not
know how engines compute.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from serving.engines.costs import seconds_of
from serving.engines.engine import Engine, Logits
from serving.errors import ServingError
from training.golden import Golden
from training.judging.metrics import probabilities

log = logging.getLogger(__name__)

# Of all heads' labels; and of probability, on average over texts and heads, for the class that moved most.
LEAST_AGREEMENT, MOST_SHIFT = 0.995, 0.02
# Fewer labels cannot tell one in two hundred from luck.
FEWEST_LABELS = 100
# Of the first texts, and of a batch of the others.
FIRST_TOKENS, _BATCH_TOKENS = 2_048, 2_048
# Whoever takes so many times as long as the best one for so many tokens is not asked for more: some processors multiply whole numbers
# fifty times more slowly than others.
_FAR_SLOWER, _FEW_TOKENS = 3.0, 64


@dataclass(frozen=True)
class Trial:
    """How an engine did on the golden texts.

    Attributes:
        precision: Of the engine.
        tokens_per_s: Real tokens, in a batch of the first texts; of fewer of them where it is far slower than the best.
        agreement: Share of labels, over texts and heads, that are the stored ones; nothing where it was too slow to be asked.
        shift: How far the probability of the class that moved most is from the stored one, on average over texts and heads.
        is_chosen: It answers.
    """

    precision: str
    tokens_per_s: float
    agreement: float | None = None
    shift: float | None = None
    is_chosen: bool = False

    @property
    def agrees(self) -> bool:
        """Whether its answers are good enough."""
        return self.agreement is not None and self.shift is not None and self.agreement >= LEAST_AGREEMENT and self.shift <= MOST_SHIFT

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
        ServingError: The most precise one cannot compute, or does not answer as the version did when it was made.
    """
    first, others = golden.divide(FIRST_TOKENS)
    best = make(precisions[0])
    # The stored answers are float32's own: some tell whether it is whole. Whatever else is asked for is judged by the others.
    judges = first if best.dtype == "float32" or not others.labels else others
    chosen = _judged(best, Trial(best.dtype, _speed(best, first)), judges, temperatures)
    if not chosen.agrees:
        raise ServingError(f"this machine does not answer as the version did when it was made: {_said(chosen)}")
    trials = [chosen]
    for precision in precisions[1:]:
        try:
            engine = make(precision)
            found = Trial(precision, _speed_beside(best, chosen.tokens_per_s, engine, first))
            if found.tokens_per_s > chosen.tokens_per_s:
                found = _judged(engine, found, others, temperatures)
        # Libraries that lack a product for this machine say so in this way; float32 answers all the same.
        except RuntimeError as error:
            log.warning("%s is not used: this machine cannot compute so (%s)", precision, type(error).__name__)
            continue
        trials.append(found)
        if not _may_answer(found, others):
            log.warning("%s is not used: %s", precision, _said(found))
        elif found.tokens_per_s > chosen.tokens_per_s:
            best, chosen = engine, found
    log.info("%s answers, at %.0f tokens per second", chosen.precision, chosen.tokens_per_s)
    return best, [replace(one, is_chosen=one is chosen) for one in trials]


def _may_answer(trial: Trial, others: Golden) -> bool:
    return trial.agrees and others.labels >= FEWEST_LABELS


def _said(trial: Trial) -> str:
    if trial.agreement is None:
        return f"it computes {trial.tokens_per_s:.0f} tokens per second, which is not faster"
    return (
        f"{trial.agreement:.1%} of the golden texts' labels agree, and a text's probabilities move by {trial.shift:.3f} on average;"
        f" of at least {FEWEST_LABELS} labels {LEAST_AGREEMENT:.1%} must agree, and probabilities may move by {MOST_SHIFT}"
    )


def _speed(engine: Engine, golden: Golden) -> float:
    return sum(map(len, golden.rows)) / seconds_of(engine.forward, golden.rows, engine.clock)


def _speed_beside(best: Engine, best_tokens_per_s: float, engine: Engine, golden: Golden) -> float:
    """Return tokens per second; an estimate where an engine is far slower than the best one."""
    few = golden.divide(_FEW_TOKENS)[0].rows
    times_as_long = seconds_of(engine.forward, few, engine.clock) / seconds_of(best.forward, few, best.clock)
    return best_tokens_per_s / times_as_long if times_as_long > _FAR_SLOWER else _speed(engine, golden)


def _judged(engine: Engine, trial: Trial, golden: Golden, temperatures: Mapping[str, float]) -> Trial:
    if not golden.labels:
        return replace(trial, agreement=0.0, shift=1.0)
    answers = [engine.forward(golden.rows[batch]) for batch in _batches(golden)]
    found = {head: np.concatenate([one[head] for one in answers]) for head in golden.logits}
    agreement, shift = _compared(found, golden.logits, temperatures)
    return replace(trial, agreement=agreement, shift=shift)


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
