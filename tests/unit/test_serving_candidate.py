"""A version on trial: who is asked, what is counted, and when it takes over."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import SettingsError
from serving.answerer import Answerer
from serving.candidates.candidate import MOST_COPIES, MOST_QUEUE_S, Candidate
from serving.candidates.rule import Rule, Tally, decide, parse_rule, read_tally
from serving.errors import DeadlineExceeded, InvalidFields, NotReady, Overloaded, ServingError
from serving.follower import Follower
from serving.messages import Answer, HeadAnswer, PredictRequest
from serving.predictor import Predictor
from serving.promised import Promised
from serving.settings import CanarySettings, CandidateSettings, ServingSettings, ShadowSettings

REQUEST = PredictRequest(texts=["a", "b"])
OLD, NEW = SimpleNamespace(version=1, is_alive=True), SimpleNamespace(version=2, is_alive=True)


def answer(job: str | None, level: str | None) -> Answer:
    heads = {"job": HeadAnswer(class_=job, probability=0.5), "level": HeadAnswer(class_=level, probability=0.5)}
    return Answer(heads=heads, tokens=1, truncated=False)


OURS = [answer("nurse", "school"), answer("driver", None)]
THEIRS = [answer("nurse", "master"), answer("driver", None)]


class Loaded:
    """A follower of one version, which loads or does not."""

    def __init__(self, failure: Exception | None = None) -> None:
        self._failure = failure
        self._current: Any = None

    @property
    def current(self) -> Any:
        if self._current is None:
            raise NotReady("no version is loaded yet")
        return self._current

    async def start(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._current = NEW

    def stop(self) -> None:
        self._current = None


async def make(
    role: str, fraction: float, found: Any = THEIRS, failure: Exception | None = None, trial: str = ""
) -> tuple[Candidate, list[int]]:
    asked: list[int] = []

    async def ask(predictor: Any, request: PredictRequest) -> Any:
        asked.append(predictor.version)
        if isinstance(found, Exception):
            raise found
        return found

    follower: Any = Loaded(failure)
    candidate = Candidate(role, CandidateSettings(version=2, fraction=fraction), follower, ask, trial)
    candidate.start()
    await settled()
    return candidate, asked


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def compare(candidate: Candidate, answered_by: Any = OLD, current: Any = OLD, waiting_s: float = 0.0) -> None:
    candidate.compare(REQUEST, OURS, answered_by, current, waiting_s=waiting_s)


async def test_a_canary_takes_its_share_and_a_named_client_always_gets_the_same_version() -> None:
    candidate, _ = await make("canary", 0.2)
    current: Any = OLD
    taken = [candidate.takes(f"client {number}", current) is not None for number in range(2_000)]
    assert 0.16 < sum(taken) / len(taken) < 0.24
    assert taken == [candidate.takes(f"client {number}", current) is not None for number in range(2_000)]
    unknown = sum(candidate.takes("", current) is not None for _ in range(2_000)) / 2_000
    assert 0.15 < unknown < 0.25
    same: Any = NEW
    assert not any(candidate.takes(f"client {number}", same) for number in range(100))


async def test_a_version_on_trial_whose_engine_was_ended_is_not_told_as_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    candidate, _ = await make("canary", 0.2)
    assert candidate.facts(1).ready
    monkeypatch.setattr(NEW, "is_alive", False)
    assert not candidate.facts(1).ready


async def test_all_who_use_one_key_are_not_one_client() -> None:
    candidate, _ = await make("canary", 0.05)
    current: Any = OLD
    taken = sum(candidate.takes("key 0123456789ab", current) is not None for _ in range(5_000)) / 5_000
    assert 0.03 < taken < 0.07


async def test_another_trial_takes_other_clients() -> None:
    current: Any = OLD
    clients = [f"client {number}" for number in range(500)]
    (first, _), (again, _), (other, _) = [await make("canary", 0.2, trial=trial) for trial in ("ab", "ab", "cd")]
    taken = [{client for client in clients if one.takes(client, current)} for one in (first, again, other)]
    assert taken[0] == taken[1]
    # Those whom both take are as many as chance has it.
    assert len(taken[0] & taken[2]) < 0.5 * len(taken[2])


async def test_a_shadow_takes_nothing() -> None:
    candidate, _ = await make("shadow", 1.0)
    current: Any = OLD
    assert candidate.takes("", current) is None


@pytest.mark.parametrize(("role", "answered_by", "asked"), [("canary", NEW, [1]), ("canary", OLD, []), ("shadow", OLD, [2])])
async def test_the_other_version_is_asked_and_agreement_counted_by_head(role: str, answered_by: Any, asked: list[int]) -> None:
    candidate, found = await make(role, 1.0)
    if answered_by is NEW:
        answered_by = candidate._predictor
    compare(candidate, answered_by)
    await settled()
    assert found == asked
    assert candidate.answered == (2 if answered_by is not OLD else 0)
    assert dict(candidate.compared) == ({(1, "job"): 2, (1, "level"): 2} if asked else {})
    if asked:
        assert candidate.facts(1).agreement == {"job": 1.0, "level": 0.5}
        assert (candidate.agreed[1, "job"], candidate.agreed[1, "level"]) == (2, 1)
    # With the version before this one it was not compared.
    assert candidate.facts(0).compared == {}


async def test_copies_are_left_out_where_others_wait() -> None:
    candidate, asked = await make("shadow", 1.0)
    compare(candidate, waiting_s=MOST_QUEUE_S + 0.1)
    assert candidate.left_out == 1
    for _ in range(MOST_COPIES + 3):
        compare(candidate)
    assert candidate.left_out == 4
    await settled()
    assert len(asked) == MOST_COPIES
    compare(candidate)
    await settled()
    assert len(asked) == MOST_COPIES + 1


@pytest.mark.parametrize(
    ("found", "errors", "left_out"),
    [
        (ServingError("broken"), 1, 0),
        (Exception("WordPiece error: Missing [UNK] token from the vocabulary"), 1, 0),
        (InvalidFields([("examples.0", "lacks a field")]), 1, 0),
        (Overloaded("full", 1.0), 0, 1),
        (DeadlineExceeded("late"), 0, 1),
        ([answer("nurse", None), Answer(heads={}, tokens=1, truncated=False, error="broken")], 1, 0),
    ],
)
async def test_what_a_shadow_fails_on_is_counted_and_a_full_queue_is_not(found: Any, errors: int, left_out: int) -> None:
    candidate, _ = await make("shadow", 1.0, found)
    compare(candidate)
    await settled()
    assert (candidate.errors, candidate.left_out) == (errors, left_out)
    # What the version beside a canary fails on is none of the canary's errors.
    candidate, asked = await make("canary", 1.0, found)
    compare(candidate, candidate._predictor)
    await settled()
    assert (asked, candidate.errors) == ([1], 0)


BROKEN = Answer(heads={}, tokens=1, truncated=False, error="broken")


@pytest.mark.parametrize(
    ("ours", "theirs", "errors"),
    [
        ([OURS[0], BROKEN], [OURS[0], BROKEN], {"shadow": 0, "canary": 0}),
        ([OURS[0], BROKEN], [BROKEN, OURS[1]], {"shadow": 1, "canary": 1}),
        ([OURS[0], BROKEN], OURS, {"shadow": 0, "canary": 1}),
        ([BROKEN, BROKEN], ServingError("broken"), {"shadow": 0, "canary": 0}),
    ],
)
async def test_a_text_that_breaks_both_versions_counts_against_nobody(ours: list[Answer], theirs: Any, errors: dict[str, int]) -> None:
    for role, expected in errors.items():
        candidate, asked = await make(role, 1.0, theirs)
        current: Any = OLD
        by: Any = candidate._predictor if role == "canary" else OLD
        candidate.compare(REQUEST, ours, by, current, waiting_s=0.0)
        await settled()
        assert asked == [1 if role == "canary" else 2]
        assert candidate.errors == expected


async def test_one_that_does_not_load_changes_nothing() -> None:
    candidate, asked = await make("canary", 1.0, failure=ServingError("no such version"))
    current: Any = OLD
    assert candidate.takes("", current) is None
    compare(candidate)
    await settled()
    assert asked == []
    facts = candidate.facts(1)
    assert (facts.ready, facts.failure, facts.errors) == (False, "no such version", 1)
    await candidate.stop()


class Versions:
    """A registry of two checkpoints."""

    def __init__(self, folders: dict[int, Path]) -> None:
        self._folders = folders

    def resolve(self, reference: str | int, /) -> int:
        return int(reference)

    def fetch(self, version: int, target: Path, /) -> Path:
        return self._folders[version]


Test = Callable[[Answerer], Awaitable[None]]


async def with_versions(make_checkpoint: Callable[[int], Path], test: Test, **settings: Any) -> None:
    folders = {number: make_checkpoint(number) for number in (1, 2)}

    def follow(version: int) -> Follower:
        return Follower(Versions(folders), version, lambda folder, number: Predictor.load(folder, number, precision="float32"))

    answerer = Answerer(ServingSettings(**settings), follow(1), follow)
    await answerer.start()
    try:
        while not (candidate := answerer.facts().candidate) or not (candidate.ready or candidate.failure):
            await asyncio.sleep(0.01)
        await test(answerer)
    finally:
        await answerer.stop()


async def compared(answerer: Answerer, texts: int) -> None:
    while answerer.candidate is None or answerer.candidate.compared[1, "category"] < texts:
        await asyncio.sleep(0.01)


def answers_of(predictor: Predictor, words: Sequence[str]) -> list[Answer]:
    """Ask a version, beside any replica."""
    return [one for one in predictor.compute(predictor.tokenize(list(words))) if isinstance(one, Answer)]


@pytest.mark.parametrize("role", ["canary", "shadow"])
async def test_real_versions_are_compared(make_checkpoint: Callable[[int], Path], role: str) -> None:
    words = ("nurse", "sales driver", "teacher", "school", "a b")
    folders = {number: make_checkpoint(number) for number in (1, 2)}
    predictors = [Predictor.load(folder, number, precision="float32") for number, folder in folders.items()]
    classes = [[one.heads["category"].class_ for one in answers_of(predictor, words)] for predictor in predictors]
    alike = {word: first == second for word, first, second in zip(words, *classes, strict=True)}
    assert set(alike.values()) == {True, False}

    async def test(answerer: Answerer) -> None:
        told = [await answerer.predict(PredictRequest(texts=[word]), client=str(number)) for number, word in enumerate(words * 6)]
        assert {one.version for one in told} == ({1, 2} if role == "canary" else {1})
        by_candidate = sum(one.version == 2 for one in told)
        await compared(answerer, by_candidate if role == "canary" else len(told))
        facts = answerer.facts().candidate
        assert facts is not None
        assert (facts.role, facts.version, facts.errors, facts.failure) == (role, 2, 0, "")
        # Neither with itself, nor with what the other was not asked: some words get other classes from these two.
        asked = words * 6 if role == "shadow" else [words[number % len(words)] for number, one in enumerate(told) if one.version == 2]
        assert facts.agreement["category"] == pytest.approx(sum(alike[word] for word in asked) / len(asked))

    settings: dict[str, Any] = (
        {"canary": CanarySettings(version=2, fraction=0.5)} if role == "canary" else {"shadow": ShadowSettings(version=2)}
    )
    await with_versions(folders.__getitem__, test, **settings)


async def test_copies_are_no_requests_of_callers(make_checkpoint: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(answerer: Answerer) -> None:
        assert answerer.candidate is not None
        counters = answerer.scheduler.counters
        for _ in range(3):
            await answerer.predict(REQUEST)
        await compared(answerer, 6)
        assert counters.queue_seconds.count == 3
        # One more, whose copy is late.
        shadow: Any = answerer.candidate._predictor
        gate, forward = threading.Event(), shadow.engine.forward
        shadow.engine.forward = lambda rows: forward(rows) if gate.wait(60.0) else None
        deadlines = iter((60.0, 0.0))
        monkeypatch.setattr(answerer, "_deadline", lambda _: time.monotonic() + next(deadlines))
        await answerer.predict(REQUEST)
        while not answerer.candidate.left_out:
            await asyncio.sleep(0.01)
        gate.set()
        assert (counters.expired, answerer.candidate.left_out, counters.queue_seconds.count) == (0, 1, 4)

    await with_versions(make_checkpoint, test, shadow=ShadowSettings(version=2))


async def test_a_canary_answers_where_it_keeps_to_what_the_caller_was_promised(make_checkpoint: Callable[[int], Path]) -> None:
    async def test(answerer: Answerer) -> None:
        heads = answerer.facts().heads
        renamed = [heads[0].model_copy(update={"name": "other"}), *heads[1:]]
        reordered = [heads[0].model_copy(update={"classes": heads[0].classes[::-1]}), *heads[1:]]
        expected = [
            (None, {1, 2}),
            (Promised(heads), {1, 2}),
            (Promised(heads, 1), {1}),
            (Promised(renamed), {1}),
            (Promised(reordered), {1}),
        ]
        for promised, versions in expected:
            told = [await answerer.predict(REQUEST, str(number), promised) for number in range(20)]
            assert {one.version for one in told} == versions

    await with_versions(make_checkpoint, test, canary=CanarySettings(version=2, fraction=0.5))


def fails_on(predictor: Any, *words: str) -> None:
    """Let a version's engine fail on each batch with one of these texts."""
    forward, bad = predictor.engine.forward, [text.ids.tolist() for text in predictor.tokenize(list(words))]

    def failing(rows: Any) -> Any:
        if any(row.tolist() in bad for row in rows):
            raise RuntimeError("broken")
        return forward(rows)

    predictor.engine.forward = failing


