"""What travels with work that is sent to a cluster: the working folder, and a few variables.

It counts before it ships, because Ray refuses a folder only after it has packed and sent it. Which files travel is
decided by Ray's own walk: `.gitignore`, `.rayignore` and `cluster.exclude`. It does not know where the cluster is.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.settings import JOB_VARIABLE, STORAGE_VARIABLE, ClusterSettings
from cluster.storage import Storage

MOST_BYTES = 100 * 1024**2
BIGGEST_NAMED = 5
# How long a stopped job may finish what it writes; Ray's own patience is 3 s.
STOP_PATIENCE_S = 30


@dataclass(frozen=True)
class Shipment:
    """The files of a working folder that would travel.

    Attributes:
        folder: The working folder.
        sizes: Size in bytes of each file, by its path relative to the folder.
    """

    folder: Path
    sizes: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """Size of all files before they are packed."""
        return sum(self.sizes.values())


def survey(settings: ClusterSettings, folder: Path) -> Shipment:
    """List what of a folder would be shipped, and refuse too much.

    Raises:
        ClusterError: There is no such folder, or it holds over 100 MiB.
    """
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    folder = folder.resolve()
    if not folder.is_dir():
        raise ClusterError(f"{folder}: no such folder", "name the folder to ship with --working-dir")
    sizes: dict[str, int] = {}

    def count(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size

    _dir_travel(folder, [_get_excludes(folder, list(settings.exclude))], count, include_gitignore=True)
    shipment = Shipment(folder, sizes)
    if shipment.total_bytes > MOST_BYTES:
        biggest = sorted(sizes.items(), key=lambda item: -item[1])[:BIGGEST_NAMED]
        listed = ", ".join(f"{name} ({shown_bytes(size)})" for name, size in biggest)
        raise ClusterError(
            f"{folder}: holds {shown_bytes(shipment.total_bytes)} to ship, but at most {shown_bytes(MOST_BYTES)} may travel; "
            f"the biggest files are {listed}",
            "add them to .gitignore or to cluster.exclude, and keep data where every machine can read it",
        )
    return shipment


def runtime_env(settings: ClusterSettings, shipment: Shipment, job_id: str = "") -> dict[str, Any]:
    """Describe the environment of work on a cluster in Ray's own terms.

    Args:
        settings: The section `cluster`.
        shipment: The folder to ship.
        job_id: Of the job, which the work can then tell.
    """
    return {
        "working_dir": str(shipment.folder),
        "excludes": list(settings.exclude),
        "env_vars": {
            STORAGE_VARIABLE: Storage(settings.storage).uri,
            JOB_VARIABLE: job_id,
            "PYTHONUNBUFFERED": "1",
            # What asks for no GPU sees none, also on a Ray that others started: else all of it would go to the first one.
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_PATIENCE_S),
        },
    }


def shown_bytes(size: float) -> str:
    """Write a number of bytes for people, like `1.5 MiB`."""
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} GiB"
