"""Takes the next batch out of what waits: whose turn it is, who fits beside it, and what that means for later turns."""

from collections.abc import Mapping
from itertools import takewhile

from serving.scheduling.batch import choose
from serving.scheduling.queued import Text
from serving.scheduling.turns import Turns


def compose(waiting: Mapping[int, Text], turns: Turns, batch_tokens: int | None, overdue_before: float) -> list[int]:
    """Choose the next batch, and move the clock on.

    Args:
        waiting: Order of arrival → text; not empty, and left as it is.
        turns: The clock that gave them their places.
        batch_tokens: See `Scheduler`.
        overdue_before: By `time.monotonic`; who arrived before goes in its turn, before any of better-fitting length.

    Returns:
        Orders of the texts of one model, the one whose turn it is first.
    """
    # Whose turn it is does not depend on which version was asked: copies for a candidate keep nobody waiting.
    in_turn = sorted(waiting.items(), key=lambda one: (one[1].place, one[0]))
    model = in_turn[0][1].request.model
    alike = [one for one in in_turn if one[1].request.model is model]
    overdue = len(list(takewhile(lambda one: one[1].request.arrived <= overdue_before, alike)))
    chosen = choose([text.tokens for _, text in alike], overdue, batch_tokens or model.batch_tokens, pads=model.pads)
    batch = {alike[index][0]: alike[index][1] for index in chosen}
    clients = len({text.request.client or id(text.request) for text in waiting.values()})
    left = (text.place for order, text in in_turn if order not in batch)
    next_place = next(left, max(text.place for text in batch.values()))
    turns.serve(sum(text.tokens for text in batch.values()), clients, next_place)
    return list(batch)
