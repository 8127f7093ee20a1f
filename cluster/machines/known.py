"""What `cluster up` knows about the machines that Ray's launcher started for it: where they answer, and the token they want.

Both are kept in the home of whoever called `up`, not in the storage, which other machines read. It does not know how machines are started.
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.errors import SettingsError
from cluster.facts import FACTS_FILE
from cluster.settings import ClusterSettings
from cluster.storage import Storage

TOKEN_FILE = "token"  # noqa: S105  # the name of a file
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
TOKEN_PLACE = "~/.ray/auth_token"  # noqa: S105  # where Ray looks for it on every machine


@dataclass(frozen=True)
class Known:
    """Machines that were started.

    Attributes:
        dashboard_url: Where the REST interfaces are.
        started_at_s: Unix time.
    """

    dashboard_url: str
    started_at_s: float


def known_folder(settings: ClusterSettings) -> Path | None:
    """Return the folder, mode 0700, of the cluster that `cluster.launcher` describes; None without such a setting.

    Raises:
        SettingsError: The cluster's name would lead elsewhere.
    """
    if settings.launcher is None:
        return None
    # `down` removes this folder, and Ray's schema, which lets any text pass, has not seen the name yet.
    name = str(settings.launcher.get("cluster_name", "default"))
    if not _NAME.fullmatch(name):
        found = "must begin with a letter or digit, and have only letters, digits, '_', '.' and '-'"
        raise SettingsError(f"cluster.launcher.cluster_name is {name!r}, but {found}", "like twohead-trials")
    return Path.home() / ".twohead" / "clusters" / name


def token_file(settings: ClusterSettings) -> Path | None:
    """Return the file with the token of the machines: the one that the launcher brings to them, or else our own.

    Raises:
        SettingsError: As `known_folder`; or what the launcher brings is no mapping.
    """
    folder = known_folder(settings)
    if folder is None or settings.launcher is None:
        return None
    mounts = settings.launcher.get("file_mounts") or {}
    if not isinstance(mounts, dict):
        raise SettingsError(f"cluster.launcher.file_mounts is a {type(mounts).__name__}, but must be a mapping", "place there: file here")
    brought = mounts.get(TOKEN_PLACE)
    return expanded(str(brought)) if brought else folder / TOKEN_FILE


def expanded(path: str) -> Path:
    """Return a path with the home that `~` stands for; as it is, where nobody has one of that name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def read_known(settings: ClusterSettings) -> Known | None:
    """Read what `up` wrote down; None when there is nothing, or nothing legible.

    Raises:
        SettingsError: As `known_folder`.
    """
    folder = known_folder(settings)
    try:
        return Known(**json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))) if folder else None
    except (OSError, ValueError, TypeError):
        return None


def write_known(folder: Path, known: Known) -> None:
    """Write it down; a reader sees all of it or none."""
    Storage(str(folder)).write_bytes(FACTS_FILE, json.dumps(asdict(known)).encode())


def forget(folder: Path) -> None:
    """Take the folder away, and our token with it."""
    shutil.rmtree(folder, ignore_errors=True)
