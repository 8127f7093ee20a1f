"""Published versions and the names that point to them, under any storage.

    registry/versions/000007/   one checkpoint; visible once its manifest is there, never changed
    registry/names/production/000012.json   the twelfth time the name moved, and to which version

A version is immutable; a name is a log of moves. To move a name is to create its next file, which only one writer can do: that is
the compare-and-set, with nothing but exclusive creation asked of the storage. Rollback is promoting the older version.
"""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from cluster.console import warn
from cluster.errors import ConflictError, StorageError
from cluster.people import user_name
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from training.checkpoint import copy_checkpoint, verify_checkpoint
from training.errors import RegistryError
from training.manifest import MANIFEST_FILE, Manifest, parse_manifest
from training.signature import SIGNATURE_FILE, require_signature, sign

_VERSIONS = "registry/versions"
_NAMES = "registry/names"
_CLAIM = ".claim"
_NUMBER = re.compile(r"(?=[0-9]{6})0*([1-9][0-9]*)")
_MOVE = re.compile(rf"{_NUMBER.pattern}\.json")
_NAME = re.compile(r"^[a-z][a-z0-9-]{0,62}$")
_MOST_ATTEMPTS = 100
# Nobody publishes for so long.
_ABANDONED = timedelta(days=1)
_LOOKED_AT = 100


@dataclass(frozen=True)
class Move:
    """One move of a name.

    Attributes:
        sequence: Number of the move, from 1.
        version: Where the name points since.
        moved: When, ISO 8601 in UTC.
        moved_by: The account that did it.
        written_by: Like no other move's.
    """

    sequence: int
    version: int
    moved: str
    moved_by: str
    written_by: str = ""


