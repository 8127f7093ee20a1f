"""What the scheduler refuses, and what it leaves out because nobody waits for it any more."""

import asyncio
import time
from collections.abc import Sequence

import pytest

from serving.errors import DeadlineExceeded, Overloaded, ServingError
from serving.scheduling.queued import Scheduled
from serving.scheduling.scheduler import Scheduler
from tests.gated import LONG_S, GatedModel, run, settled, submit


def test_what_cannot_be_computed_before_its_deadline_leaves_its_time_to_others() -> None:
    async def test(scheduler: Scheduler) -> None:
        scheduler.expect_speed(1.0)
        model = GatedModel()
        first = submit(scheduler, model, "a", deadline_s=2.0)
        await model.busy()
        # The speed measured last is two tokens a second: five are not there in two.
        hopeless, possible = submit(scheduler, model, "abcde", deadline_s=2.0), submit(scheduler, model, "xyz", deadline_s=60.0)
        await settled()
        # No deadline has passed when the engine is free.
        model.gate.set()
        with pytest.raises(DeadlineExceeded):
            await hopeless
        assert (await possible).answers == ["XYZ"]
        await first
        assert model.batches == [["a"], ["xyz"]]
        assert scheduler.counters.expired == 1

    run(test)


def test_a_speed_that_was_measured_wrongly_refuses_nobody_for_ever() -> None:
    async def test(scheduler: Scheduler) -> None:
        scheduler.expect_speed(1e-9)
        assert (await submit(scheduler, GatedModel(is_open=True), "abc")).answers == ["ABC"]

    run(test, max_queue_s=1e12)


def test_a_passed_deadline_is_answered_and_never_computed() -> None:
    async def test(scheduler: Scheduler) -> None:
        model = GatedModel()
        first = submit(scheduler, model, "a")
        await model.busy()
        with pytest.raises(DeadlineExceeded, match="the deadline passed before the answer was there"):
            await submit(scheduler, model, "late", deadline_s=0.01)
        assert scheduler.queued_texts == 0
        assert scheduler.queued_tokens == 0
        model.gate.set()
        await first
        assert model.batches == [["a"]]
        assert scheduler.counters.expired == 1

    run(test)


def test_a_caller_who_goes_away_takes_the_texts_along() -> None:
    async def test(scheduler: Scheduler) -> None:
        model = GatedModel()
        first = submit(scheduler, model, "a")
        await model.busy()
        gone = submit(scheduler, model, "gone", "too")
        await settled()
        gone.cancel()
        await settled()
        assert scheduler.queued_texts == 0
        model.gate.set()
        await first
        assert (await submit(scheduler, model, "next")).answers == ["NEXT"]
        assert model.batches == [["a"], ["next"]]
        assert scheduler.counters.cancelled == 1

    run(test)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    async def test(scheduler: Scheduler) -> None:
        scheduler.expect_speed(10.0)
        model = GatedModel()
        first = submit(scheduler, model, "a")
        await model.busy()
        waiting = submit(scheduler, model, "x" * 50)
        await settled()
        with pytest.raises(Overloaded, match=r"5\.0 s of work come before this request, but at most 4 s may") as refused:
            await submit(scheduler, model, "b")
        assert refused.value.retry_after_s == pytest.approx(5.0)
        assert scheduler.counters.refused == 1
        model.gate.set()
        assert (await first).answers == ["A"]
        await waiting

    run(test, max_queue_s=4.0)


def test_where_little_was_asked_before_many_at_once_are_answered() -> None:
    class Costly(GatedModel):
        """A batch costs a tenth of a second, however many texts it has."""

        def compute(self, texts: Sequence[str], /) -> list[str]:
            time.sleep(0.1)
            return super().compute(texts)

    async def test(scheduler: Scheduler) -> None:
        scheduler.expect_speed(1_000.0)
        model = Costly(is_open=True)
        # By these alone it were some hundred tokens a second, or three seconds for what comes.
        for _ in range(20):
            await submit(scheduler, model, "a")
        done = await asyncio.gather(*(submit(scheduler, model, "b") for _ in range(400)))
        assert [one.answers for one in done] == [["B"]] * 400
        assert scheduler.counters.refused == 0

    run(test, batch_tokens=1000, max_queue_s=2.0)


