"""A version that is tried beside the one that answers: a canary answers some requests itself, a shadow is only asked what others answer.

Either way both are asked about the same texts, the second one when the caller has his answer already, and how often the heads name the
same class is counted. Copies wait for nobody: where a second of work waits, or many copies do, the next one is left out. A request that
a canary fails on, if only with one of its texts, is answered by the version beside it, and counts against the canary where that one can. A
candidate that does not load changes nothing for anybody. It does not know how answers are made.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import TypeVar

from cluster.errors import TwoheadError
from serving.errors import DeadlineExceeded, NotReady, Overloaded, ServingError, without_words
from serving.follower import Follower
from serving.keys.key import KEY_CLIENT
from serving.messages import Answer, CandidateFacts, PredictRequest
from serving.predictor import Predictor
from serving.settings import CandidateSettings

log = logging.getLogger(__name__)

# Copies of requests are one client among the others. No header holds the end of a line: no caller can call itself so.
CLIENT = "copies for a candidate\n"
MOST_QUEUE_S = 1.0
MOST_COPIES = 32

# Says what a version answers to a request, when the engine comes to it.
Ask = Callable[[Predictor, PredictRequest], Awaitable[Sequence[Answer]]]
# What else is told of a request that was answered.
ToldT = TypeVar("ToldT")


class Candidate:
    """One version on trial; lives on one event loop.

    Args:
        role: `canary` or `shadow`.
        settings: Which version, and its share of the requests.
        follower: Loads it.
        ask: Asks a version.
        trial: Tells this trial from earlier ones of the same version; the same on all replicas.

    Attributes:
        answered: Texts it answered to callers.
        errors: Requests with a text that it failed on and the version beside it did not.
        compared: Version beside it and head → texts that both versions answered.
        agreed: The same → texts of these for which both name the same class, or both none.
        left_out: Requests that were not copied, because others waited.
    """

    def __init__(self, role: str, settings: CandidateSettings, follower: Follower, ask: Ask, trial: str = "") -> None:
        self.role = role
        self.trial = trial
        self.version = settings.version
        self._fraction = settings.fraction
        self._follower = follower
        self._ask = ask
        self._chance = random.Random()  # noqa: S311  # which requests, no secret
        self._copies: set[asyncio.Task[None]] = set()
        self._loading: asyncio.Task[None] | None = None
        self._failure = ""
        self.answered = 0
        self.errors = 0
        self.compared: Counter[tuple[int, str]] = Counter()
        self.agreed: Counter[tuple[int, str]] = Counter()
        self.left_out = 0

    def start(self) -> None:
        """Begin to load it."""
        self._loading = asyncio.get_running_loop().create_task(self._follower.start())
        self._loading.add_done_callback(self._loaded)

    async def stop(self) -> None:
        """Let go of it and of all copies."""
        tasks = [task for task in (self._loading, *self._copies) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._follower.stop()

    def facts(self, beside: int) -> CandidateFacts:
        """Tell how it does beside a version."""
        compared = {head: count for (version, head), count in self.compared.items() if version == beside}
        return CandidateFacts(
            role=self.role,
            version=self.version,
            trial=self.trial,
            ready=self._predictor is not None and self._predictor.is_alive,
            failure=self._failure,
            errors=self.errors,
            compared=compared,
            agreement={head: round(self.agreed[beside, head] / count, 4) for head, count in compared.items()},
        )

    def takes(self, client: str, current: Predictor) -> Predictor | None:
        """Return it where it is a canary and shall answer this request; who named himself gets the same version all through a trial.

        Args:
            client: Who asks; "" is nobody known. An application has one key for all who use it: where that is all that is known, each
                request is drawn by itself.
            current: The version beside it.
        """
        predictor = self._predictor
        if self.role != "canary" or predictor is None or predictor.version == current.version:
            return None
        is_named = client and not client.startswith(KEY_CLIENT)
        place = self._place(client) if is_named else self._chance.random()
        return predictor if place < self._fraction else None

    def _place(self, client: str) -> float:
        # Another trial takes others: nobody is the one who always tries.
        return int.from_bytes(blake2b(f"{self.trial} {client}".encode(), digest_size=7).digest()) / 2**56

    async def answer(
        self, ask: Callable[[Predictor], Awaitable[tuple[Sequence[Answer], ToldT]]], canary: Predictor, current: Predictor
    ) -> tuple[Predictor, tuple[Sequence[Answer], ToldT]]:
        """Let the canary answer a request, or the version beside it where the canary fails on any of its texts.

        Args:
            ask: Asks a version about the request.
            canary: See `takes`.
            current: The version beside it.

        Returns:
            Which version answered all of it, and what `ask` told.

        Raises:
            Overloaded: There is no room for the request, whoever answers.
            DeadlineExceeded: The canary took too long.
            ServingError: Both failed on all of it; what is wrong with the request itself is raised by either.
        """
        # gather() hands over whatever went wrong: a tokenizer's or an engine's own errors are of no tree.
        (found,) = await asyncio.gather(ask(canary), return_exceptions=True)
        if isinstance(found, BaseException):
            if isinstance(found, Overloaded | DeadlineExceeded) or not isinstance(found, Exception):
                raise found
            _log_unforeseen(canary, found)
            answered = await ask(current)
            self.errors += any(not one.error for one in answered[0])
            return current, answered
        if not any(one.error for one in found[0]):
            return canary, found
        try:
            answered = await ask(current)
        except ServingError:
            # Some answers are more than none.
            return canary, found
        self.errors += _failed_alone(found[0], answered[0])
        return current, answered

    def compare(
        self, request: PredictRequest, answers: Sequence[Answer], answered_by: Predictor, current: Predictor, *, waiting_s: float
    ) -> None:
        """Ask the other version as well, later.

        Args:
            request: What was asked.
            answers: What was answered, with nothing left out.
            answered_by: Which version did.
            current: The version beside the candidate.
            waiting_s: Work that waits.
        """
        predictor = self._predictor
        if predictor is None or predictor.version == current.version:
            return
        if answered_by is predictor:
            self.answered += len(answers)
        elif self.role == "canary" or self._chance.random() >= self._fraction:
            return
        if waiting_s > MOST_QUEUE_S or len(self._copies) >= MOST_COPIES:
            self.left_out += 1
            return
        other = current if answered_by is predictor else predictor
        copy = asyncio.get_running_loop().create_task(self._copy(request, answers, other, beside=current.version))
        self._copies.add(copy)
        copy.add_done_callback(self._copies.discard)

    async def _copy(self, request: PredictRequest, answers: Sequence[Answer], other: Predictor, *, beside: int) -> None:
        is_its_own = other.version != beside
        # gather() hands over whatever went wrong, as in `answer`.
        (found,) = await asyncio.gather(self._ask(other, request), return_exceptions=True)
        if isinstance(found, Overloaded | DeadlineExceeded):
            self.left_out += 1
            return
        if isinstance(found, Exception):
            _log_unforeseen(other, found)
            self.errors += is_its_own and any(not answer.error for answer in answers)
            return
        if isinstance(found, BaseException):
            raise found
        self.errors += _failed_alone(found, answers) if is_its_own else _failed_alone(answers, found)
        for ours, theirs in zip(answers, found, strict=True):
            for head in ours.heads.keys() & theirs.heads.keys():
                self.compared[beside, head] += 1
                self.agreed[beside, head] += ours.heads[head].class_ == theirs.heads[head].class_

    @property
    def _predictor(self) -> Predictor | None:
        try:
            return self._follower.current
        except NotReady:
            return None

    def _loaded(self, task: asyncio.Task[None]) -> None:
        # An error holds on to where it was raised, and with it to the engine's process.
        self._loading = None
        if task.cancelled() or (error := task.exception()) is None:
            return
        self.errors += 1
        # Only our own errors are known to hold no text.
        self._failure = error.message if isinstance(error, TwoheadError) else type(error).__name__
        log.error("version %d is no %s: %s", self.version, self.role, self._failure)


def _log_unforeseen(predictor: Predictor, error: Exception) -> None:
    if not isinstance(error, TwoheadError):
        log.error("version %d failed on a request: %s", predictor.version, without_words(error))


def _failed_alone(tried: Sequence[Answer], other: Sequence[Answer]) -> bool:
    """Tell whether one version failed on a text that the other one answered."""
    return any(one.error and not beside.error for one, beside in zip(tried, other, strict=True))


def make_candidate(
    canary: CandidateSettings | None, shadow: CandidateSettings | None, follow: Callable[[int], Follower], ask: Ask, trial: str = ""
) -> Candidate | None:
    """Make what the settings ask for; nothing where they do not."""
    if canary is not None:
        return Candidate("canary", canary, follow(canary.version), ask, trial)
    return Candidate("shadow", shadow, follow(shadow.version), ask, trial) if shadow is not None else None
