"""What is computed together, in which order, and what becomes of it."""

import asyncio
import logging
from collections.abc import Sequence

import pytest

from serving.errors import NotReady, ServingError
from serving.scheduling.scheduler import Scheduler
from tests.gated import LONG_S, GatedModel, run, settled, submit


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


def test_many_texts_for_one_version_do_not_keep_one_for_another_waiting() -> None:
    """Copies for a candidate wait beside what people asked."""

    async def test(scheduler: Scheduler) -> None:
        current, candidate = GatedModel(), GatedModel(is_open=True)
        candidate.batches = current.batches
        first = submit(scheduler, current, "a")
        await current.busy()
        copies = submit(scheduler, candidate, *[f"m{number:02}" for number in range(50)])
        await settled()
        asked = [submit(scheduler, current, text) for text in ("one", "two")]
        current.gate.set()
        await asyncio.gather(first, *asked, copies)
        # The copies' first text came before; the others' turn is later.
        assert current.batches[:3] == [["a"], ["m00", "m01", "m02"], ["one", "two"]]
        assert [text for batch in current.batches[3:] for text in batch] == [f"m{number:02}" for number in range(3, 50)]

    run(test, batch_tokens=9)


def test_the_text_that_breaks_the_engine_fails_alone() -> None:
    async def test(scheduler: Scheduler) -> None:
        model = GatedModel(breaks_on="bad")
        first = submit(scheduler, model, "a")
        await model.busy()
        tasks = [submit(scheduler, model, text) for text in ("b", "c", "bad", "d", "e")]
        await settled()
        model.gate.set()
        results = await asyncio.gather(first, *tasks)
        assert [result.answers for result in results[:3] + results[4:]] == [["A"], ["B"], ["C"], ["D"], ["E"]]
        (failed,) = results[3].answers
        assert isinstance(failed, ServingError)
        assert failed.message == "the engine failed on text 0"
        assert scheduler.counters.failed == 1
        assert scheduler.counters.texts == 5
        assert (await submit(scheduler, model, "later")).answers == ["LATER"]

    run(test)


def test_an_engine_that_is_gone_is_not_the_texts_fault() -> None:
    class Gone(GatedModel):
        def compute(self, texts: Sequence[str], /) -> list[str]:
            super().compute(texts)
            raise NotReady("the engine's process ended")

    async def test(scheduler: Scheduler) -> None:
        scheduler.expect_speed(10.0)
        model = Gone(is_open=True)
        with pytest.raises(NotReady, match="process ended"):
            await submit(scheduler, model, "a", "b", "c")
        # Nobody looks for a culprit, and what was not computed tells of no speed.
        assert model.batches == [["a", "b", "c"]]
        assert scheduler.counters.failed == 0
        assert (scheduler.counters.batches, scheduler.counters.texts, scheduler.counters.compute_s) == (0, 0, 0.0)
        assert scheduler.tokens_per_s == 10.0

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
        waited = scheduler.counters.queue_seconds.count
        both = (await submit(scheduler, model, "bad", "bad")).answers
        assert [str(one) for one in both] == ["the engine failed on text 0", "the engine failed on text 1"]
        # Nobody's answer waited for the engine.
        assert scheduler.counters.queue_seconds.count == waited

    run(test)


def test_a_failure_does_not_log_the_text(caplog: pytest.LogCaptureFixture) -> None:
    async def test(scheduler: Scheduler) -> None:
        (failed,) = (await submit(scheduler, GatedModel(is_open=True, breaks_on="secret"), "secret")).answers
        assert isinstance(failed, ServingError)

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
    assert "the scheduler's loop ended: AttributeError" in caplog.text
    # An error's words may quote a text.
    assert "NoneType" not in caplog.text
