"""How long what waits will take, by what the last batches took.

A batch costs something by itself, beside its tokens, so batches of a few short texts tell of a speed that is many times lower than that of
whole ones. What waits together is computed together: an engine that only small batches were seen of would refuse what it could well do.
"""

from serving.scheduling.counted import Speed


class Pace:
    """An engine's pace: of the last batches as they were, and of large ones."""

    def __init__(self) -> None:
        self._any, self._large = Speed(), Speed()
        self._batches = Speed()

    def expect(self, tokens_per_s: float) -> None:
        """Take a first measure, where there is none; real batches soon replace it."""
        self._any.expect(tokens_per_s)
        self._large.expect(tokens_per_s)

    def note(self, tokens: int, seconds: float, *, is_large: bool) -> None:
        """Take in a batch.

        Args:
            tokens: It had, without padding.
            seconds: It took.
            is_large: Whether more tokens would hardly have made it faster by token.
        """
        self._any.note(tokens, seconds)
        self._batches.note(1, seconds)
        if is_large:
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

        They make batches of at most `whole` tokens, which take as long as large ones did, and each no less than the last ones did, large or
        not: an engine that became slow while little was asked of it shows in those alone. By how much whole ones became slower they do not
        tell, so what comes then may be judged too fast until a few whole ones were computed.
        """
        as_lately = self._any.seconds(tokens)
        if not self._large.tokens_per_s or not tokens:
            return as_lately
        batches = max(tokens / whole, 1.0)
        return min(as_lately, batches * max(self._large.seconds(whole), self._batches.seconds(1)))
