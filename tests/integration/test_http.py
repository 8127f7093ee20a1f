"""The whole application but Ray, over real HTTP: one bad text among others, and whatever else its own document allows to be sent."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import numpy as np
import pytest
import schemathesis
import uvicorn
from numpy.typing import NDArray
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance

from cluster.storage import Storage
from serving.answerer import Answerer
from serving.engines.engine import Engine, Logits
from serving.follower import Follower
from serving.predictor import Predictor
from serving.routes import build_app
from serving.settings import ServingSettings
from training.registry import Registry

TEXTS = [f"nurse {'and ' * (number % 7)}sales" for number in range(32)]
POISONED = 13
POISON = "teacher"


async def figures() -> str:
    return "twohead_batches_total 5\n"


class BrokenEngine:
    """Fails in its own way on a batch with the poisonous token."""

    def __init__(self, engine: Engine, token: int, fail: Callable[[Logits, int], Logits]) -> None:
        self._engine, self._token, self._fail = engine, token, fail
        self.name, self.device, self.dtype, self.pads = engine.name, engine.device, engine.dtype, engine.pads
        self.clock = engine.clock

    def forward(self, rows: Sequence[NDArray[np.int32]]) -> Logits:
        logits = self._engine.forward(rows)
        bad = next((index for index, row in enumerate(rows) if self._token in row), None)
        return logits if bad is None else self._fail(logits, bad)


def raises(logits: Logits, bad: int) -> Logits:
    raise RuntimeError("cannot")


def answers_nan(logits: Logits, bad: int) -> Logits:
    broken = {head: values.copy() for head, values in logits.items()}
    broken["education"][bad, 0] = np.nan
    return broken


def answers_too_few(logits: Logits, bad: int) -> Logits:
    return {head: np.delete(values, bad, axis=0) for head, values in logits.items()}


@contextmanager
def serving(folder: Path, checkpoint: Path, change: Callable[[Predictor], None] = lambda _: None) -> Iterator[str]:
    """Serve a checkpoint from a thread of this process; gives the URL."""
    registry = Registry(Storage(str(folder)))
    version = registry.publish(checkpoint)

    def load(path: Path, number: int) -> Predictor:
        predictor = Predictor.load(path, number)
        change(predictor)
        return predictor

    # It listens before anybody accepts, so that nobody needs to wait for the server.
    listener = socket.create_server(("127.0.0.1", 0))
    stop: list[Callable[[], None]] = []
    ready = threading.Event()

    async def serve() -> None:
        answerer = Answerer(ServingSettings(max_texts=64, max_characters=2_000), Follower(registry, version, load))
        await answerer.start()
        server = uvicorn.Server(uvicorn.Config(build_app(answerer, figures), lifespan="off", ws="none", log_level="critical"))
        stop.append(lambda: setattr(server, "should_exit", True))
        ready.set()
        await server.serve(sockets=[listener])
        await answerer.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(400)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    stop[0]()
    thread.join()


@pytest.mark.parametrize("fail", [raises, answers_nan, answers_too_few])
def test_of_32_texts_31_are_answered_beside_the_poisoned_one(
    fail: Callable[[Logits, int], Logits], tmp_path: Path, tiny_checkpoint: Path
) -> None:
    def poison(predictor: Predictor) -> None:
        token = predictor.tokenize([POISON])[0].ids[1]
        predictor.engine = BrokenEngine(predictor.engine, int(token), fail)

    with serving(tmp_path / "storage", tiny_checkpoint, poison) as url, httpx.Client(base_url=url, timeout=60) as client:
        whole = client.post("/v1/predict", json={"texts": TEXTS}).json()["answers"]
        texts = [*TEXTS[:POISONED], f"{POISON} and school", *TEXTS[POISONED + 1 :]]
        response = client.post("/v1/predict", json={"texts": texts})
        alone = client.post("/v1/predict", json={"texts": [POISON]})
        after = client.post("/v1/predict", json={"texts": TEXTS}).json()["answers"]
    assert response.status_code == 200
    answers = response.json()["answers"]
    failed = answers.pop(POISONED)
    assert failed == {"heads": {}, "tokens": 5, "truncated": False, "error": f"the engine failed on text {POISONED}"}
    expected = whole[:POISONED] + whole[POISONED + 1 :]
    assert [labels(one) for one in answers] == [labels(one) for one in expected]
    for answer, one in zip(answers, expected, strict=True):
        assert probabilities(answer) == pytest.approx(probabilities(one), abs=1e-5)
    assert (alone.status_code, alone.headers["content-type"]) == (500, "application/problem+json")
    assert alone.json()["detail"] == "the engine failed on text 0"
    assert [labels(one) for one in after] == [labels(one) for one in whole]


def labels(answer: Mapping[str, Any]) -> dict[str, str]:
    return {head: told["class"] for head, told in answer["heads"].items()}


def probabilities(answer: Mapping[str, Any]) -> dict[str, float]:
    return {f"{head} {name}": score for head, told in answer["heads"].items() for name, score in told["scores"].items()}


SCHEMA = schemathesis.openapi.from_dict(build_app(None, figures).openapi())  # type: ignore[arg-type]  # nobody asks it
# Where nothing can be sent, nothing wrong can be.
CASES = [
    (operation, mode)
    for operation in (found.ok() for found in SCHEMA.get_all_operations())
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or operation.body or operation.query or operation.path_parameters
]
EXAMPLES = 60


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, make_checkpoint_in: Callable[[Path], Path]) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("contract")
    with serving(folder / "storage", make_checkpoint_in(folder / "checkpoint")) as url:
        yield url


def name_what_is_served(case: Any) -> None:
    """Put names that the document cannot know in the place of invented ones, so that the request is more than not found."""
    if "model" in case.path_parameters:
        case.path_parameters["model"] = "twohead"
    if "head" in case.query:
        case.query["head"] = "category"
    if not isinstance(case.body, dict):
        return
    if "model" in case.body:
        case.body["model"] = "category"
    if "examples" in case.body:
        case.body["examples"] = [{"title": "nurse", "text": "school"} | one for one in case.body["examples"] or ()]
    for tensor in case.body.get("inputs", ()):
        if isinstance(tensor, dict):
            tensor |= {"name": "text", "shape": [len(tensor["data"])]}
            case.body["outputs"] = case.body.get("outputs", [])[:0]


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "mode"), CASES, ids=lambda part: getattr(part, "label", None) or part.value)
def test_whatever_is_sent_is_answered_as_the_document_says(operation: Any, mode: GenerationMode, url: str) -> None:
    statuses: set[int] = set()

    @hypothesis.settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=[*hypothesis.HealthCheck]
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            name_what_is_served(case)
        # What a request may ask for beyond the document, like fields and heads, says the version that answers.
        response = case.call_and_validate(base_url=url, timeout=60, excluded_checks=[not_a_server_error, positive_data_acceptance])
        statuses.add(response.status_code)
        has_deadline = "x-request-deadline-ms" in case.headers or (isinstance(case.body, dict) and case.body.get("deadline_ms"))
        assert response.status_code < 500 or (response.status_code == 504 and has_deadline)

    check()
    assert 200 in statuses or mode is GenerationMode.NEGATIVE
