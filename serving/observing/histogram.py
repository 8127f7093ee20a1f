"""A histogram that costs its writer one search in a short list; whoever publishes it reads the counts. It does not know what it counts.

Boundaries are fixed, and quantiles known to within them: seconds from a millisecond to the longest usual deadline, each 2 to 3 times the
one before; tokens and texts in powers of two.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
TOKENS = tuple(2.0**power for power in range(4, 17))
TEXTS = tuple(2.0**power for power in range(10))


class Histogram:
    """How many values lay up to each boundary, since the start.

    Args:
        bounds: Rising; a value that equals one lies below it.

    Attributes:
        total: Sum of all values.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    def note(self, value: float) -> None:
        """Take in a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self._counts)

    def cumulative(self) -> list[tuple[str, int]]:
        """Return each boundary, as Prometheus writes it, and how many values were not above it; the last is `+Inf`."""
        labels = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        return list(zip(labels, accumulate(self._counts), strict=True))
