"""An engine that is broken for good is ended, and one that only fails on some texts is not, and goes on as fast."""

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from serving.errors import NotReady, ServingError
from serving.scheduling import engine_thread
from serving.scheduling.scheduler import Scheduler
from tests.gated import GatedModel, run, settled, submit

GOOD = list(GatedModel.known_good)


class Ended(GatedModel):
    """Computes nothing any more once it was ended, as a process does."""

    def compute(self, texts: Sequence[str], /) -> list[str]:
        if self.has_ended:
            raise NotReady("the engine's process ended")
        return super().compute(texts)


def test_an_engine_that_fails_on_what_it_has_computed_before_is_ended_and_no_text_is_to_blame(caplog: pytest.LogCaptureFixture) -> None:
    async def test(scheduler: Scheduler) -> None:
        model = Ended()
        first = submit(scheduler, model, "a")
        await model.busy()
        others = [submit(scheduler, model, text) for text in ("b", "c", "secret")]
        await settled()
        # As a GPU's does for good after an illegal access.
        model.is_broken = True
        model.gate.set()
        for one in [first, *others]:
            with pytest.raises(NotReady):
                await one
        assert model.has_ended
        assert model.batches == [["a"], GOOD]
        assert scheduler.counters.failed == 0

    run(test)
    assert "the engine fails on what it has computed before, and is ended: RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_an_engine_that_breaks_between_two_halves_is_ended_too() -> None:
    class Breaks(Ended):
        def compute(self, texts: Sequence[str], /) -> list[str]:
            self.is_broken = self.is_broken or "breaks" in texts
            return super().compute(texts)

    async def test(scheduler: Scheduler) -> None:
        model = Breaks()
        first = submit(scheduler, model, "a")
        await model.busy()
        others = [submit(scheduler, model, text) for text in ("breaks", "c", "d", "e")]
        await settled()
        model.gate.set()
        assert (await first).answers == ["A"]
        for one in others:
            with pytest.raises(NotReady):
                await one
        # Nobody looks for a culprit any more once it is known.
        assert model.batches == [["a"], ["breaks", "c", "d", "e"], ["breaks", "c"], ["breaks"], GOOD]

    run(test)


def test_an_answer_too_few_about_what_it_has_computed_before_is_a_failure_too() -> None:
    class Short(GatedModel):
        def compute(self, texts: Sequence[str], /) -> list[str]:
            return super().compute(texts)[1:]

    async def test(scheduler: Scheduler) -> None:
        model = Short(is_open=True)
        with pytest.raises(NotReady, match="the engine fails on every text"):
            await submit(scheduler, model, "a")
        assert model.has_ended

    run(test)


def test_texts_that_each_break_alone_cost_one_more_batch_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()

    async def test(scheduler: Scheduler) -> None:
        model = GatedModel(is_open=True, breaks_on="bad")
        for ahead_s, checks in ((0.0, 1), (0.9, 1), (1.1, 2), (2.0, 2), (2.2, 3)):
            monkeypatch.setattr(engine_thread, "time", SimpleNamespace(monotonic=lambda ahead_s=ahead_s: now + ahead_s))
            for _ in range(5):
                (failed,) = (await submit(scheduler, model, "bad")).answers
                assert isinstance(failed, ServingError)
            assert model.batches.count(GOOD) == checks
        # Another version is another engine.
        other = GatedModel(is_open=True, breaks_on="bad")
        await submit(scheduler, other, "bad")
        assert other.batches == [["bad"], GOOD]
        assert not model.has_ended
        # What was computed for nobody is no work that was asked for.
        assert (scheduler.counters.failed, scheduler.counters.texts, scheduler.open_tokens) == (26, 0, 0)

    run(test)


def test_an_engine_that_has_no_memory_for_large_batches_goes_on_with_others() -> None:
    class Small(GatedModel):
        def compute(self, texts: Sequence[str], /) -> list[str]:
            found = super().compute(texts)
            if sum(map(len, texts)) > 8:
                raise RuntimeError("OutOfMemoryError")
            return found

    async def test(scheduler: Scheduler) -> None:
        model = Small()
        first = submit(scheduler, model, "a")
        await model.busy()
        others = [submit(scheduler, model, text) for text in ("bcde", "fghi", "x" * 9, "jklm")]
        await settled()
        model.gate.set()
        answers = [(await one).answers[0] for one in [first, *others]]
        assert [answer for answer in answers if isinstance(answer, str)] == ["A", "BCDE", "FGHI", "JKLM"]
        assert not model.has_ended
        assert (await asyncio.gather(submit(scheduler, model, "next")))[0].answers == ["NEXT"]

    run(test)


def test_an_engine_that_stands_still_while_it_is_checked_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.scheduling import queued

    async def test(scheduler: Scheduler) -> None:
        class Still(GatedModel):
            def compute(self, texts: Sequence[str], /) -> list[str]:
                if list(texts) != GOOD:
                    raise RuntimeError
                return super().compute(texts)

        model = Still()
        asked = submit(scheduler, model, "a")
        await model.busy()
        scheduler.require_running()
        with monkeypatch.context() as patched:
            patched.setattr(queued, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 61.0))
            with pytest.raises(NotReady, match="the engine stands still"):
                scheduler.require_running()
        model.gate.set()
        await asked

    run(test)
