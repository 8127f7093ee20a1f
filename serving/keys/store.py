"""Keys in the storage: a file for each, which never changes, and one beside it once it is revoked.

    keys/ID.json       what is kept of a key
    keys/ID.revoked    since when it is not one any more

So nobody can undo a revocation by writing at the same time, and whoever follows has only to list names.
"""

from datetime import UTC, datetime

from pydantic import ValidationError

from cluster.errors import ConflictError
from cluster.storage import Storage
from serving.errors import KeyringError
from serving.keys.key import Key

_FOLDER = "keys"
_KEY, _REVOKED = ".json", ".revoked"


class KeyStore:
    """The keys of a storage.

    Args:
        storage: The section `cluster`'s.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def add(self, key: Key) -> None:
        """Keep a key.

        Raises:
            StorageError: It cannot be written.
        """
        self._storage.create_own(f"{_FOLDER}/{key.id}{_KEY}", key.model_dump_json(indent=1).encode())

    def read(self, identity: str) -> Key:
        """Return what is kept of a key.

        Raises:
            KeyringError: There is none, or its file is damaged.
            StorageError: It cannot be read.
        """
        path = f"{_FOLDER}/{identity}{_KEY}"
        try:
            key = Key.model_validate_json(self._storage.read_bytes(path))
        except ValidationError as error:
            raise KeyringError(f"{self._storage.uri}/{path}: is damaged ({error.error_count()} findings)", _hint(identity)) from None
        if key.id != identity:
            raise KeyringError(f"{self._storage.uri}/{path}: is the file of key {key.id}", _hint(identity))
        return key

    def names(self) -> tuple[set[str], set[str]]:
        """Return the ids of all keys that were made, and of those that were revoked."""
        names = self._storage.names(_FOLDER)
        made, revoked = ({name.removesuffix(end) for name in names if name.endswith(end)} for end in (_KEY, _REVOKED))
        return made, revoked

    def revoke(self, identity: str) -> bool:
        """End a key for good; returns false where it was revoked before.

        Raises:
            KeyringError: There is no such key.
            StorageError: It cannot be written.
        """
        made, _ = self.names()
        if identity not in made:
            raise KeyringError(f"there is no key {identity!r}", "python -m serving keys list")
        try:
            self._storage.create_own(f"{_FOLDER}/{identity}{_REVOKED}", datetime.now(UTC).isoformat().encode())
        except ConflictError:
            return False
        return True


def _hint(identity: str) -> str:
    return f"python -m serving keys revoke {identity}, and make another one"
