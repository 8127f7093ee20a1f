"""What batches cost: how many tokens a batch needs for the engine to be as fast as it can be.

Without padding a batch of some hundred tokens already fills a core, and more only make texts wait for each other; a GPU wants many
thousand. It does not know how answers are computed.
"""

import time
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from itertools import cycle
from typing import TypeVar

Text = TypeVar("Text", bound=Sized)

# The first size, and the last.
_FEWEST_TOKENS, _MOST_TOKENS = 64, 32_768
# Twice as many tokens that bring less than this are not worth their wait; twice in a row, for others use the machine too.
_LEAST_GAIN, _IN_VAIN = 1.05, 2
# Of the same batch; the fastest counts.
_ROUNDS = 2
# Enough is known then.
_MOST_SECONDS = 4.0
# What is computed in less is dwarfed by the way to the engine and back.
_LEAST_BATCH_S = 0.005


@dataclass(frozen=True)
class Cost:
    """What one batch took.

    Attributes:
        tokens: Of all its texts.
        texts: How many.
        seconds: Wall time, the best of some rounds.
    """

    tokens: int
    texts: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def measure_costs(run: Callable[[Sequence[Text]], object], texts: Sequence[Text]) -> list[Cost]:
    """Measure batches of growing size, until growing brings nothing.

    Args:
        run: Computes a batch.
        texts: Typical ones, as long as they have tokens; used again and again.

    Returns:
        From the smallest.
    """
    begun, costs, vain = time.perf_counter(), list[Cost](), 0
    size = _FEWEST_TOKENS
    while size <= _MOST_TOKENS and vain < _IN_VAIN and time.perf_counter() - begun < _MOST_SECONDS:
        batch = _batch(texts, size)
        best = max((cost.tokens_per_s for cost in costs), default=0.0)
        costs.append(Cost(sum(map(len, batch)), len(batch), seconds_of(run, batch)))
        vain = 0 if costs[-1].tokens_per_s >= _LEAST_GAIN * best else vain + 1
        size *= 2
    return costs


def enough(costs: Sequence[Cost]) -> Cost:
    """Return the smallest batch that is nearly as fast as any, and not too short for its way; else the largest."""
    best = max(cost.tokens_per_s for cost in costs)
    fast = (cost for cost in costs if _LEAST_GAIN * cost.tokens_per_s >= best and cost.seconds >= _LEAST_BATCH_S)
    return next(fast, costs[-1])


def _batch(texts: Sequence[Text], size: int) -> list[Text]:
    chosen, tokens = list[Text](), 0
    for text in cycle(texts):
        if tokens >= size:
            break
        chosen.append(text)
        tokens += len(text)
    return chosen


def seconds_of(run: Callable[[Sequence[Text]], object], batch: Sequence[Text]) -> float:
    """Return what a batch takes, wall time, the best of some rounds after one that does not count."""
    # Memory and kernels of a new shape come with the first.
    run(batch)
    found = []
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        run(batch)
        found.append(time.perf_counter() - begun)
    return min(found)
