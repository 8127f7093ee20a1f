"""What a scheduler counts: its work since it started, and how fast the engine was lately. It knows no texts."""

from dataclasses import dataclass

# How much of the measured speed is still the past after each batch.
_MEMORY = 0.9


@dataclass
class Counters:
    """What a scheduler has done since it started; nothing is ever taken back.

    Attributes:
        batches: Batches computed.
        texts: Texts computed.
        tokens: Tokens of those texts.
        padded_tokens: Tokens computed, padding included.
        compute_s: Time the engine was busy.
        refused: Requests refused because too much work came before them.
        expired: Requests whose deadline passed.
        cancelled: Requests whose caller went away.
        failed: Texts the engine failed on.
        remembered: Texts answered from what was answered before.
        shared: Texts answered with an equal one that was being computed.
    """

    batches: int = 0
    texts: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    compute_s: float = 0.0
    refused: int = 0
    expired: int = 0
    cancelled: int = 0
    failed: int = 0
    remembered: int = 0
    shared: int = 0


class Speed:
    """Tokens a second, the last batches counting most."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    def expect(self, tokens_per_s: float) -> None:
        """Take a first measure, where there is none; real batches soon replace it."""
        if not self._tokens:
            self._tokens, self._seconds = tokens_per_s, 1.0

    def note(self, tokens: int, seconds: float) -> None:
        """Take in a batch."""
        self._tokens = _MEMORY * self._tokens + tokens
        self._seconds = _MEMORY * self._seconds + seconds

    def seconds(self, tokens: int) -> float:
        """Return how long so many tokens take; 0 while nothing was measured."""
        return tokens * self._seconds / self._tokens if self._tokens else 0.0
