"""Where the time of a request went; it does not know how it is told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from serving.scheduling.queued import Scheduled


@dataclass(frozen=True, slots=True)
class Spent:
    """Where the time of a request went.

    Attributes:
        tokenize_s: Until all texts were tokenised.
        queue_s: Waiting for the engine.
        compute_s: In the engine, with the other texts of its batches.
        batch_texts: Texts in the largest of these batches.
        batch_tokens: Tokens in the largest.
    """

    tokenize_s: float
    queue_s: float
    compute_s: float
    batch_texts: int
    batch_tokens: int

    @classmethod
    def on(cls, tokenize_s: float, done: Scheduled) -> Self:
        """Say where that of scheduled texts went."""
        return cls(tokenize_s, done.queue_s, done.compute_s, done.batch_texts, done.batch_tokens)

    @classmethod
    def together(cls, spent: Sequence[Self]) -> Self:
        """Add up what a request took; nothing, where all was remembered."""
        return cls(
            sum(one.tokenize_s for one in spent),
            sum(one.queue_s for one in spent),
            sum(one.compute_s for one in spent),
            max((one.batch_texts for one in spent), default=0),
            max((one.batch_tokens for one in spent), default=0),
        )
