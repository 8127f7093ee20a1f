"""What `cluster up` writes down about the cluster it started, and where.

Facts are believed only while the processes they name live and carry the session's mark. It does not know how a cluster
is started or ended.
"""

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from cluster.errors import ClusterError
from cluster.processes import is_marked
from cluster.session import PREFIX, Session
from cluster.settings import ClusterSettings
from cluster.storage import Storage

FACTS_FILE, LOCK_FILE = "facts.json", "lock"


@dataclass(frozen=True)
class Facts:
    """What `cluster up` wrote down about the cluster it started.

    Attributes:
        address: Host and port of Ray's own control service.
        dashboard_url: Where the REST interfaces are.
        session_folder: See `Session.folder`.
        token_path: See `Session.token_path`.
        pids: Ray's own processes, which live as long as the cluster; none while it starts.
        host: Name of the machine.
        started_at_s: Unix time.
    """

    address: str
    dashboard_url: str
    session_folder: str
    token_path: str
    pids: tuple[int, ...]
    host: str
    started_at_s: float

    @property
    def session(self) -> Session:
        """The session these facts are about."""
        return Session(Path(self.session_folder), Path(self.token_path))

    def is_alive(self) -> bool:
        """Tell whether all of its processes live on this machine and are ours, not strangers with the same number."""
        folder = Path(self.session_folder)
        return self.host == socket.gethostname() and bool(self.pids) and all(is_marked(pid, folder) for pid in self.pids)


def facts_folder(settings: ClusterSettings) -> Path:
    """Return the folder, mode 0700, for the facts and the token of the cluster that `up` starts."""
    storage = Storage(settings.storage)
    if storage.local_root is not None:
        return storage.local_root / "cluster"
    name = storage.uri.partition("://")[2].replace("/", "-")
    # Of two storages whose names differ in a slash alone, each has its own.
    return Path.home() / ".twohead" / f"{name}-{hashlib.sha256(storage.uri.encode()).hexdigest()[:8]}" / "cluster"


@contextmanager
def alone(folder: Path, hint: str) -> Iterator[None]:
    """Let one process at a time start or end the cluster of a folder, mode 0700, which is made.

    Raises:
        ClusterError: The folder cannot be written; with this hint.
    """
    try:
        lock = _locked(folder)
    except OSError as error:
        raise ClusterError(f"{error.filename or folder}: {error.strerror}", hint) from None
    with lock:
        yield


def _locked(folder: Path) -> TextIO:
    while True:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            lock = (folder / LOCK_FILE).open("w")
        except FileNotFoundError:
            # Taken away in between.
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Whoever had it until now may have taken the folder away, and the file with it: then another process makes itself a new one.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), (folder / LOCK_FILE).stat()):
                return lock
        lock.close()


def read_facts(settings: ClusterSettings) -> Facts | None:
    """Read what `up` wrote down; None when there is nothing, or nothing legible."""
    try:
        found = json.loads((facts_folder(settings) / FACTS_FILE).read_text(encoding="utf-8"))
        facts = Facts(**{**found, "pids": tuple(found["pids"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    # The folder will be removed one day: believe only the name of one that we made.
    return facts if Path(facts.session_folder).name.startswith(PREFIX) else None


def write_facts(settings: ClusterSettings, facts: Facts) -> None:
    """Write the facts down; a reader sees all of them or none."""
    content = json.dumps(asdict(facts), indent=2)
    Storage(str(facts_folder(settings))).write_bytes(FACTS_FILE, content.encode())
