"""One Ray that we start ourselves: its folder, its token, its environment and its end.

Every process of a session inherits a mark (see `processes`), by which it is found again and ended. It does not know why a session was
started nor for how long.
"""

import fcntl
import importlib
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cluster.errors import ClusterError
from cluster.front import front_environment, write_command
from cluster.processes import END_GRACE_S, MARK_VARIABLE, belongs, end_processes, name_of

TOKEN_VARIABLE = "RAY_AUTH_TOKEN_PATH"  # noqa: S105  # the name of a variable
LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
PREFIX = "twohead-"
OWNER_FILE = "owner.lock"
SWEEP_GRACE_S = 0.5
PORTS_TRIED = 50
_POLL_S = 0.05
# So many looks in a row find nothing before a session is over.
_LAST_LOOKS = 3
# A process that ends just now may still write into a folder that is being removed.
_REMOVALS = 20
_CONTROL_SERVICE = "gcs_server"
# From Serve's own choice on. It is taken long after it is chosen, so that sessions that start together must not choose alike.
_FALLBACK_PORT, _FALLBACK_PORTS = 8500, 1_000
# Where Ray's dashboard and its autoscaler tell Prometheus their figures: two fixed ports, of which a second Ray of a machine gets neither,
# yet names both as its own and is asked for the first one's figures. Each session has its own, from these on and below those that the
# system gives to outgoing connections.
_FIGURES_PORTS = {"DASHBOARD_METRIC_PORT": 28_000, "AUTOSCALER_METRIC_PORT": 29_000}
_FIGURES_APART = 900

# Ray puts sockets some 68 characters below its folder, and a socket's path may have 103 on macOS, 107 on Linux.
_LONGEST_ROOT = 18
# mkdtemp makes an unguessable folder of mode 0700 in it.
_SHORT_ROOT = Path("/tmp")  # noqa: S108

SETTLED = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # "0" makes Ray bind every port, the metrics' too, to 127.0.0.1 instead of the address of this host. The name
    # speaks of Windows and macOS, where it is the default.
    LOOPBACK_VARIABLE: "0",
    # A trial or replica that asked for no GPU sees none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # A job waits for room as long as a day; Ray's own patience is a quarter of an hour.
    "RAY_JOB_START_TIMEOUT_SECONDS": "86400",
    # Serve's controller ends a proxy that is not ready after three looks of so many seconds and begins another. With its own 5 s a busy
    # machine's is ended while it starts; three times 20 s are the minute that Serve gives its first proxies.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20",
    # What is not shipped stands in cluster.exclude, and only there.
    "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES": "",
}
# A machine without power acknowledges nothing. Connections to it are closed after so long (gRPC makes this TCP_USER_TIMEOUT), not after the
# two minutes that Ray gives them. A replica that answers through a proxy there stands still, for everybody, until Ray's own way of handing
# an answer over is acknowledged or that machine is declared dead; handed over by gRPC, as in Serve's throughput mode, it does not.
BETWEEN_MACHINES = {"RAY_grpc_client_keepalive_timeout_ms": "5000", "RAY_SERVE_PROXY_USE_GRPC": "1"}


def client_environment(token_path: Path) -> dict[str, str]:
    """Return the variables that a process needs to talk to a session of this machine."""
    # A token in the variable itself, meant for another cluster, would come before the one in our file.
    return {**SETTLED, TOKEN_VARIABLE: str(token_path), "RAY_AUTH_TOKEN": ""}


@dataclass(frozen=True)
class Session:
    """The folder and the token of one Ray.

    Attributes:
        folder: Readable by its owner only; Ray makes its own folder inside world-writable.
        token_path: File with the token, mode 0600.
    """

    folder: Path
    token_path: Path

    @property
    def ray_folder(self) -> Path:
        """Ray's `--temp-dir`: its logs and sockets."""
        return self.folder / "ray"

    def environment(self) -> dict[str, str]:
        """Return the variables that every process of this session gets; chooses ports, so ask once for each Ray that is started."""
        front = front_environment(self.folder, free_port(_FALLBACK_PORT + secrets.randbelow(_FALLBACK_PORTS)))
        figures = {name: str(free_port(first + secrets.randbelow(_FIGURES_APART))) for name, first in _FIGURES_PORTS.items()}
        return {**client_environment(self.token_path), **front, **figures, MARK_VARIABLE: str(self.folder)}

    def processes(self) -> list[Any]:
        """Find the processes that carry this session's mark, as `psutil.Process`; never this one or its parents."""
        myself = psutil.Process()
        spared = {myself.pid, *(parent.pid for parent in myself.parents())}
        return [process for process in psutil.process_iter() if process.pid not in spared and belongs(process, self.folder)]

    def end(self, grace_s: float = END_GRACE_S) -> int:
        """End every process of this session and remove its folder.

        Args:
            grace_s: Time the processes get after SIGTERM before SIGKILL.

        Returns:
            How many processes had to be ended.

        Raises:
            ClusterError: A process is still there after SIGKILL.
        """
        # Ray's processes say goodbye to its control service, and wait long for an answer if that ended first.
        servants = [process for process in self.processes() if name_of(process) != _CONTROL_SERVICE]
        ended = end_processes(servants, grace_s)
        # What was forked meanwhile goes with the control service. One look can miss a process that is just becoming another program.
        looks = 0
        while looks < _LAST_LOOKS:
            rest = self.processes()
            ended += end_processes(rest, grace_s)
            looks = 0 if rest else looks + 1
            time.sleep(_POLL_S)  # nothing tells of a process that is not there yet
        _remove(self.folder)
        return ended


