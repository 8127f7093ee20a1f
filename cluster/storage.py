"""Files under any fsspec URI: whole writes, exclusive creation, compare-and-set, folders.

A local path and `s3://bucket/prefix` behave alike. Readers never see half a file: local files are written
beside their place and renamed; object stores make a put visible only when it is complete. It does not know what the files mean.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cluster.errors import ConflictError, StorageError
from cluster.whole_files import DRAFT, write_whole

_REMOTE_HINT = "is the store reached from here, and may you use it? fsspec finds credentials in its own files and in the environment"
# An address may hold who asks, with a password, and after its path a signature.
_ADDRESS = re.compile(r"://(?:[^/@\s]*@)?([^\s?\"']*)(?:\?[^\s\"']*)?")


class Storage:
    """One folder, on this machine or behind a URI; paths are relative to it, with `/`.

    Args:
        uri: A local path or an fsspec URI. A local folder is made at the first write.
    """

    def __init__(self, uri: str) -> None:
        import fsspec

        is_remote = "://" in uri and not uri.startswith("file://")
        self.uri = uri.rstrip("/") if is_remote else str(Path(uri.removeprefix("file://")).expanduser().resolve())
        self.local_root = None if is_remote else Path(self.uri)
        self._filesystem: Any
        try:
            self._filesystem, self._root = fsspec.core.url_to_fs(self.uri)
        except (ImportError, ValueError) as error:
            raise StorageError(f"storage {uri!r}: {error}", "use a local folder or an installed fsspec protocol") from None

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def child(self, path: str) -> "Storage":
        """Return the folder `path` inside this one as a storage of its own."""
        return Storage(f"{self.uri}/{_inside(path)}")

    def read_bytes(self, path: str) -> bytes:
        """Read a whole file.

        Raises:
            StorageError: There is no such file, or it cannot be read.
        """
        full = self._full(path)
        with self._told(path):
            try:
                content: bytes = self._filesystem.cat_file(full)
            except FileNotFoundError:
                raise StorageError(f"{self.uri}/{path}: no such file") from None
        return content

    def exists(self, path: str) -> bool:
        """Tell whether a file or folder is there now.

        Raises:
            StorageError: The store is not reached, or does not say.
        """
        full = self._full(path)
        with self._told(path):
            self._filesystem.invalidate_cache()
            return bool(self._filesystem.exists(full))

    def names(self, path: str = "") -> list[str]:
        """List the names directly under a folder, sorted; a missing folder is empty.

        Raises:
            StorageError: The store is not reached, or the folder cannot be read.
        """
        full = self._full(path)
        with self._told(path):
            self._filesystem.invalidate_cache()
            try:
                entries = self._filesystem.ls(full, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(name for entry in entries if (name := str(entry).rstrip("/").rsplit("/", 1)[-1]) and not name.startswith(DRAFT))

    def write_bytes(self, path: str, content: bytes) -> None:
        """Write a whole file; a reader sees the old content or the new one.

        Raises:
            StorageError: The disk is full, the folder is read-only, …
        """
        full = self._full(path)
        with self._told(path):
            if self.local_root is None:
                self._filesystem.pipe_file(full, content)
            else:
                write_whole(self.local_root / _inside(path), content, exclusive=False)

    def create(self, path: str, content: bytes) -> None:
        """Write a file that must not exist yet; of several at once exactly one wins.

        Where a store minds no condition (some that speak S3 do not), whoever was overwritten is told so as long as it still writes.

        Raises:
            ConflictError: The file exists, or another one's was written at the same time.
            StorageError: It cannot be written.
        """
        full = self._full(path)
        with self._told(path):
            try:
                if self.local_root is None:
                    self._create_remote(full, content)
                else:
                    write_whole(self.local_root / _inside(path), content, exclusive=True)
            except FileExistsError:
                raise ConflictError(f"{self.uri}/{path}: exists already") from None

    def claim(self, path: str, facts: Mapping[str, Any], indent: int | None = None) -> bytes:
        """Create a JSON file that tells in `written_by` who wrote it, like no other; see `create`.

        Args:
            path: Must be free.
            facts: What else it holds.
            indent: Of its lines; without one it is a single line.

        Returns:
            Its content; as long as the file holds that, the name is the caller's.

        Raises:
            ConflictError: Somebody else has the name.
            StorageError: It cannot be written.
        """
        content = json.dumps({**facts, "written_by": uuid.uuid4().hex}, indent=indent).encode()
        self.create_own(path, content)
        return content

    def _sha256_of(self, path: str) -> str:
        if self.local_root is None:
            return sha256(self.read_bytes(path))
        with self._told(path):
            return sha256_file(self.local_root / _inside(path))

    def holds(self, path: str, content: bytes) -> bool:
        """Tell whether a file is there and has this content; raises as `read_bytes`."""
        return self.exists(path) and self.read_bytes(path) == content

    def create_own(self, path: str, content: bytes) -> None:
        """Create a file that nobody else can have written word for word; see `create`."""
        try:
            self.create(path, content)
        except StorageError:
            # Where an answer is lost on its way, a store's package asks again: then it is our own file that exists already.
            if self.local_root is not None or not self.holds(path, content):
                raise

    def _create_remote(self, full: str, content: bytes) -> None:
        self._filesystem.invalidate_cache()
        # A store that minds no condition would overwrite it.
        if self._filesystem.exists(full):
            raise FileExistsError(full)
        try:
            # fsspec's "create" mode is a conditional put where the store has one (S3, GCS).
            self._filesystem.pipe_file(full, content, mode="create")
        except OSError as error:
            # Stores have different words for it.
            if self._filesystem.exists(full):
                raise FileExistsError(full) from error
            raise
        if self._filesystem.cat_file(full) != content:
            raise FileExistsError(full)

    def remove(self) -> None:
        """Take the whole folder away.

        Raises:
            StorageError: It cannot be removed.
        """
        with self._told(""):
            self._filesystem.rm(self._root, recursive=True)

    def remove_drafts(self) -> None:
        """Take away what interrupted writes left in this folder; nobody else may write there meanwhile."""
        for draft in self.local_root.glob(f"{DRAFT}*") if self.local_root else ():
            draft.unlink(missing_ok=True)

    def upload(
        self,
        source: Path,
        path: str,
        *,
        last: str,
        digests: Mapping[str, str] | None = None,
        before_each: Callable[[], object] = lambda: None,
    ) -> None:
        """Copy a local folder's files here; the file named `last` arrives after all others have been read again and were whole.

        Whoever reads treats the folder as absent until `last` is there, so a crash leaves nothing half-visible.

        Args:
            source: The local folder.
            path: Where they go.
            last: Name of the file that makes the folder one.
            digests: File → SHA-256 that it must have when it has arrived; of others, what it had when it was read.
            before_each: Called before each file; what it raises ends the copying.

        Raises:
            ConflictError: `last` is there already.
            StorageError: It cannot be written, or something else has arrived.
        """
        if self.exists(f"{path}/{last}"):
            raise ConflictError(f"{self.uri}/{path}/{last}: exists already")
        # First: where the source is replaced from here on, the digests of the other files tell.
        closing = (source / last).read_bytes()
        expected = dict(digests or {})
        for relative in (name for name in _files_in(source) if name != last):
            before_each()
            content = (source / relative).read_bytes()
            self.write_bytes(f"{path}/{relative}", content)
            if relative not in expected:
                expected[relative] = sha256(content)
        for relative, digest in expected.items():
            if (found := self._sha256_of(f"{path}/{relative}")) != digest:
                raise StorageError(f"{self.uri}/{path}/{relative}: has SHA-256 {found}, but must have {digest}", "try again")
        before_each()
        self.create_own(f"{path}/{last}", closing)

    def replace(self, source: Path, path: str, *, last: str) -> None:
        """Put a copy of a local folder in the place of a folder here, if there is one; nobody else may do so meanwhile.

        The copy arrives beside it, as `PATH.new`, and is whole before anything happens to the old one. A reader finds the old folder, the
        new one or, for a moment, none with the file `last`; never some files of each. On a disk the moment lies between two renames; what a
        kill in it leaves as `PATH.old` is put back by the next replacement.

        Raises:
            StorageError: It cannot be written, or something else has arrived.
        """
        fresh = f"{path}.new"
        self._put_back(path)
        self._take_away(fresh)
        self.upload(source, fresh, last=last)
        if self.local_root is not None:
            self._rename_over(self.local_root, fresh, path)
            return
        with self._told(path):
            if self.exists(f"{path}/{last}"):
                self._filesystem.rm_file(self._full(f"{path}/{last}"))
        # Files that the new one lacks may not stay.
        self._take_away(path)
        # Sent once more: not every store copies by itself, and what it copies would have to be read again as well.
        self.upload(source, path, last=last)
        self._take_away(fresh)

    def _put_back(self, path: str) -> None:
        """Undo half a replacement on a disk, and take away what a whole one left."""
        if self.local_root is None or not self.exists(old := f"{path}.old"):
            return
        if self.exists(path):
            self._take_away(old)
        else:
            with self._told(path):
                (self.local_root / old).rename(self.local_root / path)

    def _rename_over(self, root: Path, fresh: str, path: str) -> None:
        with self._told(path):
            if self.exists(path):
                (root / path).rename(root / f"{path}.old")
            (root / fresh).rename(root / path)
        # A file that somebody reads keeps its folder on NFS, and the new one from nothing: the next replacement tries again.
        with suppress(StorageError):
            self._take_away(f"{path}.old")

    def _take_away(self, path: str) -> None:
        if self.exists(path):
            self.child(path).remove()

    def download(self, path: str, target: Path) -> Path:
        """Copy a folder to a local one, or return its own local path without a copy.

        Args:
            path: Folder in this storage.
            target: Where to put it when the storage is remote; must not exist.

        Raises:
            StorageError: There is no such folder, or it cannot be copied.
        """
        if not self.exists(path):
            raise StorageError(f"{self.uri}/{path}: no such folder")
        if self.local_root is not None:
            return self.local_root / _inside(path)
        with self._told(path):
            self._filesystem.get(self._full(path), str(target), recursive=True)
        return target

    @contextmanager
    def _told(self, path: str) -> Iterator[None]:
        """Turn what the file system raises into our own error, which repeats no secret.

        Raises:
            StorageError: With where, and why.
        """
        where = f"{self.uri}/{path}" if path else self.uri
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            hint = _REMOTE_HINT if self.local_root is None else ""
            raise StorageError(f"{where}: {_first_line(error.strerror or error)}", hint) from error
        except Exception as error:  # each store's package has errors of its own, which have nothing else in common
            if self.local_root is not None:
                raise
            raise StorageError(f"{where}: {type(error).__name__}: {_first_line(error)}", _REMOTE_HINT) from error

    def _full(self, path: str) -> str:
        return f"{self._root}/{_inside(path)}".rstrip("/")


def _inside(path: str) -> str:
    """Refuse a path that would leave its root."""
    parts = [part for part in path.split("/") if part]
    if any(part in (".", "..") or "\\" in part or "\0" in part for part in parts):
        raise StorageError(f"path {path!r}: leaves its folder", "names may not contain '..', a backslash or NUL")
    return "/".join(parts)


def _files_in(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _first_line(error: Exception | str) -> str:
    """Return what an error says first, without the secrets of an address."""
    return _ADDRESS.sub(r"://\1", next(iter(str(error).strip().splitlines()), "it does not say why"))


def sha256(content: bytes) -> str:
    """Return the SHA-256 of some bytes in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
