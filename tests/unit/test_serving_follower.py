import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving import follower as module
from serving.errors import NotReady, ServingError
from serving.follower import Follower
from training.errors import CheckpointError, RegistryError


class FakeVersions:
    """A registry in memory; `broken` maps versions to the error that fetching them raises."""

    def __init__(self, version: int, broken: dict[int, Exception] | None = None) -> None:
        self.version: int | Exception = version
        self.broken = broken or {}
        self.fetched: list[int] = []

    def resolve(self, reference: str | int, /) -> int:
        if isinstance(reference, int):
            return reference
        if isinstance(self.version, Exception):
            raise self.version
        return self.version

    def fetch(self, version: int, target: Path, /) -> Path:
        self.fetched.append(version)
        if version in self.broken:
            raise self.broken[version]
        return target


class FakePredictor(SimpleNamespace):
    """A version that answers nothing; `warm` can fail."""

    def warm(self) -> float:
        if self.version == 66:
            raise ServingError("version 66: head 'a' answers something that is no number")
        return 100.0 * self.version


def load(folder: Path, version: int) -> Any:
    return FakePredictor(version=version, folder=folder)


def follow(versions: FakeVersions, test: Callable[[Follower], Any], reference: str | int = "production") -> None:
    async def main() -> None:
        follower = Follower(versions, reference, load)
        with pytest.raises(NotReady):
            _ = follower.current
        await follower.start()
        await test(follower)
        follower.stop()

    asyncio.run(main())


def test_the_first_version_is_loaded_and_warmed() -> None:
    async def test(follower: Follower) -> None:
        assert follower.current.version == 3
        assert follower.tokens_per_s == 300.0
        assert (follower.name, follower.last_failure) == ("production", None)

    follow(FakeVersions(3), test)


def test_a_moved_name_is_followed_once() -> None:
    versions = FakeVersions(3)

    async def test(follower: Follower) -> None:
        await follower.refresh()
        versions.version = 4
        await follower.refresh()
        await follower.refresh()
        assert follower.current.version == 4
        assert versions.fetched == [3, 4]

    follow(versions, test)


@pytest.mark.parametrize(
    ("version", "error", "reason"),
    [
        (5, CheckpointError("weights.safetensors: has another SHA-256"), "weights.safetensors: has another SHA-256"),
        (5, RuntimeError("secret"), "RuntimeError"),
        (5, MemoryError(), "MemoryError"),
        (66, None, "version 66: head 'a' answers something that is no number"),
    ],
)
def test_a_broken_version_leaves_the_old_one(version: int, error: Exception | None, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    versions = FakeVersions(3, {} if error is None else {version: error})

    async def test(follower: Follower) -> None:
        versions.version = version
        await follower.refresh()
        assert follower.current.version == 3
        assert follower.last_failure is not None
        assert (follower.last_failure.version, follower.last_failure.reason) == (version, reason)
        versions.version = 6
        await follower.refresh()
        assert follower.current.version == 6

    follow(versions, test)
    assert f"version {version} cannot answer" in caplog.text
    # Where a foreign error was raised, not its words.
    assert ("self.broken[version]" in caplog.text) == (error is not None and not isinstance(error, CheckpointError))
    assert "secret" not in caplog.text


def test_a_broken_version_is_tried_again_only_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = FakeVersions(3, {5: CheckpointError("broken")})
    now = 1000.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))

    async def test(follower: Follower) -> None:
        nonlocal now
        versions.version = 5
        await follower.refresh()
        await follower.refresh()
        assert versions.fetched == [3, 5]
        assert follower.last_failure is not None
        now += module.RETRY_S
        del versions.broken[5]
        await follower.refresh()
        assert (follower.current.version, follower.last_failure) == (5, None)

    follow(versions, test)


def test_an_unreachable_registry_changes_nothing() -> None:
    versions = FakeVersions(3)

    async def test(follower: Follower) -> None:
        versions.version = RegistryError("storage is away")
        await follower.refresh()
        assert follower.current.version == 3
        assert follower.last_failure is not None
        assert (follower.last_failure.version, follower.last_failure.reason) == (None, "storage is away")
        versions.version = 3
        await follower.refresh()
        assert follower.last_failure is None

    follow(versions, test)


def test_a_failure_is_over_when_the_name_moves_back() -> None:
    versions = FakeVersions(3, {5: CheckpointError("broken")})

    async def test(follower: Follower) -> None:
        versions.version = 5
        await follower.refresh()
        assert follower.last_failure is not None
        versions.version = 3
        await follower.refresh()
        assert follower.last_failure is None

    follow(versions, test)


def test_a_first_version_that_is_broken_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="broken"):
        follow(FakeVersions(3, {3: CheckpointError("broken")}), lambda _: None)


def test_the_speed_of_each_version_that_takes_over_is_told() -> None:
    versions = FakeVersions(3, {4: CheckpointError("broken")})

    async def test(follower: Follower) -> None:
        told: list[float] = []
        following = asyncio.create_task(follower.follow(0.0, told.append))

        async def move_to(version: int, is_done: Callable[[], bool]) -> None:
            versions.version = version
            async with asyncio.timeout(60):
                while not is_done():
                    await asyncio.sleep(0.001)

        await move_to(4, lambda: follower.last_failure is not None)
        await move_to(5, lambda: follower.current.version == 5)
        await move_to(6, lambda: len(told) > 1)
        following.cancel()
        await asyncio.wait([following])
        assert told == [500.0, 600.0]

    follow(versions, test)


def test_a_fixed_version_is_not_followed() -> None:
    versions = FakeVersions(9)

    async def test(follower: Follower) -> None:
        await asyncio.wait_for(follower.follow(0.0, pytest.fail), 10)
        assert (follower.current.version, follower.name) == (2, None)

    follow(versions, test, reference=2)