class Registry:
    """Versions and names in one storage.

    Args:
        storage: The root; versions live below `registry/`.
        trusted_keys: Public keys; where there are any, only what one of them signed is brought to a machine or promoted.
    """

    def __init__(self, storage: Storage, trusted_keys: Sequence[str] = ()) -> None:
        self.storage = storage
        self._trusted_keys = tuple(trusted_keys)

    @classmethod
    def of(cls, cluster: ClusterSettings) -> Self:
        """Return the registry of the section `cluster`."""
        return cls(Storage(cluster.storage), cluster.trusted_keys)

    def publish(self, checkpoint: Path, signing_key: Path | None = None) -> int:
        """Verify a checkpoint and store it as the next version.

        Args:
            checkpoint: Its folder.
            signing_key: Sign it with this private key; see `training.signature`.

        Returns:
            The new version.

        Raises:
            CheckpointError: The checkpoint is not whole, or the key is none.
            StorageError: It cannot be written, or something else has arrived in the storage.
            RegistryError: Too many others publish at the same time.
        """
        if signing_key is not None:
            with tempfile.TemporaryDirectory() as scratch:
                # What it may have been signed with before stays where it was.
                signed = Path(scratch) / "checkpoint"
                copy_checkpoint(checkpoint, signed)
                (signed / SIGNATURE_FILE).write_bytes(sign((signed / MANIFEST_FILE).read_bytes(), signing_key))
                return self.publish(signed)
        digests = {name: facts.sha256 for name, facts in verify_checkpoint(checkpoint).files.items()}
        for _ in range(_MOST_ATTEMPTS):
            version = max(self._claimed(), default=0) + 1
            try:
                self._publish_as(version, checkpoint, digests)
            except ConflictError:
                continue
            self._remove_abandoned()
            return version
        raise RegistryError("too many others publish at the same time", "try again")

    def _publish_as(self, version: int, checkpoint: Path, digests: Mapping[str, str]) -> None:
        # The claim is what two publishers race for; files of two checkpoints never mix in one folder.
        path = f"{self.path(version)}{_CLAIM}"
        claimed = self.storage.claim(path, {"version": version, "claimed": datetime.now(UTC).isoformat(timespec="seconds")})
        if self.storage.names(self.path(version)):
            # In a store that minds no condition they are those of one whose claim this one has just overwritten.
            raise ConflictError(f"{self.storage.uri}/{path}: was taken by another publisher")

        def require_claim() -> None:
            # In a store that minds no condition another publisher's may have come after it.
            if not self.storage.holds(path, claimed):
                raise ConflictError(f"{self.storage.uri}/{path}: was taken by another publisher")

        self.storage.upload(checkpoint, self.path(version), last=MANIFEST_FILE, digests=digests, before_each=require_claim)

    def publish_from(self, path: str, signing_key: Path | None = None) -> int:
        """Publish a checkpoint that lies in the same storage, like a search's best one; see `publish`.

        Raises:
            RegistryError: There is none at that path.
        """
        if not self.storage.exists(f"{path}/{MANIFEST_FILE}"):
            raise RegistryError(
                f"{self.storage.uri}/{path}: no checkpoint there", "has the search ended? python -m training tune --resume NAME"
            )
        with tempfile.TemporaryDirectory() as folder:
            return self.publish(self.storage.download(path, Path(folder) / "checkpoint"), signing_key)

    def versions(self) -> list[int]:
        """List the published versions, oldest first; one that is still being written is not among them."""
        return [number for number in self._claimed() if self.storage.exists(f"{_VERSIONS}/{number:06d}/{MANIFEST_FILE}")]

    def manifest(self, version: int) -> Manifest:
        """Read a version's manifest.

        Raises:
            RegistryError: There is no such version.
        """
        self._require(version)
        path = f"{_VERSIONS}/{version:06d}/{MANIFEST_FILE}"
        return parse_manifest(self.storage.read_bytes(path), f"version {version}")

    def path(self, version: int) -> str:
        """Return the path of a version's folder in its storage."""
        return f"{_VERSIONS}/{version:06d}"

    def place(self, version: int) -> str:
        """Return the path or URI of a version's folder."""
        return f"{self.storage.uri}/{self.path(version)}"

    def fetch(self, version: int, target: Path) -> Path:
        """Bring a version to this machine and verify it.

        Args:
            version: Which one.
            target: Where to put it; must not exist.

        Returns:
            `target`. Nobody else changes it between its verification and its use.

        Raises:
            RegistryError: There is no such version.
            CheckpointError: It was changed since it was published, or nobody who is trusted signed it.
        """
        self._require(version)
        folder = self.storage.download(f"{_VERSIONS}/{version:06d}", target)
        if folder == target:
            verify_checkpoint(folder)
        else:
            copy_checkpoint(folder, target)
        signature = target / SIGNATURE_FILE
        signed = signature.read_bytes() if signature.exists() else None
        require_signature((target / MANIFEST_FILE).read_bytes(), signed, self._trusted_keys, f"version {version}")
        return target

    def promote(self, version: int, name: str = "production", *, expected: int | None = None) -> Move:
        """Point a name to a version, atomically.

        Args:
            version: A published version.
            name: Made if it is new.
            expected: The version the name must point to now (0: to none); null does not ask.

        Raises:
            RegistryError: No such version, a malformed name, or the name moved meanwhile.
            CheckpointError: Nobody who is trusted signed it.
        """
        self._require(version)
        self._require_signature(version)
        _require_name(name)
        current = self.history(name)
        pointed = current[-1].version if current else 0
        if expected is not None and pointed != expected:
            raise RegistryError(f"{name!r} points to version {pointed}, but {expected} was expected", "look at it again before you promote")
        # Not their count: of an old name the first moves may have been tidied away, and the last one is what everybody reads.
        following = int(Path(self._moves(name)[-1]).stem) + 1 if current else 1
        move = Move(following, version, datetime.now(UTC).isoformat(timespec="seconds"), user_name())
        try:
            written = self.storage.claim(f"{_NAMES}/{name}/{move.sequence:06d}.json", asdict(move))
        except ConflictError:
            raise RegistryError(
                f"{name!r} was promoted by somebody else at the same moment", "look at it again before you promote"
            ) from None
        return _move(json.loads(written))

    def history(self, name: str) -> list[Move]:
        """List a name's moves, oldest first; empty for a name that was never promoted."""
        _require_name(name)
        return [_move(json.loads(self.storage.read_bytes(f"{_NAMES}/{name}/{file}"))) for file in self._moves(name)]

    def names(self) -> dict[str, int]:
        """Map each name to the version it points to."""
        histories = {name: self.history(name) for name in self._names()}
        return {name: moves[-1].version for name, moves in histories.items() if moves}

    def resolve(self, reference: str | int) -> int:
        """Turn a name, or the number of a version, into a version.

        Raises:
            RegistryError: There is no such name or version.
        """
        if isinstance(reference, int) or reference.isdecimal():
            self._require(int(reference))
            return int(reference)
        _require_name(reference)
        files = self._moves(reference)
        if not files:
            known = ", ".join(self._names()) or "none yet"
            raise RegistryError(
                f"no version is promoted to {reference!r}; names: {known}", f"python -m training promote VERSION --name {reference}"
            )
        return int(json.loads(self.storage.read_bytes(f"{_NAMES}/{reference}/{files[-1]}"))["version"])

    def _remove_abandoned(self) -> None:
        """Take away what a publisher wrote that was killed; its number stays taken. Whatever stays is told, and no failure."""
        try:
            # Publishers before this one looked at the older ones.
            abandoned = [number for number in self._claimed()[-_LOOKED_AT:] if self._is_abandoned(number)]
        except StorageError as error:
            warn(f"what killed publishers may have left was not looked for: {error.message}")
            return
        for number in abandoned:
            try:
                self._remove(number)
            except StorageError as error:
                warn(f"what a killed publisher left is not taken away, which the next one tries again: {error.message}")

    def _remove(self, number: int) -> None:
        try:
            self.storage.child(self.path(number)).remove()
        except StorageError:
            # Another publisher may have been faster.
            if self.storage.exists(self.path(number)):
                raise

    def _is_abandoned(self, number: int) -> bool:
        folder, claim = self.path(number), f"{self.path(number)}{_CLAIM}"
        if self.storage.exists(f"{folder}/{MANIFEST_FILE}") or not (self.storage.exists(folder) and self.storage.exists(claim)):
            return False
        claimed = _claimed_at(self.storage.read_bytes(claim))
        return claimed is not None and datetime.now(UTC) - claimed > _ABANDONED

    def _claimed(self) -> list[int]:
        """List the numbers that are taken, in their order; who looks into the folder may leave files of other names there."""
        names = self.storage.names(_VERSIONS)
        return sorted({int(found[1]) for name in names if (found := _NUMBER.fullmatch(name.removesuffix(_CLAIM)))})

    def _moves(self, name: str) -> list[str]:
        return [file for file in self.storage.names(f"{_NAMES}/{name}") if _MOVE.fullmatch(file)]

    def _names(self) -> list[str]:
        return [name for name in self.storage.names(_NAMES) if _NAME.match(name)]

    def _require_signature(self, version: int) -> None:
        if self._trusted_keys:
            content, path = self.storage.read_bytes(f"{self.path(version)}/{MANIFEST_FILE}"), f"{self.path(version)}/{SIGNATURE_FILE}"
            signature = self.storage.read_bytes(path) if self.storage.exists(path) else None
            require_signature(content, signature, self._trusted_keys, f"version {version}")

    def _require(self, version: int) -> None:
        if not self.storage.exists(f"{_VERSIONS}/{version:06d}/{MANIFEST_FILE}"):
            known = ", ".join(str(number) for number in self.versions()) or "none yet"
            raise RegistryError(f"version {version} is not published; versions: {known}", "python -m training versions")


def _require_name(name: str) -> None:
    if not _NAME.match(name):
        raise RegistryError(f"name {name!r} must be lower-case letters, digits and dashes, starting with a letter")


def _move(facts: Mapping[str, Any]) -> Move:
    """Return a move without what later releases may say of one beside."""
    return Move(**{one.name: facts[one.name] for one in fields(Move) if one.name in facts})


def _claimed_at(claim: bytes) -> datetime | None:
    try:
        # One without a zone is taken for this machine's.
        return datetime.fromisoformat(json.loads(claim)["claimed"]).astimezone(UTC)
    except (ValueError, KeyError, TypeError, OverflowError):
        # Cut short by what ended its publisher.
        return None
