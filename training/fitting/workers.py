"""Several processes that train one model together, each on a share of every batch.

It knows torch.distributed, not Ray. Gradients are summed in one go after the backward passes instead of by
DistributedDataParallel: losses are already divided by the counts of the whole batch, and a head without labels must stay without gradient.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

# Numbers sent at once: enough to be fast, few enough to need little memory beside the gradients.
_BUCKET_NUMBERS = 25_000_000


class Workers(Protocol):
    """All processes of a training, as one of them sees them."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def count(self) -> int:
        """Number of processes."""

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors by their sums over all processes, bit for bit the same in each."""

    def copy_first(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors by those of the first process."""


class OneWorker:
    """A process that trains alone."""

    rank = 0
    count = 1

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Leave the tensors as they are."""

    def copy_first(self, tensors: Sequence[torch.Tensor]) -> None:
        """Leave the tensors as they are."""


class WorkerGroup:
    """The processes of torch's default process group, which somebody else has set up.

    Args:
        device: Where this process computes; with nccl a GPU of its own.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.rank = distributed.get_rank()
        self.count = distributed.get_world_size()

    @torch.no_grad()
    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors by their sums over all processes."""
        for bucket in _buckets(tensors):
            joined = torch.cat([tensor.detach().to(self._device, torch.float32).flatten() for tensor in bucket])
            distributed.all_reduce(joined)
            for tensor, summed in zip(bucket, joined.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(summed.view_as(tensor))

    @torch.no_grad()
    def copy_first(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors by those of process 0."""
        for tensor in tensors:
            moved = tensor.detach().to(self._device)
            distributed.broadcast(moved, src=0)
            tensor.copy_(moved)


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    for tensor in tensors:
        if bucket and sum(one.numel() for one in bucket) + tensor.numel() > _BUCKET_NUMBERS:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def share_of(indices: NDArray[np.int64], workers: Workers) -> NDArray[np.int64]:
    """Take this process's texts of a batch: every so manieth one, since neighbours are of similar length.

    Args:
        indices: The batch, (texts,); a batch smaller than the group leaves some processes without a text.
        workers: The group.
    """
    return indices[workers.rank :: workers.count]
