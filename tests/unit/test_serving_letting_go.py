"""A version that does not load leaves nothing behind: least of all its engine's process, and its memory."""

import asyncio
import gc
import os
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.candidates.candidate import Candidate
from serving.engines.own_process import OwnProcess, Started
from serving.errors import ServingError
from serving.follower import Follower
from serving.settings import CandidateSettings

LONG_S = 10.0


class Versions:
    """A registry in which the name stands at `version`."""

    def __init__(self, version: int) -> None:
        self.version = version

    def resolve(self, reference: str | int, /) -> int:
        return self.version

    def fetch(self, version: int, target: Path, /) -> Path:
        return target


@pytest.fixture(autouse=True)
def uncollected() -> Iterator[None]:
    """Nothing is collected: when that would be, nobody can say."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def ended() -> threading.Event:
    """Set when the process has been let go."""
    return threading.Event()


def of_the_file(process: OwnProcess) -> None:
    raise ServingError("the version is broken")


def of_the_engine(process: OwnProcess) -> None:
    process.make(Path("nowhere"), 0, 1, "float32", ())


@pytest.fixture(params=[of_the_file, of_the_engine])
def load(request: pytest.FixtureRequest, ended: threading.Event) -> Callable[[Path, int], Any]:
    """Fails on version 2, after its process was started."""

    def start() -> Started:
        ours, theirs = Pipe()
        theirs.send(ServingError("the engine failed: OSError"))

        def close() -> None:
            ours.close()
            theirs.close()

        connection: Any = SimpleNamespace(send=ours.send, recv=ours.recv, close=close)
        life: Any = SimpleNamespace(poll=lambda *_: True, close=ended.set)
        return Started(os.getpid(), connection, life)

    def load(folder: Path, version: int) -> Any:
        if version == 2:
            process = OwnProcess(start)
            request.param(process)
        return SimpleNamespace(version=version, warm=lambda: 1.0)

    return load


async def test_a_candidate_that_does_not_load_keeps_no_process(load: Callable[[Path, int], Any], ended: threading.Event) -> None:
    async def ask(*_: object) -> Any:
        raise AssertionError("asked")

    candidate = Candidate("shadow", CandidateSettings(version=2, fraction=1.0), Follower(Versions(2), 2, load), ask)
    candidate.start()
    assert await asyncio.to_thread(ended.wait, LONG_S)
    assert candidate.facts(1).failure
    await candidate.stop()


async def test_a_promoted_version_that_does_not_load_keeps_no_process(load: Callable[[Path, int], Any], ended: threading.Event) -> None:
    versions = Versions(1)
    follower = Follower(versions, "production", load)
    await follower.start()
    versions.version = 2
    await follower.refresh()
    assert await asyncio.to_thread(ended.wait, LONG_S)
    assert follower.last_failure is not None
    follower.stop()