def taken_client(answerer: Answerer) -> str:
    """Return somebody whose requests go to the canary."""
    assert answerer.candidate is not None
    current = answerer._follower.current
    return next(name for name in map(str, range(1_000)) if answerer.candidate.takes(name, current))


def without_unknown(texts: Any) -> Any:
    raise Exception("WordPiece error: Missing [UNK] token from the vocabulary")  # as the library's own


Break = Callable[[Any], None]


@pytest.mark.parametrize(
    "break_it",
    [lambda one: fails_on(one, "a", "b"), lambda one: fails_on(one, "b"), lambda one: setattr(one, "tokenize", without_unknown)],
    ids=["all texts", "one text", "the tokenizer"],
)
async def test_what_breaks_a_canary_is_answered_by_the_version_beside_it(make_checkpoint: Callable[[int], Path], break_it: Break) -> None:
    async def test(answerer: Answerer) -> None:
        assert answerer.candidate is not None
        expected = answers_of(answerer._follower.current, ["a", "b"])
        break_it(answerer.candidate._predictor)
        for number in range(20):
            told = (await answerer.predict(REQUEST, client=str(number))).prediction
            assert told.version == 1
            # One version answers all of a request; answers of another batch differ by the last decimals.
            assert [one.error for one in told.answers] == [None, None]
            assert [one.heads["category"].class_ for one in told.answers] == [one.heads["category"].class_ for one in expected]
        assert answerer.candidate.errors > 3
        assert answerer.candidate.answered == 0
        with pytest.raises(InvalidFields):
            await answerer.predict(PredictRequest(texts=[" "]))

    await with_versions(make_checkpoint, test, canary=CanarySettings(version=2, fraction=0.5))


