"""Equal texts are computed once; what goes wrong for one request is not the answer of another."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from serving.answerer import Answerer
from serving.candidates.candidate import CLIENT
from serving.errors import DeadlineExceeded, Overloaded
from serving.follower import Follower
from serving.messages import Answer
from serving.predictor import Predictor
from serving.remembered import Remembered, key
from serving.routes import build_app
from serving.scheduling.counted import Counters
from serving.settings import ServingSettings

LONG_S = 60.0
NOTHING = frozenset[str]()


class Asking:
    """Requests for words, of which each is computed when its gate opens."""

    def __init__(self, most: int = 10) -> None:
        self.counters = Counters()
        self.remembered = Remembered(most)
        self.computed: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def ask(
        self,
        *words: str,
        client: str = "",
        counters: Counters | None = None,
        errors: frozenset[str] = NOTHING,
        refused: bool = False,
        deadline_s: float = LONG_S,
    ) -> list[Answer]:
        async def compute(places: Sequence[int]) -> list[Answer]:
            asked = [words[place] for place in places]
            self.computed += asked
            await self.gate.wait()
            if refused:
                raise Overloaded("full", 1.0)
            return [Answer(heads={}, tokens=len(word), truncated=False, error="broken" if word in errors else None) for word in asked]

        keys, deadline = [key(1, word) for word in words], time.monotonic() + deadline_s
        return await self.remembered.answers(keys, compute, deadline, client, counters or self.counters)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_text_is_computed_once_and_answered_in_its_place() -> None:
    asking = Asking()
    assert [one.tokens for one in await asking.ask("aa", "b", "aa", "ccc")] == [2, 1, 2, 3]
    assert [one.tokens for one in await asking.ask("ccc", "dddd", "aa")] == [3, 4, 2]
    assert asking.computed == ["aa", "b", "ccc", "dddd"]
    assert (asking.counters.remembered, asking.counters.shared) == (2, 1)


async def test_who_was_asked_for_the_longest_ago_goes_first() -> None:
    asking = Asking(most=2)
    await asking.ask("a", "b")
    await asking.ask("a")
    await asking.ask("c")
    await asking.ask("a", "c")
    assert asking.computed == ["a", "b", "c"]
    await asking.ask("b")
    assert asking.computed == ["a", "b", "c", "b"]


async def test_a_text_that_is_being_computed_is_waited_for() -> None:
    asking = Asking()
    asking.gate.clear()
    first, second = asyncio.ensure_future(asking.ask("a", "b")), asyncio.ensure_future(asking.ask("c", "b"))
    await settled()
    assert asking.computed == ["a", "b", "c"]
    asking.gate.set()
    assert len(await first) == len(await second) == 2
    assert asking.computed == ["a", "b", "c"]
    assert asking.counters.shared == 1


async def test_nobody_waits_for_a_larger_request_of_somebody_else() -> None:
    asking = Asking()
    asking.gate.clear()
    larger = asyncio.ensure_future(asking.ask(*"abcdefgh"))
    await settled()
    # The next ones have an engine that is free.
    asking.gate, gate = asyncio.Event(), asking.gate
    alone = [asyncio.ensure_future(asking.ask("h")) for _ in range(3)]
    await settled()
    assert asking.computed == [*"abcdefgh", "h"]
    asking.gate.set()
    assert [(await one)[0].tokens for one in alone] == [1, 1, 1]
    # A stampede of them is computed once; and who comes now need not wait either.
    assert (await asking.ask("h"))[0].tokens == 1
    assert asking.computed == [*"abcdefgh", "h"]
    assert not larger.done()
    gate.set()
    assert len(await larger) == 8
    assert (asking.counters.shared, asking.counters.remembered) == (2, 1)
    assert asking.remembered._in_flight == {}


@pytest.mark.parametrize(
    ("first", "second", "waits"),
    [
        ("bulk", "web", False),
        ("", "web", True),
        ("", "", True),
        ("web", "web", True),
        ("web", "", False),
        (CLIENT, "web", False),
        (CLIENT, "", False),
        (CLIENT, CLIENT, True),
        ("", CLIENT, True),
    ],
)
async def test_nobody_waits_for_another_clients_turn(first: str, second: str, waits: bool) -> None:
    """A text that stands at the end of another client's queue is answered as late as that client's share of the engine makes it."""
    asking = Asking()
    asking.gate.clear()
    early = asyncio.ensure_future(asking.ask("x", client=first))
    await settled()
    # The next ones have an engine that is free.
    asking.gate, gate = asyncio.Event(), asking.gate
    asking.gate.set()
    late = asyncio.ensure_future(asking.ask("x", client=second))
    await settled()
    assert (late.done(), asking.computed) == (not waits, ["x"] if waits else ["x", "x"])
    gate.set()
    assert (await early)[0].tokens == (await late)[0].tokens == 1
    assert asking.counters.shared == int(waits)
    assert asking.remembered._in_flight == {}


async def test_clients_who_do_not_wait_for_each_other_each_have_a_text_computed_once() -> None:
    asking = Asking()
    asking.gate.clear()
    asked = [asyncio.ensure_future(asking.ask("x", client=client)) for client in ("bulk", "web") * 3]
    await settled()
    assert asking.computed == ["x", "x"]
    asking.gate.set()
    assert [(await one)[0].tokens for one in asked] == [1] * 6
    assert asking.counters.shared == 4


async def test_what_is_no_callers_request_is_counted_where_it_belongs() -> None:
    asking, others = Asking(), Counters()
    asking.gate.clear()
    asked = [asyncio.ensure_future(asking.ask("x", "x", client=CLIENT, counters=others)) for _ in range(2)]
    await settled()
    asking.gate.set()
    await asyncio.gather(*asked)
    await asking.ask("x", client=CLIENT, counters=others)
    assert (others.shared, others.remembered) == (3, 1)
    assert (asking.counters.shared, asking.counters.remembered) == (0, 0)
    await asking.ask("x")
    assert (others.remembered, asking.counters.remembered) == (1, 1)


@pytest.mark.parametrize("fate", ["cancelled", "refused", "failed"])
async def test_who_waited_in_vain_asks_himself(fate: str) -> None:
    asking = Asking()
    asking.gate.clear()
    first = asyncio.ensure_future(asking.ask("a", refused=fate == "refused", errors=frozenset("a") if fate == "failed" else NOTHING))
    await settled()
    second = asyncio.ensure_future(asking.ask("a"))
    await settled()
    assert asking.computed == ["a"]
    if fate == "cancelled":
        first.cancel()
        await settled()
    asking.gate.set()
    assert [one.error for one in await second] == [None]
    assert asking.computed == ["a", "a"]
    await asyncio.wait([first])
    assert first.cancelled() or fate == "failed" or isinstance(first.exception(), Overloaded)


async def test_who_is_cancelled_while_waiting_leaves_the_others_alone() -> None:
    asking = Asking()
    asking.gate.clear()
    first, second, third = (asyncio.ensure_future(asking.ask("a")) for _ in range(3))
    await settled()
    second.cancel()
    await settled()
    asking.gate.set()
    assert (await first)[0].tokens == (await third)[0].tokens == 1
    assert asking.computed == ["a"]
    assert (asking.counters.cancelled, asking.counters.expired) == (1, 0)


async def test_a_deadline_ends_the_waiting() -> None:
    asking = Asking()
    asking.gate.clear()
    first = asyncio.ensure_future(asking.ask("a"))
    await settled()
    with pytest.raises(DeadlineExceeded):
        await asking.ask("a", deadline_s=0.01)
    assert (asking.counters.cancelled, asking.counters.expired) == (0, 1)
    asking.gate.set()
    await first


async def test_who_leaves_or_is_late_without_waiting_for_another_is_counted_where_he_is_computed() -> None:
    """The scheduler counts those whom it computes for; twice would be once too often."""
    asking = Asking()
    asking.gate.clear()
    first = asyncio.ensure_future(asking.ask("a"))
    await settled()
    first.cancel()
    await asyncio.wait([first])
    assert (asking.counters.cancelled, asking.counters.expired) == (0, 0)


def test_whatever_decides_about_an_answer_is_in_its_key() -> None:
    assert len({key(1, "a"), key(2, "a"), key(1, "b"), key(1, "a", "mean"), key(1, "a", "max"), key(1, "\ud800")}) == 6
    assert key(1, "a", "mean") == key(1, "a", "mean")
    # Bytes of a text are nowhere.
    assert b"secret" not in key(1, "secret")


@pytest.mark.parametrize(("cache_answers", "computed", "remembered"), [(0, 5, 0), (100, 2, 3)])
async def test_over_http(tiny_checkpoint: Path, cache_answers: int, computed: int, remembered: int) -> None:
    async def nothing() -> str:
        return ""

    versions = SimpleNamespace(resolve=lambda _: 1, fetch=lambda *_: tiny_checkpoint)
    answerer = Answerer(ServingSettings(cache_answers=cache_answers), Follower(versions, 1, Predictor.load))
    await answerer.start()
    long = "nurse " * 100 + "driver " * 100
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(build_app(answerer, nothing)), base_url="http://test") as client:

            async def ask(**body: object) -> list[object]:
                response = await client.post("/v1/predict", json=body)
                assert response.status_code == 200, response.text
                answers: list[object] = response.json()["answers"]
                return answers

            first = await ask(texts=["nurse", long])
            assert await ask(texts=[long, "nurse"]) == first[::-1]
            (shaped,) = await ask(texts=["nurse"], scores=False)
            assert "scores" not in shaped["heads"]["category"]
            (whole,) = await ask(texts=[long], windows="mean")
            assert whole["windows"]["pooled"] == "mean"
            assert whole["heads"] != first[1]["heads"]
            count = whole["windows"]["count"]
            assert count > 1
            assert answerer.scheduler.counters.texts == computed + count
            assert answerer.scheduler.counters.remembered == remembered
            refused = await client.post("/v1/predict", json={"texts": ["a"], "windows": "median"})
            assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "windows")
    finally:
        await answerer.stop()
