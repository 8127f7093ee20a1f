"""A storage that neither answers nor fails is noticed by whoever follows it."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.storage import Storage
from serving import watchdog as module
from serving.follower import Follower
from serving.keys.key import Key
from serving.keys.ring import KeyRing
from serving.keys.store import KeyStore

LONG_S = 30.0


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Where it is not set the storage does not answer; how long that may take is over at once."""
    monkeypatch.setattr(module, "STALLED_S", 0.01)
    gate = threading.Event()
    yield gate
    # Threads that wait would keep the interpreter.
    gate.set()


async def logged(caplog: pytest.LogCaptureFixture, words: str) -> None:
    """Wait until a warning says something."""
    async with asyncio.timeout(LONG_S):
        while not any(words in message for message in caplog.messages):
            await asyncio.sleep(0.01)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings, without their times."""
    return [message.partition(" since ")[0] for message in caplog.messages]


async def test_keys_that_are_not_followed_are_told_once_and_those_that_were_known_stay(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = KeyStore(Storage(str(tmp_path)))
    key, held = Key.make("test", frozenset({"predict"}), None, None)
    store.add(key)
    ring, names = KeyRing(store), store.names
    await ring.start()
    monkeypatch.setattr(store, "names", lambda: (gate.wait(LONG_S), names())[1])
    following = asyncio.create_task(ring.follow(0.0))
    await logged(caplog, "the storage does not answer")
    assert ring.admit(held, "predict", "") == key
    assert told(caplog) == ["keys that were made or revoked are not followed"]
    monkeypatch.setattr(module, "STALLED_S", LONG_S)
    gate.set()
    await logged(caplog, "has answered")
    store.revoke(key.id)
    async with asyncio.timeout(LONG_S):
        while ring._keys:
            await asyncio.sleep(0.01)
    assert [message.endswith(", has answered") for message in caplog.messages] == [False, True]
    following.cancel()
    ring.stop()


async def test_a_name_that_is_not_followed_is_told_and_changes_nothing(gate: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([1, 2])

    def resolve(_: str | int) -> int:
        version = next(answers)
        return version if version == 1 or gate.wait(LONG_S) else 0

    def load(_: Path, version: int) -> Any:
        # Loading may take longer than the storage, and is not told.
        threading.Event().wait(0.1)
        return SimpleNamespace(version=version, warm=lambda: 1.0)

    versions: Any = SimpleNamespace(resolve=resolve, fetch=lambda _, target: target)
    follower = Follower(versions, "production", load)
    await follower.start()
    refreshed = asyncio.create_task(follower.refresh())
    await logged(caplog, "the storage does not answer")
    assert told(caplog) == ["the name 'production' is not followed"]
    assert follower.current.version == 1
    gate.set()
    await refreshed
    assert (follower.current.version, len(caplog.messages)) == (2, 2)
    follower.stop()
