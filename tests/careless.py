"""A store that minds no condition of a put, as some that speak S3; something may happen just before and just after one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from cluster.storage import Storage


class CarelessStore(MemoryFileSystem):
    """Its files are in memory."""

    protocol = "careless"
    store: dict[str, Any] = {}
    pseudo_dirs: list[str] = [""]
    before: Callable[[str], object] | None = None
    after: Callable[[str], object] | None = None

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        before, after = self.before, self.after
        # What happens is itself done with puts.
        self.before = self.after = None
        if before:
            before(path)
        super().pipe_file(path, value, mode="overwrite", **kwargs)
        if after:
            after(path)


@contextmanager
def careless_storage() -> Iterator[tuple[Storage, CarelessStore]]:
    """Give an empty one for the length of the block, and the store beneath it."""
    fsspec.register_implementation("careless", CarelessStore, clobber=True)
    CarelessStore.clear_instance_cache()
    storage = Storage("careless://bucket/x")
    yield storage, storage._filesystem
    CarelessStore.store.clear()


def refuse(error: OSError) -> Callable[[str], object]:
    """Return what a put is followed by where the store says no."""

    def raise_it(path: str) -> None:
        raise error

    return raise_it
