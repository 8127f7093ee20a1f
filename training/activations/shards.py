"""One file of activations, filled shard by shard by whoever has the time; a shard counts only with the digest of what is in it.

Locks are the kernel's (`flock`): they end with the process that holds them, however it ends. It does not know what is computed.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from numpy.typing import NDArray

from cluster.errors import StorageError
from cluster.storage import Storage
from training.activations.wanted import Shard, Wanted

_FILE = "activations"

Fill = Callable[[Shard], NDArray]  # type: ignore[type-arg]  # float16 or float32


class ShardFile:
    """The activations of one `Wanted` on this machine.

    Args:
        folder: Of these activations alone; must exist.
        wanted: What is in it.
        others: The same folder in a storage that other machines see; null where this one is it.
        tell: What to do where a copy cannot be written there; they go without.
    """

    def __init__(
        self, folder: Path, wanted: Wanted, others: Storage | None = None, tell: Callable[[StorageError], None] = lambda _: None
    ) -> None:
        self._folder, self._wanted, self._others, self._tell = folder, wanted, others, tell
        self._shards = wanted.shards()
        self._whole: set[int] = set()
        with (folder / _FILE).open("ab") as file:
            # Sparse until it is filled.
            file.truncate(wanted.size_bytes)

    def complete(self, fill: Fill) -> None:
        """Compute what nobody has computed or is computing, then wait for the others; whoever dies leaves the shard to us.

        Args:
            fill: Computes the vectors of a shard, (rows, width).

        Raises:
            OSError: The disk is full.
        """
        # Each process begins elsewhere, so that they meet late.
        begin = os.getpid() % max(1, len(self._shards))
        order = self._shards[begin:] + self._shards[:begin]
        for wait in (False, True):
            for shard in order:
                if shard.number not in self._whole:
                    self._see_to(shard, fill, wait=wait)

    def offer(self, number: int, rows: NDArray) -> None:  # type: ignore[type-arg]  # float16 or float32
        """Keep the vectors of a shard that somebody has computed by the way; one that is there, or being computed, stays as it is."""
        shard = self._shards[number]
        with locked(self._folder / f"{number}.lock", wait=False) as is_held:
            if is_held and not self._is_whole(shard):
                self._keep(shard, rows.tobytes())

    def tensor(self) -> torch.Tensor:
        """Map the vectors, (rows, width); pages are read when they are used, and shared between processes."""
        wanted = self._wanted
        dtype = {"float16": torch.float16, "float32": torch.float32}[wanted.precision]
        mapped = torch.from_file(str(self._folder / _FILE), shared=False, size=wanted.rows * wanted.width, dtype=dtype)
        return mapped.view(wanted.rows, wanted.width)

    def _see_to(self, shard: Shard, fill: Fill, *, wait: bool) -> None:
        with locked(self._folder / f"{shard.number}.lock", wait=wait) as is_held:
            if not is_held:
                return
            if not self._is_whole(shard) and not self._fetch(shard):
                self._keep(shard, fill(shard).tobytes())
            self._whole.add(shard.number)

    def _keep(self, shard: Shard, content: bytes) -> None:
        self._write(shard, content)
        if self._others is None:
            return
        try:
            self._others.write_bytes(str(shard.number), _digest(content).encode() + content)
        except StorageError as error:
            # What is here is whole, and nobody waits for more refusals.
            self._others = None
            self._tell(error)

    def _is_whole(self, shard: Shard) -> bool:
        try:
            noted = self._note(shard).read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return False
        with (self._folder / _FILE).open("rb") as file:
            return noted == _digest(os.pread(file.fileno(), shard.size_bytes, shard.start_bytes))

    def _fetch(self, shard: Shard) -> bool:
        """Take a shard that another machine computed."""
        if self._others is None:
            return False
        try:
            found = self._others.read_bytes(str(shard.number))
        except StorageError:
            return False
        noted, content = found[:_DIGEST_BYTES], found[_DIGEST_BYTES:]
        if len(content) != shard.size_bytes or noted != _digest(content).encode():
            return False
        self._write(shard, content)
        return True

    def _write(self, shard: Shard, content: bytes) -> None:
        # Not through the mapping: a full disk would kill the process there, and is an error here.
        with (self._folder / _FILE).open("r+b") as file:
            file.seek(shard.start_bytes)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft = self._note(shard).with_suffix(".draft")
        draft.write_text(_digest(content), encoding="ascii")
        draft.replace(self._note(shard))

    def _note(self, shard: Shard) -> Path:
        return self._folder / f"{shard.number}.sha256"


_DIGEST_BYTES = 64


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def locked(path: Path, *, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """Hold a lock for the length of the block.

    Args:
        path: Made if it is not there.
        wait: Until it is free; else give up at once.
        shared: With others who share it.

    Yields:
        Whether it is held.
    """
    # For reading too: NFS refuses to share a lock on a file that is not open for it.
    with path.open("a+") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            # By hand: a process forked meanwhile would hold it on.
            fcntl.flock(file, fcntl.LOCK_UN)