async def test_a_text_that_breaks_both_leaves_the_others_answered_and_no_error_of_the_canary(
    make_checkpoint: Callable[[int], Path],
) -> None:
    async def test(answerer: Answerer) -> None:
        assert answerer.candidate is not None
        for predictor in (answerer.candidate._predictor, answerer._follower.current):
            fails_on(predictor, "b")
        told = (await answerer.predict(REQUEST, taken_client(answerer))).prediction
        assert told.version == 1
        assert [bool(one.error) for one in told.answers] == [False, True]
        with pytest.raises(ServingError, match="engine failed"):
            await answerer.predict(PredictRequest(texts=["b"]), taken_client(answerer))
        assert answerer.candidate.errors == 0

    await with_versions(make_checkpoint, test, canary=CanarySettings(version=2, fraction=0.5))


async def test_what_a_canary_answered_is_told_where_the_version_beside_it_cannot(make_checkpoint: Callable[[int], Path]) -> None:
    async def test(answerer: Answerer) -> None:
        assert answerer.candidate is not None
        fails_on(answerer.candidate._predictor, "b")
        fails_on(answerer._follower.current, "a", "b")
        told = (await answerer.predict(REQUEST, taken_client(answerer))).prediction
        assert told.version == 2
        assert [bool(one.error) for one in told.answers] == [False, True]
        await asyncio.gather(*answerer.candidate._copies)
        assert (answerer.candidate.errors, answerer.candidate.answered) == (0, 2)

    await with_versions(make_checkpoint, test, canary=CanarySettings(version=2, fraction=0.5))


