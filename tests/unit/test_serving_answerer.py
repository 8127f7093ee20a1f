import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.answerer import Answerer
from serving.errors import DeadlineExceeded, InvalidFields, NotReady, ServingError
from serving.explaining import ExplainRequest
from serving.follower import Follower
from serving.messages import Answer, PredictRequest
from serving.scheduling import queued
from serving.settings import ServingSettings
from training.manifest import HeadFacts

LONG_S = 60.0
HEADS = (
    HeadFacts(name="category", classes=("sales", "nurse"), temperature=1.5, threshold=0.75),
    HeadFacts(name="education", classes=("none", "school"), ordered=True),
)


class FakeAnswer(str):
    """An answer that is compared as text; "shy" texts make the head abstain."""

    truncated = False
    error = None

    @property
    def heads(self) -> dict[str, SimpleNamespace]:
        shy = "shy" in self
        return {
            "category": SimpleNamespace(abstained=shy, class_=None if shy else "nurse"),
            "education": SimpleNamespace(abstained=None, class_="school"),
        }


class FakeTokens(str):
    """The tokens of a text: its letters."""

    truncated = False


class FakePredictor:
    """Answers with its version's number; can be held in the engine."""

    pads, batch_tokens, is_alive = True, 4_096, True
    known_good = ("good",)

    def __init__(self, version: int) -> None:
        self.version = version
        self.tokenized_in: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.engine = SimpleNamespace(name="fake", device="cpu", dtype="float32")
        self.calibration = ()
        self.manifest = SimpleNamespace(
            max_tokens=8, text_template="{title}: {text}", heads=HEADS, encoder=SimpleNamespace(name="tiny"), metrics={}, created="now"
        )

    def warm(self) -> float:
        return 1000.0

    def tokenize(self, texts: list[str]) -> list[FakeTokens]:
        self.tokenized_in.append(threading.current_thread().name)
        return [FakeTokens(text.lower()) for text in texts]

    def cut(self, text: str) -> list[FakeTokens]:
        return [FakeTokens(word) for word in text.lower().split()]

    def pool(self, windows: list[FakeAnswer], how: str, tokens: int) -> FakeAnswer:
        return FakeAnswer("+".join(windows))

    def end(self) -> None:
        self.is_alive = False

    def compute(self, texts: list[str]) -> list[FakeAnswer]:
        self.entered.set()
        assert self.gate.wait(LONG_S)
        if "bad" in texts:
            raise RuntimeError(texts)
        return [FakeAnswer(f"{self.version} {text}") for text in texts]


class FakeVersions:
    """A registry whose name can be moved."""

    version = 1

    def resolve(self, reference: str | int, /) -> int:
        return self.version

    def fetch(self, version: int, target: Path, /) -> Path:
        return target


Test = Callable[[Answerer, FakeVersions, dict[int, FakePredictor]], Awaitable[None]]


def run(test: Test, **settings: Any) -> None:
    async def main() -> None:
        versions = FakeVersions()
        loaded: dict[int, FakePredictor] = {}

        def load(folder: Path, version: int) -> Any:
            return loaded.setdefault(version, FakePredictor(version))

        answerer = Answerer(ServingSettings(follow_s=0.001, **settings), Follower(versions, "production", load))
        with pytest.raises(NotReady):
            answerer.require_ready()
        await answerer.start()
        try:
            await asyncio.wait_for(test(answerer, versions, loaded), LONG_S)
        finally:
            await answerer.stop()
        with pytest.raises(NotReady):
            answerer.require_ready()

    asyncio.run(main())


async def version_is(answerer: Answerer, version: int) -> None:
    while answerer.facts().version != version:
        await asyncio.sleep(0.001)


def test_texts_and_examples_are_answered() -> None:
    async def test(answerer: Answerer, _: FakeVersions, __: dict[int, FakePredictor]) -> None:
        answerer.require_health()
        answered = await answerer.predict(PredictRequest(texts=["A", "B"]))
        assert answered.prediction.version == 1
        assert answered.prediction.answers == ["1 a", "1 b"]
        answered = await answerer.predict(PredictRequest(examples=[{"title": "A", "text": "B"}]))
        assert answered.prediction.answers == ["1 a: b"]
        with pytest.raises(InvalidFields):
            await answerer.predict(PredictRequest(texts=["x" * 20_001]))

    run(test)


def test_a_text_that_breaks_the_engine_has_an_error_beside_the_answers_of_others() -> None:
    async def test(answerer: Answerer, _: FakeVersions, __: dict[int, FakePredictor]) -> None:
        good, bad = (await answerer.predict(PredictRequest(texts=["A", "bad"]))).prediction.answers
        assert good == "1 a"
        assert bad == Answer(heads={}, tokens=3, truncated=False, error="the engine failed on text 1")
        with pytest.raises(ServingError, match="the engine failed on text 0"):
            await answerer.predict(PredictRequest(texts=["bad"]))

    run(test)


