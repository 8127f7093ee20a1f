"""Which version answers: follows a name in the registry, or stays with one version.

A new version is loaded beside the one that answers, verified and warmed with real batches; only then is it the current one.
On any failure the old one goes on and the reason is kept. Requests hold on to the version they began with, so a swap needs no
pause. It does not know how answers are made or sent.
"""

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from cluster.errors import TwoheadError
from serving.errors import NotReady, without_words
from serving.messages import Failure
from serving.predictor import Predictor
from serving.watchdog import watched

log = logging.getLogger(__name__)

# A version never changes, but what kept it from loading (storage, memory) may.
RETRY_S = 60.0


class Versions(Protocol):
    """What is asked of a registry; `training.registry.Registry` is one."""

    def resolve(self, reference: str | int, /) -> int:
        """Turn a name or a number into a published version."""
        ...

    def fetch(self, version: int, target: Path, /) -> Path:
        """Return a local folder with a verified version."""
        ...


class Follower:
    """Keeps the current version.

    Args:
        versions: Where versions and names are.
        reference: A name to follow, or the number of a version to stay with.
        load: Makes a predictor of a verified folder and a version.
    """

    def __init__(self, versions: Versions, reference: str | int, load: Callable[[Path, int], Predictor]) -> None:
        self._versions = versions
        self._reference = reference
        self._load = load
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="follower")
        self._current: Predictor | None = None
        self._failed_at = -RETRY_S
        self.last_failure: Failure | None = None
        self.tokens_per_s = 0.0

    @property
    def name(self) -> str | None:
        """The name that is followed; None for a fixed version."""
        return self._reference if isinstance(self._reference, str) else None

    @property
    def version(self) -> int | None:
        """Number of the version that answers; None while none does."""
        return None if self._current is None else self._current.version

    @property
    def current(self) -> Predictor:
        """The version that answers now.

        Raises:
            NotReady: None was loaded yet.
        """
        if self._current is None:
            raise NotReady("no version is loaded yet")
        return self._current

    @property
    def has_lost_its_engine(self) -> bool:
        """Whether a version is to answer and cannot compute any more."""
        return self._current is not None and not self._current.is_alive

    async def start(self) -> None:
        """Load the first version.

        Raises:
            TwoheadError: There is no such name or version, or its checkpoint is broken.
        """
        loop = asyncio.get_running_loop()
        version = await loop.run_in_executor(self._thread, self._versions.resolve, self._reference)
        self._current = await loop.run_in_executor(self._thread, self._prepare, version)
        log.info("version %d answers", version)

    async def follow(self, every_s: float, took_over: Callable[[float], None]) -> None:
        """Look for a move of the name, for ever; returns at once for a fixed version.

        Args:
            every_s: Seconds between two looks.
            took_over: Told the tokens a second of every version that begins to answer.
        """
        while self.name is not None:
            await asyncio.sleep(every_s)
            before = self._current
            await self.refresh()
            if self._current is not before:
                took_over(self.tokens_per_s)

    async def refresh(self) -> None:
        """Bring the version the name points to into service, or remember why that failed."""
        loop = asyncio.get_running_loop()
        resolved = loop.run_in_executor(self._thread, self._versions.resolve, self._reference)
        # It takes no error out of a future, so that whatever went wrong is looked at below. Loading may take long, and is not watched.
        await watched(resolved, f"the name {self._reference!r} is not followed")
        if error := resolved.exception():
            self._fail(None, error)
            return
        version = resolved.result()
        if self.last_failure is not None and (version == self.current.version or self.last_failure.version is None):
            # Over: the name can be read, and is not that of a version which fails.
            self.last_failure = None
        if version == self.current.version or self._failed_lately(version):
            return
        log.info("version %d is loaded beside version %d", version, self.current.version)
        prepared = loop.run_in_executor(self._thread, self._prepare, version)
        await asyncio.wait([prepared])
        if error := prepared.exception():
            self._fail(version, error)
            return
        self._current, self.last_failure = prepared.result(), None
        log.info("version %d answers", version)

    def stop(self) -> None:
        """Let the loading thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, version: int) -> Predictor:
        # Of a remote storage this is the only copy; a loaded version does not read its files again.
        scratch = Path(tempfile.mkdtemp(prefix="twohead-version-"))
        try:
            predictor = self._load(self._versions.fetch(version, scratch / "checkpoint"), version)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self.tokens_per_s = predictor.warm()
        return predictor

    def _failed_lately(self, version: int) -> bool:
        failure = self.last_failure
        return failure is not None and failure.version == version and time.monotonic() < self._failed_at + RETRY_S

    def _fail(self, version: int | None, error: BaseException) -> None:
        # Only our own errors are known to hold no text of a request or a file.
        reason = error.message if isinstance(error, TwoheadError) else type(error).__name__
        if self.last_failure is None or (self.last_failure.version, self.last_failure.reason) != (version, reason):
            told = reason if isinstance(error, TwoheadError) else without_words(error)
            log.error("version %s cannot answer, the one before goes on: %s", version, told)
        self.last_failure = Failure(version=version, reason=reason, at=datetime.now(UTC).isoformat(timespec="seconds"))
        self._failed_at = time.monotonic()