def new_session(token_path: Path | None = None) -> Session:
    """Make the folder and the token of a Ray that is to be started.

    Args:
        token_path: Where the token goes; without it, into the session's folder.

    Raises:
        ClusterError: There is no place to write, or the token would be readable by others.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_root()))
    except OSError as error:
        raise _unwritable(error) from None
    token_path = token_path or folder / "token"
    try:
        # This folder is ours, whoever made it.
        token_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        token_path.parent.chmod(0o700)
        write_token(token_path)
        write_command(folder)
    except (OSError, ClusterError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise (_unwritable(error) if isinstance(error, OSError) else error) from None
    return Session(folder, token_path)


def _root() -> Path:
    """Return where sessions go: the folder for temporary files, unless its path is too long."""
    root = Path(tempfile.gettempdir())
    return root if len(str(root)) <= _LONGEST_ROOT else _SHORT_ROOT


def _unwritable(error: OSError) -> ClusterError:
    return ClusterError(f"{error.filename}: {error.strerror}", "Ray needs a writable folder for sockets, logs and its token")


def free_port(first: int) -> int:
    """Return the first port from `first` on that nothing on 127.0.0.1 listens on.

    Raises:
        ClusterError: None of the next ports is free.
    """
    for port in range(first, min(first + PORTS_TRIED, 65536)):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise ClusterError(f"no port from {first} to {first + PORTS_TRIED - 1} is free", "set cluster.dashboard_port to another one")


def write_token(path: Path) -> None:
    """Write a new random token to a file that only its owner can read; a folder that is there already stays as it is.

    Raises:
        ClusterError: The file system keeps no permissions.
        OSError: The folder cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    mode = path.stat().st_mode & 0o777
    if mode != 0o600:
        path.unlink()
        raise ClusterError(f"{path}: has mode {mode:04o}, but must have 0600", "keep cluster.storage on a file system with permissions")


@contextmanager
def private_session() -> Iterator[Session]:
    """Give a session for the length of the block; nothing of it is left afterwards."""
    sweep()
    session = new_session()
    draft = session.folder / f"{OWNER_FILE}.draft"
    with draft.open("w") as owner:
        # Whoever holds this lock lives. It is taken before the file has its name, so `sweep` never sees it free.
        fcntl.flock(owner, fcntl.LOCK_EX)
        draft.replace(session.folder / OWNER_FILE)
        try:
            yield session
        finally:
            session.end()


def sweep() -> None:
    """Remove private sessions whose owner was killed before it could; what they do is lost already."""
    for lock in [*_root().glob(f"{PREFIX}*/{OWNER_FILE}")]:
        try:
            with lock.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                Session(lock.parent, lock.parent / "token").end(SWEEP_GRACE_S)
        except (OSError, ClusterError):
            continue  # held by a living owner, somebody else's, swept by another process just now, or not to be ended


@contextmanager
def applied(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the length of the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def applied_to_ray(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the length of the block, and make Ray in this process heed them; afterwards, those of before."""
    try:
        with applied(variables):
            _heed_environment()
            yield
    finally:
        _heed_environment()


def _heed_environment() -> None:
    # Ray reads these when it is imported, which may have been long ago, and keeps the first token it sees.
    constants: Any = importlib.import_module("ray._private.ray_constants")
    raylet: Any = importlib.import_module("ray._raylet")
    constants.ENABLE_RAY_CLUSTER = os.environ.get(LOOPBACK_VARIABLE) != "0"
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _remove(folder: Path) -> None:
    """Remove a folder, again where something came into it meanwhile; what cannot be removed stays."""
    for _ in range(_REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_POLL_S)  # nothing tells that the last one has written
