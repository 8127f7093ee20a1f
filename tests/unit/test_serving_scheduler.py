import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from serving.errors import DeadlineExceeded, NotReady, Overloaded, ServingError
from serving.scheduling.queued import Scheduled
from serving.scheduling.scheduler import Scheduler

LONG_S = 60.0


class GatedModel:
    """Answers each payload with its upper case; waits in the engine thread until it is let through."""

    def __init__(self, *, is_open: bool = False, breaks_on: str = "", pads: bool = True) -> None:
        self.pads, self.batch_tokens = pads, 6
        self.batches: list[list[str]] = []
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.breaks_on = breaks_on
        if is_open:
            self.gate.set()

    def compute(self, texts: Sequence[str], /) -> list[str]:
        self.batches.append(list(texts))
        self.entered.set()
        assert self.gate.wait(LONG_S)
        if self.breaks_on and self.breaks_on in texts:
            raise RuntimeError(f"cannot compute {self.breaks_on}")
        return [text.upper() for text in texts]

    async def busy(self) -> None:
        """Wait until a batch is in the engine."""
        assert await asyncio.to_thread(self.entered.wait, LONG_S)


def run(
    test: Callable[[Scheduler], Awaitable[None]], batch_tokens: int | None = 1000, max_queue_s: float = 100.0, age_bound_s: float = LONG_S
) -> None:
    async def main() -> None:
        scheduler = Scheduler(batch_tokens, max_queue_s, age_bound_s)
        scheduler.start()
        try:
            await asyncio.wait_for(test(scheduler), LONG_S)
        finally:
            await scheduler.stop()

    asyncio.run(main())


def submit(scheduler: Scheduler, model: Any, *texts: str, deadline_s: float = LONG_S) -> asyncio.Task[Scheduled]:
    return asyncio.get_running_loop().create_task(scheduler.submit(model, texts, deadline_s))