@pytest.mark.parametrize("cache_answers", [0, 100])
def test_a_text_fails_with_any_of_its_windows_and_is_named_by_its_place(cache_answers: int) -> None:
    async def test(answerer: Answerer, _: FakeVersions, __: dict[int, FakePredictor]) -> None:
        first, second, third = (await answerer.predict(PredictRequest(texts=["A B", "C bad D", "E"], windows="mean"))).prediction.answers
        assert (first, third) == ("1 a+1 b", "1 e")
        assert second == Answer(heads={}, tokens=5, truncated=False, error="the engine failed on text 1")
        # Where it is the only one the request fails.
        with pytest.raises(ServingError, match="the engine failed on text 0"):
            await answerer.predict(PredictRequest(texts=["C bad D"], windows="mean"))

    run(test, cache_answers=cache_answers)


@pytest.mark.parametrize("cache_answers", [0, 100])
def test_a_request_of_too_many_windows_is_refused(cache_answers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.reading._MOST_WINDOWS", 32)

    async def test(answerer: Answerer, _: FakeVersions, __: dict[int, FakePredictor]) -> None:
        await answerer.predict(PredictRequest(texts=["a " * 16, "b " * 16], windows="mean"))
        with pytest.raises(InvalidFields) as refused:
            await answerer.predict(PredictRequest(texts=["c " * 16, "d " * 17], windows="mean"))
        reason = "cuts the texts into 33 pieces, but at most 32 are allowed; send less text in a request, or without windows"
        assert (refused.value.status, refused.value.findings) == (422, [("windows", reason)])
        # Nothing of it was queued, and cut to what the version reads it is answered.
        assert answerer.scheduler.counters.texts == 32
        await answerer.predict(PredictRequest(texts=["c " * 16, "d " * 17]))

    run(test, max_texts=2, cache_answers=cache_answers)


@pytest.mark.parametrize("cache_answers", [0, 100])
def test_each_of_equal_texts_that_fail_is_named_by_its_own_place(cache_answers: int) -> None:
    async def test(answerer: Answerer, _: FakeVersions, __: dict[int, FakePredictor]) -> None:
        answers = (await answerer.predict(PredictRequest(texts=["bad", "good", "bad"]))).prediction.answers
        assert [answer.error for answer in answers] == ["the engine failed on text 0", None, "the engine failed on text 2"]

    run(test, cache_answers=cache_answers)


def test_what_was_remembered_is_answered_beside_the_only_text_that_is_computed_and_fails() -> None:
    async def test(answerer: Answerer, _: FakeVersions, __: dict[int, FakePredictor]) -> None:
        await answerer.predict(PredictRequest(texts=["A", "B"]))
        good, bad, other = (await answerer.predict(PredictRequest(texts=["A", "bad", "B"]))).prediction.answers
        assert (good, other) == ("1 a", "1 b")
        assert bad == Answer(heads={}, tokens=3, truncated=False, error="the engine failed on text 1")

    run(test, cache_answers=100)


def test_copies_for_a_candidate_are_not_counted_where_answers_are_remembered() -> None:
    async def test(answerer: Answerer, _: FakeVersions, loaded: dict[int, Any]) -> None:
        counters, request = answerer.scheduler.counters, PredictRequest(texts=["A", "A"])
        for _ in range(2):
            assert await answerer._copy(loaded[1], request) == ["1 a", "1 a"]
        assert (counters.shared, counters.remembered) == (0, 0)
        await answerer.predict(request)
        assert (counters.shared, counters.remembered) == (1, 1)

    run(test, cache_answers=100)


def test_a_client_waits_for_no_copy_and_no_other_client_where_answers_are_remembered() -> None:
    async def test(answerer: Answerer, _: FakeVersions, loaded: dict[int, Any]) -> None:
        request = PredictRequest(texts=["A"])
        loaded[1].gate.clear()
        asked = [
            asyncio.create_task(answerer._copy(loaded[1], request)),
            *(asyncio.create_task(answerer.predict(request, client)) for client in ("bulk", "web")),
        ]
        assert await asyncio.to_thread(loaded[1].entered.wait, LONG_S)
        assert answerer.scheduler.open_tokens == 3
        loaded[1].gate.set()
        await asyncio.gather(*asked)
        assert answerer.scheduler.counters.texts == 3

    run(test, cache_answers=100)


def test_only_long_texts_are_tokenised_in_another_thread() -> None:
    async def test(answerer: Answerer, _: FakeVersions, loaded: dict[int, FakePredictor]) -> None:
        await answerer.predict(PredictRequest(texts=["a" * 1_000, "b" * 1_000]))
        await answerer.predict(PredictRequest(texts=["a" * 1_000, "b" * 1_001]))
        assert [name.rpartition("_")[0] for name in loaded[1].tokenized_in] == ["", "tokenizer"]

    run(test)


@pytest.mark.parametrize("how", ["predict", "explain"])
def test_a_deadline_counts_while_a_long_text_waits_to_be_tokenised(how: str) -> None:
    async def test(answerer: Answerer, _: FakeVersions, loaded: dict[int, Any]) -> None:
        gate, entered, tokenize = threading.Event(), threading.Event(), loaded[1].tokenize

        def slow(texts: list[str]) -> list[FakeTokens]:
            entered.set()
            assert gate.wait(LONG_S)
            return tokenize(texts)

        loaded[1].tokenize, loaded[1].readable = slow, lambda text: text
        first = asyncio.create_task(answerer.predict(PredictRequest(texts=["a" * 2_001])))
        assert await asyncio.to_thread(entered.wait, LONG_S)
        late: dict[str, Callable[[], Awaitable[Any]]] = {
            "predict": lambda: answerer.predict(PredictRequest(texts=["b" * 2_001], deadline_ms=20)),
            "explain": lambda: answerer.explain(ExplainRequest(text="b", deadline_ms=20)),
        }
        with pytest.raises(DeadlineExceeded, match="before the texts were tokenised"):
            await late[how]()
        gate.set()
        await first
        assert (answerer.scheduler.counters.expired, len(loaded[1].tokenized_in)) == (1, 1)

    run(test)


def test_a_request_keeps_the_version_it_began_with() -> None:
    async def test(answerer: Answerer, versions: FakeVersions, loaded: dict[int, FakePredictor]) -> None:
        loaded[1].gate.clear()
        began = asyncio.create_task(answerer.predict(PredictRequest(texts=["A"] * 40)))
        assert await asyncio.to_thread(loaded[1].entered.wait, LONG_S)
        versions.version = 2
        await version_is(answerer, 2)
        later = asyncio.create_task(answerer.predict(PredictRequest(texts=["B"])))
        loaded[1].gate.set()
        assert (await began).prediction.version == 1
        assert (await began).prediction.answers == ["1 a"] * 40
        assert (await later).prediction.answers == ["2 b"]

    run(test, batch_tokens=8)


def test_an_engine_that_stands_still_is_a_reason_to_replace_the_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(answerer: Answerer, _: FakeVersions, loaded: dict[int, FakePredictor]) -> None:
        loaded[1].gate.clear()
        asked = asyncio.create_task(answerer.predict(PredictRequest(texts=["A"])))
        assert await asyncio.to_thread(loaded[1].entered.wait, LONG_S)
        answerer.require_health()
        with monkeypatch.context() as patched:
            patched.setattr(queued, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 61.0))
            with pytest.raises(NotReady, match="the engine stands still"):
                answerer.require_health()
        # It is ended then, and nothing that comes of it makes the replica whole again.
        loaded[1].gate.set()
        await asked
        for check in (answerer.require_ready, answerer.require_health):
            with pytest.raises(NotReady, match="the engine's process ended"):
                check()

    run(test)


