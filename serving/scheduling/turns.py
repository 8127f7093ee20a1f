"""Whose turn it is: clients share the engine, whoever sends more waits longer.

Each text gets a place on a clock: after its client's text before it, but not before now. The clock counts the tokens that each of those
who wait has had computed, were all served alike. Texts are computed in the order of their places, so that a client with ten thousand
texts does not keep one with a single text waiting, nor do ever new ones keep its second text waiting. The clock is never behind all who
wait: what a client had while nobody wanted its share is no debt. It does not know batches, deadlines or time.

Sources: Demers, Keshav and Shenker 1989, Analysis and Simulation of a Fair Queueing Algorithm, for the clock; Goyal, Vin and Cheng 1996,
Start-time Fair Queuing, for the order; Bennett and Zhang 1997, Hierarchical Packet Fair Queueing Algorithms (WF2Q+), for how far it jumps.
"""

from collections.abc import Sequence

# Clients whose places lie in the past need not be remembered; more often than this would cost more than it saves.
_MOST_CLIENTS = 1_000


class Turns:
    """The clock, and the next place of each client that has work on it."""

    def __init__(self) -> None:
        self._now = 0.0
        self._next: dict[str, float] = {}

    def peek(self, client: str) -> float:
        """Return the place that a client's next text would get."""
        return max(self._now, self._next.get(client, 0.0) if client else 0.0)

    def take(self, client: str, tokens: Sequence[int]) -> list[float]:
        """Give a request's texts their places.

        Args:
            client: Who asks; "" is nobody known, whose request stands for itself.
            tokens: Of each text.
        """
        place, places = self.peek(client), []
        for count in tokens:
            places.append(place)
            place += count
        if client:
            self._next[client] = place
            if len(self._next) > _MOST_CLIENTS:
                self._next = {name: found for name, found in self._next.items() if found > self._now}
        return places

    def give_back(self, client: str, tokens: int) -> None:
        """Take back what a client queued and nobody computed."""
        if client in self._next:
            self._next[client] -= tokens

    def serve(self, tokens: int, clients: int, next_place: float) -> None:
        """Move the clock on: a batch is being computed.

        Args:
            tokens: Of all its texts.
            clients: How many had texts waiting.
            next_place: The first place of those who still wait, where anybody does; else the last one of the batch.
        """
        # Shares alone leave it behind where one client wants less than an equal one and another takes the rest.
        self._now = max(self._now + tokens / clients, next_place)
