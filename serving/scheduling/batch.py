"""Which of the waiting texts make the next batch: the one whose turn it is, and whoever fits beside it.

Where padding is computed like real tokens, a batch is bounded in tokens with padding, and its texts must not differ too much in
length; where it is left out, any texts go together. It does not know what a text is, nor when a batch is due.
"""

from collections.abc import Sequence

# Below this length padding costs nothing worth a batch of its own.
_SHORT_TOKENS = 16
# In a batch the longest text has at most so many times the tokens of the shortest.
_LENGTH_RATIO = 2


def choose(lengths: Sequence[int], overdue: int, batch_tokens: int, *, pads: bool = True) -> list[int]:
    """Choose a batch.

    Args:
        lengths: Tokens of each waiting text, (texts,), in their turn; not empty.
        overdue: So many of the first have waited too long: where texts are padded they come in their order, before any of better-fitting
            length.
        batch_tokens: Most tokens, padding included where there is any; a longer text is a batch of its own.
        pads: Texts are padded up to the longest of a batch.

    Returns:
        Indices into `lengths`, beginning with the first; nobody starves, because it is always in.
    """
    if not pads:
        return _choose_without_padding(lengths, batch_tokens)
    first = lengths[0]
    chosen, shortest, longest = [0], first, first
    rest = range(1, len(lengths))
    for index in sorted(rest, key=lambda index: (index >= overdue, abs(lengths[index] - first) if index >= overdue else 0)):
        low, high = min(shortest, lengths[index]), max(longest, lengths[index])
        if high * (len(chosen) + 1) <= batch_tokens and high <= _LENGTH_RATIO * max(low, _SHORT_TOKENS):
            chosen.append(index)
            shortest, longest = low, high
    return chosen


def _choose_without_padding(lengths: Sequence[int], batch_tokens: int) -> list[int]:
    """Choose in their turn, whatever their lengths; one that does not fit any more waits for the next batch, which begins with it."""
    chosen, tokens = [0], lengths[0]
    for index in range(1, len(lengths)):
        if tokens + lengths[index] <= batch_tokens:
            chosen.append(index)
            tokens += lengths[index]
        elif tokens >= batch_tokens:
            break
    return chosen
