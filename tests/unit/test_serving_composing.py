"""Over many batches clients share the engine, whatever they did before; by a simulated clock."""

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from serving.scheduling.composing import compose
from serving.scheduling.queued import Request, Text
from serving.scheduling.turns import Turns

TOKENS_PER_S, BATCH_TOKENS = 10_000, 1_000
MINUTE_S = 60.0


class Simulated:
    """An engine of a given speed, and whoever waits for it."""

    def __init__(self, *, pads: bool) -> None:
        self.chance = random.Random(1)
        self.turns = Turns()
        self.waiting: dict[int, Text] = {}
        self.model: Any = SimpleNamespace(pads=pads, batch_tokens=BATCH_TOKENS)
        self.now_s = 0.0
        self.asked = 0
        self.served: Counter[str] = Counter()
        self.waited_s: dict[str, list[float]] = {}

    def ask(self, client: str, tokens: list[int]) -> Request:
        """Let a client ask about texts of so many tokens."""
        nobody: Any = None
        request = Request(self.model, client, self.now_s, 1e9, [None] * len(tokens), nobody, len(tokens))
        for position, (count, place) in enumerate(zip(tokens, self.turns.take(client, tokens), strict=True)):
            self.waiting[self.asked] = Text(request, position, "", count, place)
            self.asked += 1
        return request

    def texts(self, count: int) -> list[int]:
        """Make so many texts up."""
        return [self.chance.randint(30, 200) for _ in range(count)]

    def compute(self) -> list[Text]:
        """Compute the next batch."""
        batch = [self.waiting.pop(order) for order in compose(self.waiting, self.turns, None, self.now_s - 1.0)]
        self.now_s += sum(text.tokens for text in batch) / TOKENS_PER_S
        for text in batch:
            client = text.request.client
            self.served[client] += text.tokens
            text.request.missing -= 1
            if not text.request.missing:
                self.waited_s.setdefault(client, []).append(self.now_s - text.request.arrived)
        return batch

    def go_on_until(self, end_s: float, *bulk: str) -> None:
        """Let clients send 256 texts again as soon as they are answered, and `web` one text twenty times a second."""
        requests = {client: self.ask(client, self.texts(256)) for client in bulk}
        due_s = self.now_s
        while self.now_s < end_s:
            for client, request in requests.items():
                if not request.missing:
                    requests[client] = self.ask(client, self.texts(256))
            while due_s <= self.now_s:
                self.ask("web", self.texts(1))
                due_s += self.chance.expovariate(20)
            self.compute()


@pytest.mark.parametrize("pads", [False, True])
def test_what_a_client_had_while_nobody_wanted_its_share_is_no_debt(pads: bool) -> None:
    engine = Simulated(pads=pads)
    engine.go_on_until(10 * MINUTE_S, "early")
    before, already = engine.served["early"], len(engine.waited_s["web"])
    engine.go_on_until(11 * MINUTE_S, "early", "late")
    early, late = engine.served["early"] - before, engine.served["late"]
    assert abs(early - late) <= 0.1 * max(early, late)
    # Beside two that have 256 texts waiting each, which takes them six seconds.
    waited_s = sorted(engine.waited_s["web"][already:])
    assert waited_s[int(0.99 * len(waited_s))] <= 2.0


def test_a_text_from_the_end_that_fits_beside_the_first_does_not_take_the_clock_along() -> None:
    """Else who comes would wait behind all that lies between."""
    engine = Simulated(pads=True)
    tokens = [20, *[200] * 50, 20]
    engine.ask("bulk", tokens)
    assert [text.position for text in engine.compute()] == [0, 51]
    # One more of them, which began to wait before, and then who comes.
    assert 20 < engine.turns.peek("") < 220
    engine.ask("", [200])
    assert [(text.request.client, text.position) for text in engine.compute()][:2] == [("bulk", 1), ("", 0)]
