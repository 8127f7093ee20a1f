"""When requests are due: gamma-distributed gaps, of which the Poisson process is a special case.

A Poisson process is what many callers make who know nothing of each other. Traffic in life is burstier: the coefficient of variation of
the gaps says how much (1 is Poisson, below it arrivals are more even, above it they come in bursts).
"""

import random
from collections.abc import Iterator

LEAST_BURSTINESS, MOST_BURSTINESS = 0.05, 10.0


def due_times(rate_per_s: float, burstiness: float, seed: int) -> Iterator[float]:
    """Yield seconds since the start, without end; the same seed gives the same times.

    Args:
        rate_per_s: Requests a second, on average.
        burstiness: Coefficient of variation of the gaps.
        seed: Of the gaps.
    """
    chance = random.Random(seed)  # noqa: S311  # a schedule, no secret
    # A gamma distribution's coefficient of variation is one over the root of its shape, its mean shape times scale.
    shape = burstiness**-2
    due_s = 0.0
    while True:
        due_s += chance.gammavariate(shape, 1 / (shape * rate_per_s))
        yield due_s