def test_a_request_with_very_many_texts_refuses_nobody() -> None:
    async def test(scheduler: Scheduler) -> None:
        scheduler.expect_speed(10.0)
        model = GatedModel()
        first = submit(scheduler, model, "a")
        await model.busy()
        many = submit(scheduler, model, *["x" * 10] * 500, deadline_s=600.0)
        await settled()
        assert scheduler.queue_s > 100
        # Five such requests wait one text each for another's.
        others = [submit(scheduler, model, "b" * 7) for _ in range(5)]
        await settled()
        with pytest.raises(Overloaded, match=r"4\.5 s of work come before this request"):
            await submit(scheduler, model, "c")
        model.gate.set()
        assert [(await other).answers for other in others] == [["B" * 7]] * 5
        assert len((await many).answers) == 500
        await first

    run(test, batch_tokens=20, max_queue_s=4.0)


def test_who_would_wait_in_vain_is_told_at_once() -> None:
    async def test(scheduler: Scheduler) -> None:
        scheduler.expect_speed(10.0)
        model = GatedModel()
        first = submit(scheduler, model, "a")
        await model.busy()
        waiting = submit(scheduler, model, "x" * 10)
        await settled()
        with pytest.raises(Overloaded, match=r"6\.0 s of work come before this request's last answer, but it has 4\.0 s") as refused:
            await scheduler.submit(model, ["y" * 10] * 5, 4.0, "acme")
        assert refused.value.retry_after_s == pytest.approx(2.0)
        assert (scheduler.queued_texts, scheduler.counters.refused) == (1, 1)
        # Nothing of it was put on its client's account.
        assert scheduler._turns.peek("acme") == scheduler._turns.peek("")
        model.gate.set()
        await asyncio.gather(first, waiting, scheduler.submit(model, ["z"], LONG_S, "acme"))

    run(test)


def test_measured_speed_replaces_the_expected_one() -> None:
    async def test(scheduler: Scheduler) -> None:
        scheduler.expect_speed(0.001)
        model = GatedModel(is_open=True)
        for _ in range(200):
            await submit(scheduler, model, "x" * 100)
        hold = GatedModel()
        first = submit(scheduler, hold, "a")
        await hold.busy()
        rest = submit(scheduler, hold, "y" * 100)
        await settled()
        # At the expected speed these tokens would be more than a day of work.
        assert scheduler.queue_s < 3600
        hold.gate.set()
        await asyncio.gather(first, rest)

    run(test, max_queue_s=1e9)


@pytest.mark.parametrize(("client", "counted"), [("copies", (0, 0, 0, 0, 0)), ("caller", (1, 1, 1, 1, 2)), ("", (1, 1, 1, 1, 2))])
def test_of_a_client_who_is_nobodys_caller_no_request_is_counted(client: str, counted: tuple[int, ...]) -> None:
    async def main() -> None:
        scheduler = Scheduler(1000, 1.0, uncounted="copies")
        scheduler.start()
        scheduler.expect_speed(1.0)
        model = GatedModel(breaks_on="bad")

        def ask(text: str, deadline_s: float = LONG_S) -> asyncio.Task[Scheduled]:
            return asyncio.get_running_loop().create_task(scheduler.submit(model, [text], deadline_s, client))

        answered = ask("abc")
        await model.busy()
        with pytest.raises(DeadlineExceeded):
            await ask("x", 0.0)
        left = ask("y")
        await settled()
        left.cancel()
        await asyncio.wait([left])
        waiting = ask("abcd")
        await settled()
        with pytest.raises(Overloaded):
            await ask("z")
        model.gate.set()
        await asyncio.gather(answered, waiting)
        assert [type(one) for one in (await ask("bad")).answers] == [ServingError]
        told = scheduler.counters
        assert (told.expired, told.cancelled, told.refused, told.failed, told.queue_seconds.count) == counted
        # The engine's work is counted, whoever it was for.
        assert (told.batches, told.texts) == (2, 2)
        await scheduler.stop()

    asyncio.run(asyncio.wait_for(main(), LONG_S))
