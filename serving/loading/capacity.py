"""How much can be answered: more and more callers at once, until throughput no longer grows.

The number of callers doubles from one. Each step lasts some seconds, of which the first fifth is not counted, since batches and connections
have to grow first. The ramp ends after two doublings in a row that each answered not even a twentieth more than the best step before:
one alone may be chance. The capacity is the best step. With more callers a request waits longer and no more are answered, so this is
throughput, not what can be promised in a time. It is that of the replicas there are; where they come and go with the load, fix their
number first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

GROWTH = 0.05
_PATIENCE = 2
MOST_CONCURRENCY = 1024
# Of a step.
WARM_UP_SHARE = 0.2


@dataclass(frozen=True)
class Step:
    """One number of callers.

    Attributes:
        concurrency: Requests at once.
        texts_per_s: Answered.
    """

    concurrency: int
    texts_per_s: float


def find_capacity(measure: Callable[[int], float], most_concurrency: int = MOST_CONCURRENCY) -> list[Step]:
    """Raise the concurrency until throughput stops growing.

    Args:
        measure: Keeps so many requests on their way and returns texts answered per second.
        most_concurrency: It is not raised above this.

    Returns:
        All steps, in the order they were made; `best` tells which is the capacity.
    """
    steps: list[Step] = []
    concurrency, without_growth = 1, 0
    while concurrency <= most_concurrency and without_growth < _PATIENCE:
        step = Step(concurrency, measure(concurrency))
        has_grown = not steps or step.texts_per_s > (1 + GROWTH) * best(steps).texts_per_s
        without_growth = 0 if has_grown else without_growth + 1
        steps.append(step)
        concurrency *= 2
    return steps


def best(steps: Sequence[Step]) -> Step:
    """Return the step that answered most."""
    return max(steps, key=lambda step: step.texts_per_s)