def test_a_deadline_of_the_caller_counts() -> None:
    async def test(answerer: Answerer, _: FakeVersions, loaded: dict[int, FakePredictor]) -> None:
        loaded[1].gate.clear()
        with pytest.raises(DeadlineExceeded, match="the deadline passed"):
            await answerer.predict(PredictRequest(texts=["A"], deadline_ms=20))
        loaded[1].gate.set()

    run(test)


def test_facts_name_version_and_limits() -> None:
    async def test(answerer: Answerer, _: FakeVersions, __: dict[int, FakePredictor]) -> None:
        facts = answerer.facts()
        assert (facts.version, facts.name, facts.engine, facts.limits) == (1, "production", "fake", answerer.limits())
        assert (facts.limits.max_texts, facts.limits.max_tokens) == (5, 8)
        told = [(head.name, head.ordered, head.temperature, head.threshold) for head in facts.heads]
        assert told == [("category", False, 1.5, 0.75), ("education", True, 1.0, None)]

    run(test, max_texts=5)


def test_abstentions_are_counted_by_head() -> None:
    async def test(answerer: Answerer, _: FakeVersions, __: dict[int, FakePredictor]) -> None:
        await answerer.predict(PredictRequest(texts=["shy", "a", "shy b"]))
        assert answerer.abstained == {"category": 2}
        await answerer.predict(PredictRequest(texts=["shy"]))
        assert answerer.abstained == {"category": 3}

    run(test)
