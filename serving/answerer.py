"""Everything a replica does with a request, without Ray and HTTP: tokenise, schedule, answer; and follow the registry's name.

Three threads work beside the event loop: one tokenises what is not short, one computes, one loads new versions.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

from serving.candidates.candidate import CLIENT, make_candidate
from serving.errors import InvalidFields, NotReady, ServingError
from serving.explaining import METHOD, ExplainRequest, Explanation, find_spans, weigh, without_each
from serving.follower import Follower
from serving.messages import Answer, EngineTrial, HeadFacts, Limits, Pooling, Prediction, PredictRequest, VersionFacts, shaped
from serving.observing.seen import Seen
from serving.predictor import Predictor, TokenizedText
from serving.promised import Promised
from serving.reading import check_windows, finished_texts, text_reason
from serving.remembered import Remembered, key
from serving.scheduling.scheduler import Scheduler
from serving.settings import ServingSettings
from serving.spent import Spent
from serving.tokenizer_thread import TokenizerThread

log = logging.getLogger(__name__)

# Tokenised in less time than the way to another thread and back takes.
_SHORT_CHARACTERS = 2_000
_FAILED = "the engine failed on text"


@dataclass(frozen=True, slots=True)
class Answered:
    """A prediction and where its time went."""

    prediction: Prediction
    spent: Spent

    @property
    def version(self) -> int:
        """The version that answered."""
        return self.prediction.version


@dataclass(frozen=True, slots=True)
class Explained:
    """An explanation and where its time went."""

    explanation: Explanation
    spent: Spent

    @property
    def version(self) -> int:
        """The version that answered."""
        return self.explanation.version


class Answerer:
    """Answers requests with the current version; lives on one event loop.

    Args:
        settings: The section `serving`.
        follower: Where the current version comes from.
        follow: Makes a follower of another version, for a candidate.
        trial: See `Candidate`.

    Attributes:
        candidate: The version on trial beside it.
        scheduler: Composes the batches.
        abstained: Head → how often it named no class, since the start.
        seen: Counts answers by head and class.
    """

    def __init__(
        self, settings: ServingSettings, follower: Follower, follow: Callable[[int], Follower] | None = None, trial: str = ""
    ) -> None:
        self._settings = settings
        self._follower = follower
        self._known_limits: dict[int, Limits] = {}
        self._following: asyncio.Task[None] | None = None
        self.abstained: Counter[str] = Counter()
        self.seen = Seen()
        self.scheduler = Scheduler(settings.batch_tokens, settings.max_queue_s, uncounted=CLIENT)
        self._tokenizing = TokenizerThread(settings.max_queue_s, self.scheduler.demand)
        self.candidate = make_candidate(settings.canary, settings.shadow, follow, self._copy, trial) if follow is not None else None
        self._remembered = Remembered(settings.cache_answers)

    async def start(self) -> None:
        """Load the first version and begin to answer.

        Raises:
            TwoheadError: See `Follower.start`.
        """
        await self._follower.start()
        self.scheduler.expect_speed(self._follower.tokens_per_s)
        self.scheduler.start()
        self._following = asyncio.get_running_loop().create_task(
            self._follower.follow(self._settings.follow_s, self.scheduler.expect_speed)
        )
        if self.candidate is not None:
            self.candidate.start()

    async def stop(self) -> None:
        """End all threads; requests that still wait fail."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
        if self.candidate is not None:
            await self.candidate.stop()
        self._follower.stop()
        await self.scheduler.stop()
        self._tokenizing.stop()

    def require_ready(self) -> None:
        """Check that a version is loaded and can compute, and that batches are composed.

        Raises:
            NotReady: With the reason.
        """
        if not self._follower.current.is_alive:
            raise NotReady("the engine's process ended")
        self.scheduler.require_running()

    def require_health(self) -> None:
        """Check that every loop runs; a replica that fails this must be replaced.

        Raises:
            NotReady: With the reason.
        """
        self.require_ready()
        if self._following is not None and self._following.done() and self._follower.name is not None:
            raise NotReady("the registry is not followed any more")

    async def predict(self, request: PredictRequest, client: str = "", promised: Promised | None = None) -> Answered:
        """Answer all texts of a request with one version.

        Args:
            request: Whose texts.
            client: Who asks; see `Scheduler.submit`.
            promised: What a canary must keep to, if it is to answer.

        Raises:
            ServingError: See `Scheduler.submit`, `TokenizerThread.run`, `finished_texts` and `check_windows`; or the engine failed on all
                of the texts.
        """
        current, deadline = self._follower.current, self._deadline(request)
        chosen = self._chosen(client, current, promised)

        def ask(predictor: Predictor) -> Awaitable[tuple[Sequence[Answer], Spent]]:
            return self._answer(predictor, request, deadline, client)

        if self.candidate is None or chosen is current:
            answers, spent = await ask(current)
        else:
            chosen, (answers, spent) = await self.candidate.answer(ask, chosen, current)
        self._count_abstentions(answers)
        self.seen.note(chosen, answers)
        if self.candidate is not None:
            self.candidate.compare(request, answers, chosen, current, waiting_s=self.scheduler.queue_s)
        prediction = Prediction.model_construct(version=chosen.version, answers=shaped(answers, request))
        return Answered(prediction, spent)

    def _chosen(self, client: str, current: Predictor, promised: Promised | None) -> Predictor:
        other = self.candidate.takes(client, current) if self.candidate is not None else None
        if other is None or (promised is not None and not promised.is_kept_by(other.version, other.manifest.heads)):
            return current
        return other

    async def _answer(self, predictor: Predictor, request: PredictRequest, deadline: float, client: str) -> tuple[Sequence[Answer], Spent]:
        texts = finished_texts(request, predictor.manifest.text_template, self._limits(predictor))
        spent: list[Spent] = []

        async def compute(places: Sequence[int]) -> list[Answer]:
            computed, one = await self._compute(predictor, [texts[place] for place in places], request.windows, deadline, client)
            spent.append(one)
            return computed

        if self._settings.cache_answers:
            keys = [key(predictor.version, text, request.windows) for text in texts]
            answers = await self._remembered.answers(keys, compute, deadline, client, self.scheduler.counters_of(client))
        else:
            answers = await compute(range(len(texts)))
        # Not before: equal texts share an answer.
        answers = [_named(answer, place) for place, answer in enumerate(answers)]
        errors = [answer.error for answer in answers if answer.error]
        if len(errors) == len(answers):
            raise ServingError(errors[0])
        return answers, Spent.together(spent)

    async def _copy(self, predictor: Predictor, request: PredictRequest) -> Sequence[Answer]:
        return (await self._answer(predictor, request, self._deadline(request), CLIENT))[0]

    def _deadline(self, request: PredictRequest | ExplainRequest) -> float:
        return time.monotonic() + (request.deadline_ms or self._settings.deadline_ms) / 1000

    async def _compute(
        self, predictor: Predictor, texts: Sequence[str], windows: Pooling | None, deadline: float, client: str
    ) -> tuple[list[Answer], Spent]:
        """Answer some of a request's texts."""
        started = time.monotonic()
        # Refused before it costs anything.
        self.scheduler.admit(client)
        pieces = await self._tokenize(predictor, texts, deadline, client, whole=windows is not None)
        if windows is not None:
            check_windows(sum(map(len, pieces)))
        tokenize_s = time.monotonic() - started
        done = await self.scheduler.submit(predictor, list(chain(*pieces)), deadline - time.monotonic(), client)
        answered = iter(done.answers)
        joined = [_joined(predictor, list(islice(answered, len(parts))), parts, windows) for parts in pieces]
        return joined, Spent.on(tokenize_s, done)

    async def explain(self, request: ExplainRequest, client: str = "") -> Explained:
        """Tell which words the answers about a text come from.

        Args:
            request: Its text.
            client: Who asks; see `Scheduler.submit`.

        Raises:
            ServingError: See `predict`; or one of the texts that lack a span could not be computed.
        """
        started, predictor = time.monotonic(), self._follower.current
        text = request.text
        if reason := text_reason(text, self._settings.max_characters):
            raise InvalidFields([("text", reason)])
        self.scheduler.admit(client)
        deadline, counters = self._deadline(request), self.scheduler.counters_of(client)
        readable = await self._tokenizing.run(partial(predictor.readable, text), len(text), deadline, counters)
        spans = find_spans(readable)
        texts = [text, *without_each(readable, spans)]
        tokens = await self._tokenizing.run(partial(predictor.tokenize, texts), sum(map(len, texts)), deadline, counters)
        tokenize_s = time.monotonic() - started
        done = await self.scheduler.submit(predictor, tokens, deadline - time.monotonic(), client)
        whole, *others = done.answers
        if isinstance(whole, ServingError):
            raise ServingError("the engine failed on this text")
        if any(isinstance(other, ServingError) for other in others):
            raise ServingError("the engine failed on this text without one of its words")
        explanation = Explanation.model_construct(
            version=predictor.version,
            method=METHOD,
            spans=spans,
            heads=weigh(whole, others),
            tokens=len(tokens[0]),
            truncated=tokens[0].truncated,
        )
        return Explained(explanation, Spent.on(tokenize_s, done))

    async def _tokenize(
        self, predictor: Predictor, texts: Sequence[str], deadline: float, client: str, *, whole: bool
    ) -> Sequence[Sequence[TokenizedText]]:
        """Turn each text into one piece, or all of it into as many as it needs."""

        def pieces() -> Sequence[Sequence[TokenizedText]]:
            return [predictor.cut(text) for text in texts] if whole else [[one] for one in predictor.tokenize(texts)]

        characters = sum(map(len, texts))
        if characters <= _SHORT_CHARACTERS:
            return pieces()
        return await self._tokenizing.run(pieces, characters, deadline, self.scheduler.counters_of(client))

    def limits(self) -> Limits:
        """Tell what a request may ask for now.

        Raises:
            NotReady: No version is loaded yet.
        """
        return self._limits(self._follower.current)

    def facts(self) -> VersionFacts:
        """Describe the version that answers now.

        Raises:
            NotReady: No version is loaded yet.
        """
        predictor = self._follower.current
        manifest, engine = predictor.manifest, predictor.engine
        return VersionFacts(
            version=predictor.version,
            name=self._follower.name,
            heads=[
                HeadFacts(
                    name=head.name, classes=list(head.classes), ordered=head.ordered, temperature=head.temperature, threshold=head.threshold
                )
                for head in manifest.heads
            ],
            text_template=manifest.text_template,
            limits=self._limits(predictor),
            encoder=manifest.encoder.name,
            metrics=manifest.metrics,
            created=manifest.created,
            engine=engine.name,
            device=engine.device,
            dtype=engine.dtype,
            batch_tokens=self._settings.batch_tokens or predictor.batch_tokens,
            calibration=[EngineTrial.model_validate(trial.to_dict()) for trial in predictor.calibration],
            last_failure=self._follower.last_failure,
            candidate=self.candidate.facts(predictor.version) if self.candidate is not None else None,
        )

    def _count_abstentions(self, answers: Iterable[Answer]) -> None:
        self.abstained.update(head for answer in answers for head, told in answer.heads.items() if told.abstained)

    def _limits(self, predictor: Predictor) -> Limits:
        # Asked for several times in every request.
        max_tokens = predictor.manifest.max_tokens
        if max_tokens not in self._known_limits:
            settings = self._settings
            self._known_limits[max_tokens] = Limits(
                max_texts=settings.max_texts,
                max_characters=settings.max_characters,
                max_tokens=max_tokens,
                max_body_bytes=settings.max_body_bytes,
                receipt_ms=settings.receipt_ms,
                deadline_ms=settings.deadline_ms,
            )
        return self._known_limits[max_tokens]


def _joined(predictor: Predictor, found: Sequence[Any], pieces: Sequence[TokenizedText], windows: Pooling | None) -> Answer:
    """Make the answer about a text of what the engine found about its pieces."""
    if any(isinstance(one, ServingError) for one in found):
        return Answer(heads={}, tokens=sum(map(len, pieces)), truncated=pieces[0].truncated, error=_FAILED)
    if windows is None:
        answer: Answer = found[0]
        return answer
    return predictor.pool(found, windows, sum(map(len, pieces)))


def _named(answer: Answer, place: int) -> Answer:
    """Say in a text's error at which place of the request it is."""
    return answer if answer.error is None else answer.model_copy(update={"error": f"{_FAILED} {place}"})
