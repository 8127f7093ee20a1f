"""What a scheduler counts: its work since it started, and how fast something was lately. It knows no texts."""

from dataclasses import dataclass, field

from serving.observing.histogram import SECONDS, TEXTS, TOKENS, Histogram

# How much of the measured speed is still the past after each batch.
_MEMORY = 0.9


@dataclass
class Counters:
    """What a scheduler has done since it started; nothing is ever taken back.

    Attributes:
        batches: Batches computed, without those that failed.
        texts: Texts of those batches.
        tokens: Tokens of those texts.
        padded_tokens: Tokens computed, padding included.
        compute_s: Time the engine was busy with them.
        refused: Requests refused because too much work came before them.
        expired: Requests whose deadline passed.
        cancelled: Requests whose caller went away.
        failed: Texts the engine failed on.
        remembered: Texts answered from what was answered before.
        shared: Texts answered with an equal one that was being computed.
        queue_seconds: How long requests that were answered waited for the engine.
        batch_seconds: How long the engine took for a batch.
        batch_tokens: Tokens in a batch, without padding.
        batch_texts: Texts in a batch.
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
    queue_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    batch_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    batch_tokens: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    batch_texts: Histogram = field(default_factory=lambda: Histogram(TEXTS))

    def note_batch(self, texts: int, tokens: int, compute_s: float) -> None:
        """Take in the sizes of a batch and how long it took."""
        self.batch_texts.note(texts)
        self.batch_tokens.note(tokens)
        self.batch_seconds.note(compute_s)


class Speed:
    """Tokens (or whatever is counted) a second, the last batches counting most."""

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

    @property
    def tokens_per_s(self) -> float:
        """The measure; 0 while nothing was measured."""
        return self._tokens / self._seconds if self._seconds else 0.0

    def seconds(self, tokens: int) -> float:
        """Return how long so many tokens take; 0 while nothing was measured."""
        return tokens * self._seconds / self._tokens if self._tokens else 0.0


class Demand:
    """Tokens that were asked for, also by whoever was refused before anybody had counted them.

    Attributes:
        tokens: Since the start.
    """

    def __init__(self) -> None:
        self.tokens = 0.0
        self._in_a_request = 0.0

    def note(self, tokens: int) -> None:
        """Take in a request."""
        self.tokens += tokens
        self._in_a_request = _MEMORY * self._in_a_request + (1 - _MEMORY) * tokens if self._in_a_request else tokens

    def note_unread(self) -> None:
        """Take in a request whose texts were not read: as many as those before it."""
        self.tokens += self._in_a_request
