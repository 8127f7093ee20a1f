"""The ring of keys while others use it: a look at the storage and requests at the same time."""

from pathlib import Path
from typing import Any

import pytest

from cluster.storage import Storage
from serving.errors import TooManyRequests
from serving.keys.key import Key
from serving.keys.ring import Bucket, KeyRing
from serving.keys.store import KeyStore


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(Storage(str(tmp_path)))


def make(store: KeyStore, rate: float | None = None) -> tuple[Key, str]:
    key, held = Key.make("test", frozenset({"predict"}), None, rate)
    store.add(key)
    return key, held


def test_who_asks_first_while_the_storage_is_looked_at_is_counted(store: KeyStore) -> None:
    (first, _), (second, held) = make(store), make(store, 1.0)
    ring = KeyRing(store, lambda: 0.0)
    ring.refresh()
    asked: list[Key] = []

    class Watched(str):
        """An id at whose sight somebody asks for the first time."""

        __slots__ = ()

        def __hash__(self) -> int:
            if ring_is_looking and not asked:
                asked.append(ring.admit(held, "predict", ""))
            return super().__hash__()

    ring_is_looking = False
    buckets: dict[str, Any] = {Watched(first.id): Bucket(1.0, 0.0)}
    ring._buckets = buckets
    ring_is_looking = True
    ring.refresh()
    assert asked == [second]
    with pytest.raises(TooManyRequests):
        ring.admit(held, "predict", "")


def test_a_revoked_keys_rate_is_forgotten(store: KeyStore) -> None:
    key, held = make(store, 1.0)
    make(store)
    ring = KeyRing(store)
    ring.refresh()
    ring.admit(held, "predict", "")
    assert list(ring._buckets) == [key.id]
    store.revoke(key.id)
    ring.refresh()
    assert not ring._buckets