async def settled() -> None:
    """Let every task that can run come to its next wait."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_an_idle_engine_takes_what_is_there_at_once() -> None:
    async def test(scheduler: Scheduler) -> None:
        model = GatedModel(is_open=True)
        done = await submit(scheduler, model, "alone")
        assert done.answers == ["ALONE"]
        assert done.batch_texts == 1
        assert model.batches == [["alone"]]

    run(test)


@pytest.mark.parametrize(("waiting", "left"), [(6, 0), (5, 5), (13, 7)])
def test_a_whole_batch_that_waits_is_composed_before_the_engine_is_free(waiting: int, left: int) -> None:
    async def test(scheduler: Scheduler) -> None:
        # A batch is expected to be over at once.
        scheduler.expect_speed(1e9)
        model = GatedModel()
        first = submit(scheduler, model, "a")
        await model.busy()
        others = [submit(scheduler, model, "b") for _ in range(waiting)]
        while scheduler.queued_texts != left:
            await asyncio.sleep(0.001)
        # One batch lies ready, not two, and half a batch does not.
        await settled()
        assert scheduler.queued_texts == left
        assert model.batches == [["a"]]
        model.gate.set()
        await asyncio.gather(first, *others)
        assert [len(batch) for batch in model.batches[1:]] == [min(6, waiting - done) for done in range(0, waiting, 6)]

    run(test, batch_tokens=6)


def test_nothing_is_composed_early_while_the_engine_is_slow() -> None:
    async def test(scheduler: Scheduler) -> None:
        scheduler.expect_speed(1 / LONG_S)
        model = GatedModel()
        first = submit(scheduler, model, "a")
        await model.busy()
        others = [submit(scheduler, model, "b", deadline_s=100 * LONG_S) for _ in range(6)]
        await settled()
        assert scheduler.queued_texts == 6
        model.gate.set()
        await asyncio.gather(first, *others)

    run(test, batch_tokens=6, max_queue_s=100 * LONG_S)


def test_what_queues_while_the_engine_works_is_the_next_batch() -> None:
    async def test(scheduler: Scheduler) -> None:
        model = GatedModel()
        first = submit(scheduler, model, "a")
        await model.busy()
        others = [submit(scheduler, model, text) for text in "bcde"]
        await settled()
        assert scheduler.queued_texts == 4
        model.gate.set()
        assert [(await task).answers for task in [first, *others]] == [["A"], ["B"], ["C"], ["D"], ["E"]]
        assert model.batches == [["a"], ["b", "c", "d", "e"]]
        assert (await others[0]).batch_texts == 4

    run(test)


def test_a_long_request_is_spread_over_batches_and_answered_whole_and_in_order() -> None:
    async def test(scheduler: Scheduler) -> None:
        model = GatedModel(is_open=True)
        texts = ["x" * 30, "b" * 100, "y" * 31, "c" * 101, "d" * 99]
        done = await submit(scheduler, model, *texts)
        assert done.answers == [text.upper() for text in texts]
        assert len(model.batches) > 1
        assert scheduler.counters.texts == 5
        assert scheduler.counters.padded_tokens <= 2 * scheduler.counters.tokens

    run(test, batch_tokens=210)


def test_without_padding_texts_of_any_length_share_a_batch_and_none_is_counted() -> None:
    async def test(scheduler: Scheduler) -> None:
        model = GatedModel(pads=False)
        first = submit(scheduler, model, "a")
        await model.busy()
        texts = ["b" * 150, "c", "d" * 100, "e" * 9]
        rest = submit(scheduler, model, *texts)
        await settled()
        model.gate.set()
        await first
        assert (await rest).answers == [text.upper() for text in texts]
        assert model.batches == [["a"], [texts[0], texts[1], texts[3]], [texts[2]]]
        assert scheduler.counters.padded_tokens == scheduler.counters.tokens

    run(test, batch_tokens=200)


def test_without_a_setting_the_model_says_how_large_a_batch_is() -> None:
    async def test(scheduler: Scheduler) -> None:
        model = GatedModel(is_open=True)
        await submit(scheduler, model, *["abc"] * 5)
        assert [len(batch) for batch in model.batches] == [2, 2, 1]

    run(test, batch_tokens=None)


def test_a_request_with_many_texts_does_not_keep_one_with_a_single_text_waiting() -> None:
    async def test(scheduler: Scheduler) -> None:
        model = GatedModel()
        first = submit(scheduler, model, "a")
        await model.busy()
        many = submit(scheduler, model, *[f"m{number:02}" for number in range(50)])
        await settled()
        single = submit(scheduler, model, "one")
        await settled()
        model.gate.set()
        await asyncio.gather(first, many, single)
        assert [batch.index("one") for batch in model.batches if "one" in batch] == [1]
        assert model.batches[1] == ["m00", "one", "m01"]
        # Its own texts keep their order.
        assert [text for batch in model.batches for text in batch if text.startswith("m")] == [f"m{number:02}" for number in range(50)]

    run(test, batch_tokens=9)


@pytest.mark.parametrize("age_bound_s", [LONG_S, 0.0])
def test_a_client_with_many_requests_does_not_keep_another_waiting(age_bound_s: float) -> None:
    async def test(scheduler: Scheduler) -> None:
        model = GatedModel()
        first = submit(scheduler, model, "a")
        await model.busy()
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(scheduler.submit(model, [f"m{number:02}"], LONG_S, "greedy")) for number in range(50)]
        await settled()
        tasks += [loop.create_task(scheduler.submit(model, [text], LONG_S, "modest")) for text in ("one", "two")]
        await settled()
        model.gate.set()
        await asyncio.gather(first, *tasks)
        # By turns, also where everybody has waited too long.
        assert model.batches[1:3] == [["m00", "one", "m01"], ["two", "m02", "m03"]]

    run(test, batch_tokens=9, age_bound_s=age_bound_s)


def test_ever_new_requests_do_not_keep_a_longer_one_waiting() -> None:
    """Always as many callers as two batches hold, each asking again as soon as it is answered."""

    async def test(scheduler: Scheduler) -> None:
        model = GatedModel(is_open=True)
        done = asyncio.Event()

        async def caller() -> None:
            while not done.is_set():
                await scheduler.submit(model, ["x"], LONG_S)

        callers = [asyncio.get_running_loop().create_task(caller()) for _ in range(20)]
        await settled()
        before = scheduler.counters.batches
        await scheduler.submit(model, ["l1", "l2", "l3"], LONG_S)
        taken = scheduler.counters.batches - before
        done.set()
        await asyncio.gather(*callers)
        assert taken <= 30

    run(test, batch_tokens=10)


def test_texts_of_another_model_do_not_share_a_batch() -> None:
    async def test(scheduler: Scheduler) -> None:
        old, new = GatedModel(), GatedModel(is_open=True)
        first = submit(scheduler, old, "a")
        await old.busy()
        tasks = [submit(scheduler, old, "b"), submit(scheduler, new, "c"), submit(scheduler, old, "d")]
        await settled()
        old.gate.set()
        await asyncio.gather(first, *tasks)
        assert old.batches == [["a"], ["b", "d"]]
        assert new.batches == [["c"]]

    run(test)


def test_the_text_that_breaks_the_engine_fails_alone() -> None:
    async def test(scheduler: Scheduler) -> None:
        model = GatedModel(breaks_on="bad")
        first = submit(scheduler, model, "a")
        await model.busy()
        tasks = [submit(scheduler, model, text) for text in ("b", "c", "bad", "d", "e")]
        await settled()
        model.gate.set()
        results = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert [result.answers for result in results if isinstance(result, Scheduled)] == [["A"], ["B"], ["C"], ["D"], ["E"]]
        (failed,) = [result for result in results if isinstance(result, ServingError)]
        assert failed.message == "the engine failed on text 0"
        assert scheduler.counters.failed == 1
        assert (await submit(scheduler, model, "later")).answers == ["LATER"]

    run(test)


def test_an_engine_that_is_gone_is_not_the_texts_fault() -> None:
    class Gone(GatedModel):
        def compute(self, texts: Sequence[str], /) -> list[str]:
            super().compute(texts)
            raise NotReady("the engine's process ended")

    async def test(scheduler: Scheduler) -> None:
        model = Gone(is_open=True)
        with pytest.raises(NotReady, match="process ended"):
            await submit(scheduler, model, "a", "b", "c")
        # Nobody looks for a culprit.
        assert model.batches == [["a", "b", "c"]]
        assert scheduler.counters.failed == 0

    run(test)


def test_the_others_of_a_request_are_answered_beside_the_text_that_breaks_the_engine() -> None:
    async def test(scheduler: Scheduler) -> None:
        model = GatedModel(is_open=True, breaks_on="bad")
        texts = [*(f"text {number}" for number in range(31)), "bad"]
        done = await submit(scheduler, model, *texts)
        assert done.answers[:-1] == [text.upper() for text in texts[:-1]]
        assert isinstance(done.answers[-1], ServingError)
        assert done.answers[-1].message == "the engine failed on text 31"
        assert scheduler.counters.failed == 1
        with pytest.raises(ServingError, match="the engine failed on text 0"):
            await submit(scheduler, model, "bad", "bad")

    run(test)


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


def test_a_failure_does_not_log_the_text(caplog: pytest.LogCaptureFixture) -> None:
    async def test(scheduler: Scheduler) -> None:
        with pytest.raises(ServingError):
            await submit(scheduler, GatedModel(is_open=True, breaks_on="secret"), "secret")

    with caplog.at_level(logging.DEBUG, "serving"):
        run(test)
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_an_answer_too_few_is_a_failure_and_not_a_shift() -> None:
    class Short:
        pads, batch_tokens = True, 1_000

        def compute(self, texts: Sequence[str], /) -> list[str]:
            return [text.upper() for text in texts][:1]

    async def test(scheduler: Scheduler) -> None:
        # Halved until every batch has one text, for which one answer is right.
        assert (await submit(scheduler, Short(), "a", "b", "c")).answers == ["A", "B", "C"]

    run(test)


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


def test_the_oldest_is_served_although_better_fitting_texts_wait() -> None:
    async def test(scheduler: Scheduler) -> None:
        model = GatedModel()
        first = submit(scheduler, model, "a")
        await model.busy()
        tasks = [submit(scheduler, model, "x" * 200), *(submit(scheduler, model, "y" * 20) for _ in range(30))]
        await settled()
        model.gate.set()
        await asyncio.gather(first, *tasks)
        assert model.batches[1] == ["x" * 200]

    run(test, batch_tokens=200)


def test_stopping_answers_everybody_who_waits() -> None:
    async def main() -> None:
        scheduler = Scheduler(1000, 100.0)
        scheduler.start()
        model = GatedModel()
        running = submit(scheduler, model, "a")
        await model.busy()
        waiting = submit(scheduler, model, "b")
        await settled()
        await scheduler.stop()
        model.gate.set()
        results = await asyncio.wait_for(asyncio.gather(running, waiting, return_exceptions=True), LONG_S)
        assert [type(result) for result in results] == [NotReady, NotReady]
        assert not scheduler.is_alive
        with pytest.raises(NotReady):
            await scheduler.submit(model, ["c"], LONG_S)

    asyncio.run(main())


def test_a_loop_that_dies_says_so_and_leaves_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    class Unmeasurable(str):
        """Breaks the scheduler itself, not the engine."""

    async def main() -> None:
        scheduler = Scheduler(1000, 100.0)
        scheduler.start()
        model = GatedModel()
        running = submit(scheduler, model, "a")
        await model.busy()
        waiting = submit(scheduler, model, "b")
        await settled()
        scheduler.counters = None  # type: ignore[assignment]
        model.gate.set()
        results = await asyncio.wait_for(asyncio.gather(running, waiting, return_exceptions=True), LONG_S)
        assert [type(result) for result in results] == [NotReady, NotReady]
        assert not scheduler.is_alive

    asyncio.run(main())
    assert "the scheduler's loop ended" in caplog.text