@pytest.mark.parametrize("error", [Overloaded("full", 1.0), DeadlineExceeded("late")])
async def test_nobody_else_is_asked_where_there_is_no_room_or_no_time(error: ServingError) -> None:
    candidate, _ = await make("canary", 0.5)
    asked: list[int] = []

    async def ask(predictor: Any) -> tuple[Sequence[Answer], None]:
        asked.append(predictor.version)
        raise error

    canary: Any = NEW
    current: Any = OLD
    with pytest.raises(type(error)):
        await candidate.answer(ask, canary, current)
    assert (asked, candidate.errors) == ([2], 0)


PAGE = """# TYPE twohead_compared_total counter
twohead_compared_total{beside="1",candidate="2",head="job",replica="a",trial="ab"} 300.0
twohead_compared_total{beside="1",candidate="2",head="job",replica="b",trial="ab"} 200.0
twohead_compared_total{beside="1",candidate="2",head="level",replica="a",trial="ab"} 500.0
twohead_compared_total{beside="1",candidate="2",head="level",replica="0",trial="aa"} 900.0
twohead_compared_total{beside="3",candidate="2",head="level",replica="a",trial="ab"} 900.0
twohead_compared_total{beside="1",candidate="3",head="level",replica="a",trial="ab"} 900.0
twohead_agreed_total{beside="1",candidate="2",head="job",replica="a",trial="ab"} 299.0
twohead_agreed_total{beside="1",candidate="2",head="job",replica="b",trial="ab"} 196.0
twohead_agreed_total{beside="1",candidate="2",head="level",replica="a",trial="ab"} 490.0
twohead_candidate_errors_total{candidate="2",replica="a",trial="ab"} 1.0
twohead_candidate_errors_total{candidate="2",replica="0",trial="aa"} 8.0
twohead_candidate_errors_total{candidate="3",replica="a",trial="ab"} 7.0
"""


