"""Long texts wait for the one thread that tokenises them, but not for ever and not in vain."""

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator

import pytest

from serving import tokenizer_thread
from serving.errors import DeadlineExceeded, NotReady, Overloaded
from serving.scheduling.counted import Counters, Demand
from serving.tokenizer_thread import TokenizerThread

LONG_S = 60.0


class Asking:
    """A tokenizer that is busy until its gate opens; its clock goes by the characters it reads, a thousand a second."""

    def __init__(self) -> None:
        self.counters, self.demand = Counters(), Demand()
        self.demand.note(100)
        self.thread = TokenizerThread(4.0, self.demand)
        self.gate, self.entered = threading.Event(), threading.Event()
        self.read: list[str] = []
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def ask(self, text: str, deadline_s: float = LONG_S, fail: str = "") -> "asyncio.Task[str]":
        def work() -> str:
            self.entered.set()
            assert self.gate.wait(LONG_S)
            self.read.append(text)
            self.now_s += len(text) / 1000
            if fail:
                raise RuntimeError(fail)
            return text.upper()

        return asyncio.ensure_future(self.thread.run(work, len(text), self.monotonic() + deadline_s, self.counters))

    async def busy(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, LONG_S)

    async def idle(self) -> None:
        while self.thread.waiting_characters:
            await asyncio.sleep(0)


@pytest.fixture
async def asking(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Asking]:
    one = Asking()
    monkeypatch.setattr(tokenizer_thread, "time", one)
    yield one
    one.gate.set()
    one.thread.stop()


async def test_what_was_not_begun_before_its_deadline_is_never_read(asking: Asking) -> None:
    first = asking.ask("aaa")
    await asking.busy()
    with pytest.raises(DeadlineExceeded, match="before the texts were tokenised"):
        await asking.ask("late", deadline_s=0.0)
    # It has left, and the first one is still there.
    await asyncio.sleep(0)
    assert (asking.thread.waiting_characters, asking.counters.expired) == (3, 1)
    asking.gate.set()
    assert await first == "AAA"
    assert await asking.ask("b") == "B"
    assert asking.read == ["aaa", "b"]
    # As many tokens as in the request before it: it was asked for, though nobody read it.
    assert asking.demand.tokens == 200


async def test_what_is_being_read_at_its_deadline_is_late_and_keeps_others_waiting(asking: Asking) -> None:
    late = asking.ask("aaa", deadline_s=0.5)
    # Without a turn of the loop in between, so that it is read before its deadline is looked at, however slow this machine is.
    await asyncio.sleep(0)
    assert asking.entered.wait(LONG_S)
    with pytest.raises(DeadlineExceeded):
        await late
    assert (asking.thread.waiting_characters, asking.counters.expired) == (3, 1)
    asking.gate.set()
    await asking.idle()
    assert asking.read == ["aaa"]


async def test_who_goes_away_takes_the_texts_along(asking: Asking) -> None:
    first = asking.ask("aaa")
    await asking.busy()
    gone = asking.ask("gone")
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    asking.gate.set()
    assert await first == "AAA"
    await asking.idle()
    assert asking.read == ["aaa"]
    assert (asking.counters.cancelled, asking.counters.expired, asking.demand.tokens) == (1, 0, 200)


async def test_who_would_wait_too_long_is_told_at_once_and_when_to_come_back(asking: Asking) -> None:
    asking.gate.set()
    assert await asking.ask("a" * 2_000) == "A" * 2_000
    await asking.idle()
    asking.gate.clear()
    asking.entered.clear()
    # Nobody is refused by what he brings himself, nor at the bound.
    waiting = [asking.ask("b" * 4_000), asking.ask("c" * 1_000)]
    await asking.busy()
    with pytest.raises(Overloaded, match=r"5\.0 s of tokenising come before this request, but at most 4 s may") as refused:
        await asking.ask("d")
    assert refused.value.retry_after_s == pytest.approx(5.0)
    assert (asking.counters.refused, asking.demand.tokens) == (1, 200)
    asking.gate.set()
    await asyncio.wait(waiting)
    await asking.idle()
    assert await asking.ask("e") == "E"


async def test_what_a_short_text_takes_tells_nothing_of_a_long_one(asking: Asking) -> None:
    asking.gate.set()
    assert await asking.ask("a" * 100_000) == "A" * 100_000
    for _ in range(100):
        # As where the thread waits for its turn longer than it reads.
        asking.now_s += 10.0
        await asking.ask("b")
    await asking.idle()
    asking.gate.clear()
    asking.entered.clear()
    waiting = asking.ask("c" * 4_000)
    await asking.busy()
    second = asking.ask("d")
    await asyncio.sleep(0)
    asking.gate.set()
    assert (await waiting, await second) == ("C" * 4_000, "D")
    assert asking.counters.refused == 0


async def test_nobody_is_refused_before_a_speed_was_measured(asking: Asking) -> None:
    waiting = [asking.ask("a" * 1_000_000) for _ in range(3)]
    await asking.busy()
    asking.gate.set()
    assert {len(text) for text in await asyncio.gather(*waiting)} == {1_000_000}
    assert asking.counters.refused == 0


async def test_a_failure_is_told_to_who_waits_and_to_no_log(asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        gone = asking.ask("aaa", fail="secret")
        await asking.busy()
        gone.cancel()
        await asyncio.wait([gone])
        asking.gate.set()
        with pytest.raises(RuntimeError, match="known"):
            await asking.ask("bbb", fail="known")
        await asking.idle()
        gc.collect()
        await asyncio.sleep(0)
    assert asking.read == ["aaa", "bbb"]
    assert "secret" not in caplog.text


async def test_who_waits_when_it_is_stopped_is_told(asking: Asking) -> None:
    first = asking.ask("aaa")
    await asking.busy()
    second = asking.ask("b")
    await asyncio.sleep(0)
    asking.thread.stop()
    with pytest.raises(NotReady, match="the tokenizer does not run"):
        await second
    asking.gate.set()
    assert await first == "AAA"
