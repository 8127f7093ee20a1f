"""Writes of a whole file on a disk: beside its place and renamed, so that nobody sees half of one. It does not know what files mean."""

import errno
import os
import uuid
from pathlib import Path

# What is on its way has a name like this.
DRAFT = ".tmp-"


def write_whole(target: Path, content: bytes, *, exclusive: bool) -> None:
    """Write a file, and make its folder where there is none.

    Args:
        target: Where it goes.
        content: All of it.
        exclusive: Whether there may be none of that name; of several at once exactly one wins.

    Raises:
        FileExistsError: The name is taken, though it may not be.
        OSError: It cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        # Else a file in a folder's place would be taken for a lost race.
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from None
    draft = target.parent / f"{DRAFT}{uuid.uuid4().hex}"
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # A hard link fails when the name is taken, which a rename does not.
        os.link(draft, target) if exclusive else draft.replace(target)
        _sync_folder(target.parent)
    finally:
        draft.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # Without this a power cut can forget the rename itself.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