def test_figures_of_all_replicas_are_added_up() -> None:
    tally = read_tally(PAGE, 2, "ab", 1)
    assert tally == Tally({"job": 500.0, "level": 500.0}, {"job": 495.0, "level": 490.0}, 1.0)
    assert tally.agreement == {"job": 0.99, "level": 0.98}
    assert read_tally("", 2, "ab", 1) == Tally({}, {}, 0)


@pytest.mark.parametrize(
    ("rule", "least", "expected"),
    [(Rule(0.98, 1), 500, True), (Rule(0.981, 1), 500, False), (Rule(0.98, 1), 501, None), (Rule(0.98, 0), 501, False)],
)
def test_the_head_that_agrees_least_decides_and_errors_need_no_waiting(rule: Rule, least: int, expected: bool | None) -> None:
    assert decide(read_tally(PAGE, 2, "ab", 1), rule, least, ["job", "level"]) is expected


def test_rules_are_read() -> None:
    assert parse_rule("agreement>=0.98,errors=0") == Rule(0.98, 0)
    assert parse_rule(" errors<=3, agreement>=1 ") == Rule(1.0, 3)
    assert parse_rule("agreement>=0.5") == Rule(0.5, 0)


@pytest.mark.parametrize(
    "words",
    ["", "errors=0", "agreement>0.9", "agreement<=0.9", "agreement>=98", "agreement>=0.9,errors=0.5", "agreement>=.9,agreement>=.8", "x"],
)
def test_what_is_no_rule_is_told_with_what_is(words: str) -> None:
    with pytest.raises(SettingsError, match="--when") as caught:
        parse_rule(words)
    assert "agreement>=0.98,errors=0" in caught.value.hint


def test_one_version_is_tried_at_a_time() -> None:
    with pytest.raises(ValueError, match="one version is tried at a time"):
        ServingSettings(canary=CanarySettings(version=2), shadow=ShadowSettings(version=3))
