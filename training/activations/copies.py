"""Copies of activations in a storage that all machines of a cluster see, so that what one computed another need not.

They are a convenience: what cannot be written or removed is told once, and computed where it is missing. The bound is that of a machine's
own folder; what was asked for longest ago goes first, for whoever is in the middle of it computes the rest.
"""

import json
import logging
import time
from dataclasses import dataclass

from cluster.errors import StorageError
from cluster.storage import Storage

_LOG = logging.getLogger(__name__)
_FACTS = "facts.json"


@dataclass(frozen=True)
class _Entry:
    """Copies of some activations, how many bytes they may take, and when they were last asked for."""

    name: str
    size_bytes: int
    used: float


class Copies:
    """All copies in a storage.

    Args:
        storage: Their folder alone.
        most_bytes: Of all of them.
    """

    def __init__(self, storage: Storage, most_bytes: int) -> None:
        self._storage, self._most_bytes = storage, most_bytes
        self._has_told = False

    def begin(self, name: str, size_bytes: int) -> Storage | None:
        """Make room for copies, and return their folder.

        Args:
            name: Of the activations.
            size_bytes: Of all of them.

        Returns:
            Nothing where the storage does not let us.
        """
        try:
            own = self._storage.child(name)
            own.write_bytes(_FACTS, json.dumps({"bytes": size_bytes, "used": time.time()}).encode())
            self._evict(name, size_bytes)
        except StorageError as error:
            self.tell(error)
            return None
        return own

    def tell(self, error: StorageError) -> None:
        """Warn of what went wrong, once."""
        if not self._has_told:
            self._has_told = True
            _LOG.warning("%s; other machines compute these activations anew", error.message)

    def _evict(self, own: str, size_bytes: int) -> None:
        others = sorted((self._entry(name) for name in self._storage.names() if name != own), key=lambda one: one.used)
        total = size_bytes + sum(one.size_bytes for one in others)
        for one in others:
            # What says nothing of itself was left half made, or by an older version.
            if total <= self._most_bytes and one.used:
                break
            self._storage.child(one.name).remove()
            total -= one.size_bytes

    def _entry(self, name: str) -> _Entry:
        try:
            facts = json.loads(self._storage.read_bytes(f"{name}/{_FACTS}"))
            return _Entry(name, int(facts["bytes"]), float(facts["used"]))
        except (StorageError, ValueError, KeyError, TypeError):
            return _Entry(name, 0, 0.0)
