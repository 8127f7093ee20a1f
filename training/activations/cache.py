"""The folder of all activations on this machine: what is there, how much it may hold, and what goes when room is needed.

The least recently used goes first, never what a living process reads. It does not know how activations are computed.
"""

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.errors import StorageError
from cluster.storage import Storage
from training.activations.copies import Copies
from training.activations.shards import ShardFile, locked
from training.activations.wanted import Shard, Wanted

FOLDER = "activations"
_LOG = logging.getLogger(__name__)
_FACTS = "facts.json"
_IN_USE = "in-use"
# As `Wanted.name` makes them; whatever else is in the folder is not ours.
_NAME = re.compile(r"[0-9a-f]{32}")

Compute = Callable[[Shard], list[NDArray[np.float32]]]


class RangeExceeded(ArithmeticError):
    """A value is too large for the precision it was to be kept in."""


class ActivationCache:
    """Keeps activations on this machine's disk, within a bound.

    Args:
        folder: On this machine; made if it is not there.
        most_bytes: Of all activations in it, and of all copies elsewhere.
        others: Where machines of the same cluster find each other's; null where `folder` is that place already.
    """

    def __init__(self, folder: Path, most_bytes: int, others: Storage | None = None) -> None:
        self.folder, self._most_bytes = folder, most_bytes
        self._copies = Copies(others.child(FOLDER), most_bytes) if others else None
        self._held = ExitStack()

    def open(self, wanted: Wanted, compute: Compute, beside: Wanted | None = None) -> torch.Tensor | None:
        """Return the activations, computing those that are not there yet, side by side with whoever else wants them.

        Args:
            wanted: What is asked for.
            compute: The vectors of a shard's texts, (rows, width), float32; then, if `beside` is given, those of the same texts for it.
            beside: Activations of the same texts that the same computation brings; kept where there is room and they fit.

        Returns:
            (rows, width), mapped; nothing where the bound or the disk leaves no room.

        Raises:
            RangeExceeded: A value does not fit into `wanted.precision`.
            StorageError: The folder cannot be made, or belongs to somebody else.
        """
        folder = _made(self.folder)
        try:
            file = self._file(wanted)
            if file is None:
                return None
            # After the one that must have room.
            second = self._file(beside) if beside else None

            def fill(shard: Shard) -> NDArray[np.float16] | NDArray[np.float32]:
                computed = compute(shard)
                if beside is not None and second is not None and _fits(computed[1], beside):
                    second.offer(shard.number, _within_range(computed[1], beside))
                return _within_range(computed[0], wanted)

            file.complete(fill)
        except OSError as error:
            # A full disk; what is there already stays good.
            _LOG.warning("%s: %s; frozen layers are computed anew for every batch", folder, error.strerror or error)
            return None
        return file.tensor()

    def close(self) -> None:
        """Let go of everything that was opened; it may be evicted now."""
        self._held.close()

    def _file(self, wanted: Wanted) -> ShardFile | None:
        if wanted.size_bytes > self._most_bytes or not self._reserve(wanted):
            return None
        folder = self.folder / wanted.name
        if self._copies is None:
            return ShardFile(folder, wanted)
        return ShardFile(folder, wanted, self._copies.begin(wanted.name, wanted.size_bytes), self._copies.tell)

    def _reserve(self, wanted: Wanted) -> bool:
        """Make the folder of these activations, and keep others from evicting it while this process lives."""
        entry = self.folder / wanted.name
        with locked(self.folder / ".lock"):
            if not (entry / _FACTS).exists():
                # What a process that died left half made.
                shutil.rmtree(entry, ignore_errors=True)
                if not self._make_room(wanted.size_bytes):
                    return False
                entry.mkdir()
                draft = entry / f"{_FACTS}.draft"
                draft.write_text(json.dumps({"bytes": wanted.size_bytes}), encoding="utf-8")
                draft.replace(entry / _FACTS)
            os.utime(entry / _FACTS)
            self._held.enter_context(locked(entry / _IN_USE, shared=True))
        return True

    def _make_room(self, needed: int) -> bool:
        sizes = {entry: size for entry in self.folder.iterdir() if _NAME.fullmatch(entry.name) and (size := _size_of(entry))}
        total = sum(sizes.values())
        for entry in sorted(sizes, key=lambda entry: (entry / _FACTS).stat().st_mtime):
            if total + needed <= self._most_bytes:
                break
            with locked(entry / _IN_USE, wait=False) as is_free:
                if is_free:
                    # On NFS the lock's own file, which is open, keeps a name until it is closed, and the folder with it.
                    shutil.rmtree(entry, ignore_errors=True)
                    total -= sizes[entry]
        return total + needed <= self._most_bytes


def _size_of(entry: Path) -> int:
    """Return how many bytes activations may take; 0 where a crash has left what nobody can use, which then goes."""
    try:
        return int(json.loads((entry / _FACTS).read_text(encoding="utf-8"))["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        with locked(entry / _IN_USE, wait=False) as is_free:
            if is_free:
                shutil.rmtree(entry, ignore_errors=True)
        return 0


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror or error}", "training.activations.folder must be writable") from error
    if folder.stat().st_uid != os.getuid():
        raise StorageError(f"{folder}: belongs to another user", "name a folder of your own in training.activations.folder")
    return folder


def _within_range(rows: NDArray[np.float32], wanted: Wanted) -> NDArray[np.float16] | NDArray[np.float32]:
    if not _fits(rows, wanted):
        raise RangeExceeded
    return rows.astype(np.float16) if wanted.precision == "float16" else rows


def _fits(rows: NDArray[np.float32], wanted: Wanted) -> bool:
    return wanted.precision == "float32" or bool(np.abs(rows).max(initial=0.0) <= np.finfo(np.float16).max)


def folder_for(storage: Storage, named: str | None) -> Path:
    """Return where this machine keeps activations: as the settings say, in a local storage, or beside the temporary files.

    Args:
        storage: Of the search.
        named: `training.activations.folder`.
    """
    if named is not None:
        return Path(named).expanduser().resolve()
    return storage.local_root / FOLDER if storage.local_root else Path(tempfile.gettempdir()) / f"twohead-{FOLDER}-{os.getuid()}"
