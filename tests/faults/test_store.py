"""More in Ray's object store than it holds: on a disk with room, and on one that is full."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster.connection import connect
from cluster.settings import ClusterSettings
from tests.disks import small_disk

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

BLOCK_BYTES = 4_000_000


def block(number: int) -> NDArray[np.uint8]:
    return np.full(BLOCK_BYTES, number, np.uint8)


def settings(folder: Path) -> ClusterSettings:
    return ClusterSettings(storage=str(folder / "storage"), num_cpus=1, num_gpus=0, object_store_bytes=80_000_000)


def test_b17_what_finds_no_room_is_spilled_and_read_again(tmp_path: Path) -> None:
    with connect(settings(tmp_path)):
        import ray

        # Twice what it holds.
        kept = [ray.put(block(number)) for number in range(40)]
        assert [bool((ray.get(one) == number).all()) for number, one in enumerate(kept)] == [True] * 40


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let temporary files, Ray's among them, be on a small disk; a longer path would be too long for Ray's sockets."""
    with small_disk(Path(tempfile.mkdtemp()), "200M") as found:
        monkeypatch.setattr(tempfile, "tempdir", str(found))
        yield
        monkeypatch.undo()
    found.rmdir()


@pytest.mark.usefixtures("disk")
def test_b18_when_that_disk_is_full_it_is_said_and_nobody_waits(tmp_path: Path) -> None:
    with connect(settings(tmp_path)):
        import ray

        kept = []
        with pytest.raises(ray.exceptions.OutOfDiskError, match="Local disk is full"):
            kept.extend(ray.put(block(number)) for number in range(100))
        assert len(kept) * BLOCK_BYTES > 80_000_000
