"""Composes batches when the engine becomes free: late binding, by tokens, each client in its turn.

One loop and one engine thread. While the engine computes, texts queue up; when it is free, the next batch starts with the
text whose turn it is and is filled with others, of similar length where the engine pads. The loop never waits for company: an idle
engine takes what is there. Under load, where a whole batch waits, it is composed a moment before the engine is free, which a busy event
loop would notice late. A request's texts may be spread over batches; its answer is whole and in order. It does not know what a text, a
model or HTTP is: payloads have a length, models a `compute`.

Sources of the method: late binding as in Clockwork (Gujarati et al. 2020); batches bounded in tokens as in
text-embeddings-inference.
"""

import asyncio
import logging
import time
from collections.abc import Sequence, Sized
from typing import Any

from serving.errors import DeadlineExceeded, NotReady, Overloaded, ServingError, without_words
from serving.scheduling.composing import compose
from serving.scheduling.counted import Counters, Demand
from serving.scheduling.engine_thread import EngineThread
from serving.scheduling.pace import Pace
from serving.scheduling.queued import Job, Model, Request, Scheduled, Text
from serving.scheduling.turns import Turns

log = logging.getLogger(__name__)

# The last part of a batch's expected time, in which the next one is composed where a whole one waits. Whoever comes later waits for it.
_AHEAD_SHARE = 0.5
_MOST_RUNNING = 2
# A batch of this share of what makes one as fast as any, padding included, tells how fast the engine can be.
_LARGE_SHARE = 0.5


