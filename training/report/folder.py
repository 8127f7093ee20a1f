"""The folder that a report is written into: whether it can be is known before the figures are computed, which takes long."""

import os
from collections.abc import Mapping
from pathlib import Path

from cluster.errors import StorageError
from cluster.storage import Storage

_HINT = "name a folder that you can write with --out"


def make_folder(out: Path) -> None:
    """Make the folder, if it is not there.

    Raises:
        StorageError: It cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise StorageError(f"--out {out}: is a file, but must be a folder", _HINT) from None
    except OSError as error:
        raise StorageError(f"--out {out}: {error.strerror}", _HINT) from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise StorageError(f"--out {out}: may not be written by you", _HINT)


def write_pages(out: Path, pages: Mapping[str, str]) -> None:
    """Write pages by their names, each wholly or not at all.

    Raises:
        StorageError: The disk is full, …
    """
    folder = Storage(str(out))
    for name, page in pages.items():
        folder.write_bytes(name, page.encode())
