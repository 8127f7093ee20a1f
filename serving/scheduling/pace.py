"""How long what waits will take, by what the last batches took.

A batch costs something by itself, beside its tokens, so batches of a few short texts tell of a speed that is many times lower than that of
whole ones. What waits together is computed together: an engine that only small batches were seen of would refuse what it could well do.
"""

from serving.scheduling.counted import Speed

# A batch of this share of what makes one as fast as any tells how fast the engine can be.
_LARGE_SHARE = 0.5


class Pace:
    """An engine's pace: of the last batches as they were, and of large ones."""

    def __init__(self) -> None:
        self._any, self._large = Speed(), Speed()
        self._batches = Speed()

    def expect(self, tokens_per_s: float) -> None:
        """Take a first measure, where there is none; real batches soon replace it."""
        self._any.expect(tokens_per_s)
        self._large.expect(tokens_per_s)

    def note(self, tokens: int, seconds: float, whole: int) -> None:
        """Take in a batch.

        Args:
            tokens: It had.
            seconds: It took.
            whole: Tokens that make a batch as fast as any.
        """
        self._any.note(tokens, seconds)
        self._batches.note(1, seconds)
        if tokens >= _LARGE_SHARE * whole:
            self._large.note(tokens, seconds)

    @property
    def tokens_per_s(self) -> float:
        """What large batches make of a second; 0 while nothing was measured."""
        return self._large.tokens_per_s

    def batch_s(self, tokens: int) -> float:
        """Return how long a batch takes, which may be as small as the last ones were; 0 while nothing was measured."""
        return self._any.seconds(tokens)

    def queue_s(self, tokens: int, whole: int) -> float:
        """Return how long tokens take that wait together; 0 while nothing was measured.

        They make batches of `whole` tokens. One of those takes as long as large ones did, and no less than the last ones did, large or not:
        an engine that became slow while little was asked of it shows in those alone.
        """
        as_lately = self._any.seconds(tokens)
        if not self._large.tokens_per_s:
            return as_lately
        whole_s = max(self._large.seconds(whole), self._batches.seconds(1))
        return min(as_lately, max(tokens / whole, 1.0) * whole_s)