class Scheduler:
    """A queue in front of one engine; lives on one event loop.

    Args:
        batch_tokens: Most tokens in a batch, with what the engine pads; a longer text is a batch of its own. None: as the model says.
        max_queue_s: Refuse requests before which more work comes than this.
        age_bound_s: A text that has waited so long goes in its turn, before any of better-fitting length.
        uncounted: A client who is nobody's caller: its batches are counted as work, its requests are not counted as requests.

    Attributes:
        counters: What was done.
        demand: What was asked for; whoever refuses a request that never gets here tells it.
        queued_tokens: Tokens that wait for a batch.
    """

    def __init__(self, batch_tokens: int | None, max_queue_s: float, age_bound_s: float = 1.0, uncounted: str | None = None) -> None:
        self._batch_tokens = batch_tokens
        self._max_queue_s = max_queue_s
        self._age_bound_s = age_bound_s
        self._queue: dict[int, Text] = {}
        self._open: set[Request] = set()
        self._next_order = 0
        self._turns = Turns()
        self._arrival = asyncio.Event()
        self._engine = EngineThread()
        self._loop_task: asyncio.Task[None] | None = None
        self._pace = Pace()
        # Of the last request's model: versions of one name are alike in that.
        self._whole = batch_tokens or 0
        self.demand = Demand()
        self._free_at = 0.0
        self._last_s = 0.0
        self.counters, self._uncounted = Counters(), (uncounted, Counters())
        self.queued_tokens = 0

    def start(self) -> None:
        """Start composing batches on the running event loop."""
        self._loop_task = asyncio.get_running_loop().create_task(self._compose_for_ever())
        self._loop_task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """End the loop and fail what still waits; the batch being computed is finished and dropped."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.wait([self._loop_task])
        self._engine.stop()

    @property
    def is_alive(self) -> bool:
        """Whether the loop runs."""
        return self._loop_task is not None and not self._loop_task.done()

    def require_running(self) -> None:
        """Check that batches are composed and computed.

        Raises:
            NotReady: The loop does not run, or the engine stands still; see `EngineThread.require_moving`.
        """
        if not self.is_alive:
            raise NotReady("the scheduler does not run")
        self._engine.require_moving(self._pace.batch_s)

    @property
    def queued_texts(self) -> int:
        """Texts that wait for a batch."""
        return len(self._queue)

    @property
    def queue_s(self) -> float:
        """Seconds of work in the queue, by what was measured lately; 0 while nothing was."""
        return self._pace.queue_s(self.queued_tokens, self._whole)

    @property
    def open_tokens(self) -> int:
        """Tokens that wait or are being computed."""
        return self.queued_tokens + self._engine.tokens

    @property
    def asked_tokens(self) -> float:
        """Tokens that were asked for since the start, answered or refused."""
        return self.demand.tokens

    @property
    def tokens_per_s(self) -> float:
        """What the engine does in a second of batches that are large enough; 0 while nothing was measured."""
        return self._pace.tokens_per_s

    def expect_speed(self, tokens_per_s: float) -> None:
        """Begin to measure the engine's speed anew, from what is known of it; real batches soon replace it."""
        self._pace = Pace()
        self._pace.expect(tokens_per_s)

    def admit(self, client: str = "") -> None:
        """Check whether a client's next text would be computed soon enough.

        Work that others only get to after it does not count: a request with very many texts refuses nobody.

        Raises:
            Overloaded: More than `max_queue_s` of work comes before it.
            NotReady: See `require_running`.
        """
        try:
            self._require_room(client)
        except Overloaded:
            self.demand.note_unread()
            raise

    def _require_room(self, client: str) -> None:
        self.require_running()
        if self.queue_s <= self._max_queue_s:
            return
        wait_s = self._pace.queue_s(self._tokens_until(self._turns.peek(client)), self._whole)
        if wait_s > self._max_queue_s:
            self._refuse(client, f"{wait_s:.1f} s of work come before this request, but at most {self._max_queue_s:g} s may", wait_s)

    def counters_of(self, client: str) -> Counters:
        """Return where a client's requests are counted."""
        uncounted, nowhere = self._uncounted
        return nowhere if client == uncounted else self.counters

    def _refuse(self, client: str, message: str, retry_after_s: float) -> None:
        self.counters_of(client).refused += 1
        raise Overloaded(message, retry_after_s)

    def _tokens_until(self, place: float) -> int:
        return sum(text.tokens for text in self._queue.values() if text.place <= place)

    async def submit(self, model: Model, payloads: Sequence[Sized], deadline_s: float, client: str = "") -> Scheduled:
        """Queue payloads and wait for all their answers.

        Args:
            model: Answers all of them, whatever replaces it meanwhile.
            payloads: Their lengths are their tokens.
            deadline_s: Seconds from now.
            client: Who asks; clients get equal shares of the engine. "" is a client of its own.

        Raises:
            Overloaded: See `admit`; or others wait, and the last text would not be computed before the deadline.
            DeadlineExceeded: The deadline passed first, or would have before one of the texts could be computed.
            NotReady: See `require_running`; or the engine ended meanwhile.
        """
        tokens = [len(payload) for payload in payloads]
        self.demand.note(sum(tokens))
        self._require_room(client)
        loop, now = asyncio.get_running_loop(), time.monotonic()
        request = Request(model, client, now, now + deadline_s, [None] * len(payloads), loop.create_future(), len(payloads))
        self._whole = self._whole_of(model)
        places = self._turns.take(client, tokens)
        self._require_time(client, places, sum(tokens), deadline_s)
        for position, (payload, place) in enumerate(zip(payloads, places, strict=True)):
            self._enqueue(Text(request, position, payload, len(payload), place))
        timer = loop.call_later(deadline_s, self._expire, request)
        self._open.add(request)
        try:
            await request.done
        except asyncio.CancelledError:
            self.counters_of(client).cancelled += 1
            raise
        finally:
            timer.cancel()
            self._open.discard(request)
            self._withdraw(request)
        waited_s = max(time.monotonic() - request.arrived - request.compute_s, 0.0)
        if not all(isinstance(answer, ServingError) for answer in request.answers):
            self.counters_of(client).queue_seconds.note(waited_s)
        return Scheduled(request.answers, waited_s, request.compute_s, request.batch_texts, request.batch_tokens)

    def _require_time(self, client: str, places: Sequence[float], tokens: int, deadline_s: float) -> None:
        """Refuse now who would wait in vain, unless nobody else waits: then trying costs nobody anything."""
        if not self._queue or self._pace.queue_s(self.queued_tokens + tokens, self._whole) <= deadline_s:
            return
        needed_s = self._pace.queue_s(self._tokens_until(places[-1]) + tokens, self._whole)
        if needed_s > deadline_s:
            self._turns.give_back(client, tokens)
            found = f"{needed_s:.1f} s of work come before this request's last answer, but it has {deadline_s:.1f} s"
            self._refuse(client, found, needed_s - deadline_s)

    def _enqueue(self, text: Text) -> None:
        self._queue[self._next_order] = text
        text.request.waiting.add(self._next_order)
        self._next_order += 1
        self.queued_tokens += text.tokens
        self._arrival.set()

    def _whole_of(self, model: Model) -> int:
        """Return how many tokens make a batch as fast as any."""
        return self._batch_tokens or model.batch_tokens

    def _dequeue(self, order: int) -> Text:
        text = self._queue.pop(order)
        text.request.waiting.discard(order)
        self.queued_tokens -= text.tokens
        return text

    def _withdraw(self, request: Request) -> None:
        tokens = sum(self._dequeue(order).tokens for order in list(request.waiting))
        self._turns.give_back(request.client, tokens)

    def _expire(self, request: Request) -> None:
        self.counters_of(request.client).expired += 1
        self._fail(request, DeadlineExceeded("the deadline passed before the answer was there"))

    def _fail(self, request: Request, error: ServingError) -> None:
        self._withdraw(request)
        if not request.done.done():
            request.done.set_exception(error)

    async def _compose_for_ever(self) -> None:
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                await self._arrival.wait()
                self._drop_hopeless()
                if not self._queue:
                    self._arrival.clear()
                elif not running or (len(running) < _MOST_RUNNING and self._ahead_in_s() == 0.0):
                    orders = compose(self._queue, self._turns, self._batch_tokens, time.monotonic() - self._age_bound_s)
                    batch = [self._dequeue(order) for order in orders]
                    self._expect(sum(text.tokens for text in batch), is_ahead=bool(running))
                    running.add(asyncio.create_task(self._compute(batch)))
                else:
                    ahead_s = self._ahead_in_s() if len(running) < _MOST_RUNNING else None
                    done, running = await asyncio.wait(running, timeout=ahead_s, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
        finally:
            for task in running:
                task.cancel()

    def _expect(self, tokens: int, *, is_ahead: bool) -> None:
        """Note when the engine will be free, as far as its speed is known."""
        begins = max(self._free_at, time.monotonic()) if is_ahead else time.monotonic()
        self._last_s = self._pace.batch_s(tokens)
        self._free_at = begins + self._last_s

    def _ahead_in_s(self) -> float | None:
        """Return how long to wait before the next batch is composed, although one is computed; None: as long as that takes."""
        if self.queued_tokens < self._whole or not self._last_s:
            return None
        return max(self._free_at - _AHEAD_SHARE * self._last_s - time.monotonic(), 0.0)

    def _drop_hopeless(self) -> None:
        """Drop requests of which a text could not be computed before their deadline, where others wait who get that time."""
        now = time.monotonic()
        ends_s = {text.tokens: now + self._pace.queue_s(text.tokens, self._whole) for text in self._queue.values()}
        hopeless = {text.request for text in self._queue.values() if ends_s[text.tokens] > text.request.deadline}
        # With nobody else there, trying costs nothing; and a speed that was measured wrongly would never be measured again.
        if hopeless and any(text.request not in hopeless for text in self._queue.values()):
            for request in hopeless:
                self._expire(request)

    async def _compute(self, batch: list[Text]) -> None:
        """Compute a batch; where that fails, halve it until only the text that breaks the engine fails, or the engine is found broken."""
        batch = [text for text in batch if not text.request.done.done()]
        if not batch:
            return
        job = Job(batch[0].request.model, [text.payload for text in batch], sum(text.tokens for text in batch))
        error = (computed := await self._engine.run(job)).exception()
        for request in {text.request for text in batch}:
            request.note_batch(len(batch), job.tokens, job.seconds)
        if error is None and len(answers := computed.result()) == len(batch):
            # What failed was perhaps not computed at all, and would tell of a speed that no engine has.
            self._count(batch, job.seconds)
            self._deliver(batch, answers)
        elif isinstance(error, NotReady):
            for request in {text.request for text in batch}:
                self._fail(request, error)
        elif len(batch) > 1:
            await self._compute(batch[: len(batch) // 2])
            await self._compute(batch[len(batch) // 2 :])
        elif await self._engine.works(job.model):
            self._give_up(batch[0], error)
        else:
            self._fail(batch[0].request, NotReady("the engine fails on every text"))

    def _count(self, batch: list[Text], compute_s: float) -> None:
        tokens = sum(text.tokens for text in batch)
        self.counters.batches += 1
        self.counters.texts += len(batch)
        self.counters.tokens += tokens
        pads = batch[0].request.model.pads
        padded = max(text.tokens for text in batch) * len(batch) if pads else tokens
        self.counters.padded_tokens += padded
        self.counters.compute_s += compute_s
        self.counters.note_batch(len(batch), tokens, compute_s)
        self._pace.note(tokens, compute_s, is_large=padded >= _LARGE_SHARE * self._whole_of(batch[0].request.model))

    @staticmethod
    def _deliver(batch: list[Text], answers: Sequence[Any]) -> None:
        for text, answer in zip(batch, answers, strict=True):
            request = text.request
            request.answers[text.position] = answer
            request.missing -= 1
            if not request.missing and not request.done.done():
                request.done.set_result(None)

    def _give_up(self, text: Text, error: BaseException | None) -> None:
        self.counters_of(text.request.client).failed += 1
        # The error's own words may quote the text, so only its type is told.
        log.error("the engine failed on a text of %d tokens: %s", text.tokens, type(error).__name__ if error else "no answer")
        self._deliver([text], [ServingError(f"the engine failed on text {text.position}")])

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("the scheduler's loop ended: %s", without_words(error))
        for request in list(self._open):
            self._fail(request, NotReady("the scheduler does not run"))
