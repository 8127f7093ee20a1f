"""The keys that a replica knows: followed in the storage, and asked about every request.

What was known stays while the storage cannot be read, so that its failure is not the service's; keys that expire do so all the same.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from cluster.errors import StorageError
from serving.errors import Forbidden, KeyringError, TooManyRequests, Unauthorized
from serving.keys.key import Key, read_key
from serving.keys.store import KeyStore
from serving.watchdog import watched

log = logging.getLogger(__name__)

# Of one address, before and beside which every wrong key is only told that there were too many.
_WRONG_PER_S = 20.0
# Addresses whose wrong keys are counted at once.
_MOST_ADDRESSES = 10_000


class Bucket:
    """Lets through so many a second, and as many at once as come in a second, but at least one.

    Source: Turner 1986, New Directions in Communications (or Which Way to the Information Age?).
    """

    __slots__ = ("_at", "_left", "_most", "_per_s")

    def __init__(self, per_s: float, at: float) -> None:
        self._per_s, self._most = per_s, max(per_s, 1.0)
        self._left, self._at = self._most, at

    def take(self, at: float) -> float:
        """Take one out at a time; returns the seconds until there is one, 0 where there was."""
        self._left = min(self._left + (at - self._at) * self._per_s, self._most)
        self._at = at
        if self._left < 1.0:
            return (1.0 - self._left) / self._per_s
        self._left -= 1.0
        return 0.0


class KeyRing:
    """The keys that are good now.

    Args:
        store: Where they are kept.
        clock: Seconds that only grow.
    """

    def __init__(self, store: KeyStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys")
        self._keys: dict[str, Key] = {}
        self._buckets: dict[str, Bucket] = {}
        self._wrong: OrderedDict[str, Bucket] = OrderedDict()
        self._damaged: set[str] = set()
        self._unreadable: set[str] = set()

    async def start(self) -> None:
        """Read all keys.

        Raises:
            StorageError: The storage cannot be read.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self.refresh)

    async def follow(self, every_s: float) -> None:
        """Look for keys that were made or revoked, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(every_s)
            refreshed = loop.run_in_executor(self._thread, self.refresh)
            await watched(refreshed, "keys that were made or revoked are not followed")
            if error := refreshed.exception():
                log.warning("keys cannot be read, those that were known stay: %s", type(error).__name__)

    def refresh(self) -> None:
        """Take in what was made, and leave out what was revoked.

        Raises:
            StorageError: The storage cannot be read.
        """
        made, revoked = self._store.names()
        known, good = self._keys, made - revoked - self._damaged
        if known and not made:
            # Nothing of ours takes a key's file away: the folder itself is gone, like a disk that is not there.
            raise StorageError("all keys are gone")
        fresh = {identity: known[identity] for identity in good if identity in known}
        unreadable: set[str] = set()
        for identity in sorted(good - fresh.keys()):
            try:
                fresh[identity] = self._store.read(identity)
            except KeyringError as error:
                # The others stay good. Its own words hold an id and a path.
                log.error("%s", error.message)
                self._damaged.add(identity)
            except StorageError as error:
                # It may be read later; what was revoked must not wait for that.
                unreadable.add(identity)
                if identity not in self._unreadable:
                    log.error("%s", error.message)
        self._keys, self._unreadable = fresh, unreadable
        # Requests add some meanwhile, on the loop: names are copied in one step, and nothing takes the place of what is added to.
        for identity in list(self._buckets):
            if identity not in fresh:
                self._buckets.pop(identity, None)

    def admit(self, held: str | None, scope: str, address: str) -> Key:
        """Return the key of somebody who may do what wants a scope.

        Args:
            held: What was sent as a key, if anything was.
            scope: What is wanted.
            address: Where it came from.

        Raises:
            Unauthorized: 401; no key, or none that is good.
            Forbidden: 403; a good one, but not for this.
            TooManyRequests: 429; more than the key may ask, or too many wrong ones from there.
        """
        now = self._clock()
        key = self._good(held)
        if key is None:
            self._count_wrong(address, now)
            raise Unauthorized("the request has no key" if held is None else "the key is not good: wrong, expired or revoked")
        if not key.allows(scope):
            raise Forbidden(f"the key {key.id} is not for this: it wants the scope {scope!r}", scope)
        if key.rate_per_s is not None:
            bucket = self._buckets.setdefault(key.id, Bucket(key.rate_per_s, now))
            if wait_s := bucket.take(now):
                raise TooManyRequests(f"the key {key.id} may ask {key.rate_per_s:g} times a second", wait_s)
        return key

    def _good(self, held: str | None) -> Key | None:
        parts = read_key(held) if held is not None else None
        key = self._keys.get(parts[0]) if parts else None
        if parts is None or key is None or not key.matches(parts[1]) or key.has_expired(datetime.now(UTC)):
            return None
        return key

    def _count_wrong(self, address: str, now: float) -> None:
        bucket = self._wrong.pop(address, None) or Bucket(_WRONG_PER_S, now)
        self._wrong[address] = bucket
        if len(self._wrong) > _MOST_ADDRESSES:
            self._wrong.popitem(last=False)
        if wait_s := bucket.take(now):
            raise TooManyRequests("too many requests without a good key", wait_s)

    def stop(self) -> None:
        """Let the reading thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def usable(store: KeyStore, scope: str) -> list[Key]:
    """Return the keys of a storage that may do what wants a scope now.

    Raises:
        KeyringError: One is damaged.
        StorageError: They cannot be read.
    """
    made, revoked = store.names()
    kept = (store.read(identity) for identity in sorted(made - revoked))
    return [key for key in kept if key.allows(scope) and not key.has_expired(datetime.now(UTC))]
