"""What batches cost: how many tokens a batch needs for the engine to be nearly as fast as it can be.

A batch costs something by itself (weights that come from memory, kernels that are started) and something for each token; once its tokens
cost twenty times what it costs itself, more of them only make texts wait for each other. Both costs are fitted to the best of several
rounds over all sizes: who else uses the machine for a moment spoils one reading of a size at most. It does not know how answers are
computed.
"""

import math
import time
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TypeVar

import numpy as np

Text = TypeVar("Text", bound=Sized)
Clock = Callable[[], float]

# The first size, and the last.
_FEWEST_TOKENS, _MOST_TOKENS = 64, 32_768
# Nobody should wait longer for others.
_LONGEST_BATCH_S = 0.4
# What a batch costs by itself may be this share of what its tokens cost.
_MOST_OWN = 0.05
# Over all sizes, while there is time.
_ROUNDS, _MOST_SECONDS = 6, 4.0
# What is computed in less is dwarfed by the way to the engine and back.
_LEAST_BATCH_S = 0.005


@dataclass(frozen=True)
class Cost:
    """What one batch took.

    Attributes:
        tokens: Of all its texts.
        texts: How many.
        seconds: The best of some rounds.
    """

    tokens: int
    texts: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def measure_costs(run: Callable[[Sequence[Text]], object], texts: Sequence[Text], clock: Clock) -> list[Cost]:
    """Measure batches of growing size, until one takes too long for those who wait.

    Args:
        run: Computes a batch.
        texts: Typical ones; those of middling length are used again and again, so that batches differ in nothing but size.
        clock: See `Engine.clock`.

    Returns:
        From the smallest.
    """
    begun, batches, costs = time.perf_counter(), list[list[Text]](), list[Cost]()
    size, texts = _FEWEST_TOKENS, sorted(texts, key=len)[len(texts) // 3 : len(texts) - len(texts) // 3]
    while size <= _MOST_TOKENS and (not costs or (costs[-1].seconds < _LONGEST_BATCH_S and time.perf_counter() - begun < _MOST_SECONDS)):
        batches.append(_batch(texts, size))
        # Memory and kernels of a new shape come with the first.
        run(batches[-1])
        costs.append(Cost(sum(map(len, batches[-1])), len(batches[-1]), _seconds(run, batches[-1], clock)))
        size *= 2
    for _ in range(_ROUNDS - 1):
        for place, batch in enumerate(batches):
            if time.perf_counter() - begun > _MOST_SECONDS:
                return costs
            costs[place] = replace(costs[place], seconds=min(costs[place].seconds, _seconds(run, batch, clock)))
    return costs


def enough(costs: Sequence[Cost]) -> Cost:
    """Return the smallest batch of which nearly all the time goes into tokens, and that is not too short for its way.

    Returns:
        As fitted; between the smallest and the largest that were measured.
    """
    own, token = _fitted(costs)
    wanted = max(own / _MOST_OWN, _LEAST_BATCH_S - own)
    tokens = min(math.ceil(wanted / token), costs[-1].tokens) if token else costs[-1].tokens
    tokens = max(tokens, costs[0].tokens)
    texts = round(tokens * costs[-1].texts / costs[-1].tokens)
    return Cost(tokens, max(texts, 1), own + token * tokens)


def _fitted(costs: Sequence[Cost]) -> tuple[float, float]:
    """Return what a batch costs by itself and for each token, in seconds, with the least relative error; neither is below 0."""
    if len(costs) == 1:
        return 0.0, costs[0].seconds / costs[0].tokens
    seconds = np.array([cost.seconds for cost in costs])
    tokens = np.array([cost.tokens for cost in costs])
    (own, token), *_ = np.linalg.lstsq(np.stack([1 / seconds, tokens / seconds], axis=1), np.ones(len(costs)), rcond=None)
    if own >= 0 and token > 0:
        return float(own), float(token)
    # Nothing by itself; or, where more tokens took no longer, nothing for each.
    return (0.0, float((seconds / tokens).mean())) if own < 0 else (float(seconds.mean()), 0.0)


def _batch(texts: Sequence[Text], size: int) -> list[Text]:
    chosen, tokens = list[Text](), 0
    for text in cycle(texts):
        if tokens >= size:
            break
        chosen.append(text)
        tokens += len(text)
    return chosen


def seconds_of(run: Callable[[Sequence[Text]], object], batch: Sequence[Text], clock: Clock) -> float:
    """Return what a batch takes, the best of some rounds after one that does not count; see `measure_costs`."""
    run(batch)
    return min(_seconds(run, batch, clock) for _ in range(3))


def _seconds(run: Callable[[Sequence[Text]], object], batch: Sequence[Text], clock: Clock) -> float:
    begun = clock()
    run(batch)
    return clock() - begun
