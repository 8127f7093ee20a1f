"""What the trainable part of the model reads, in batches: token ids, prefix activations or pooled vectors.

`fit` asks for batches by index and does not know which of the three it gets; that is the seam where caches of
frozen layers fit in. Padding is only up to the longest text of a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.tokens import TokenTable, pad

Batch = dict[str, torch.Tensor]


class Inputs(Protocol):
    """Texts ready for the trainable part of a model."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, (texts,), int64."""

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Return keyword arguments of `TwoHeadBert.forward` for the chosen texts, on the CPU."""


@dataclass(frozen=True)
class TokenInputs:
    """Token ids: the whole encoder is computed."""

    table: TokenTable
    pad_id: int

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text."""
        return self.table.lengths

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Return `input_ids` and `attention_mask`, (texts, longest)."""
        ids, mask = pad([self.table[int(index)] for index in indices], self.pad_id)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


@dataclass(frozen=True)
class ActivationInputs:
    """Activations of the frozen lower layers, (tokens, width) for all texts one after the other."""

    activations: torch.Tensor
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text."""
        return np.diff(self.offsets)

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Return `inputs_embeds` (texts, longest, width) and `attention_mask` (texts, longest)."""
        rows = [self.activations[self.offsets[index] : self.offsets[index + 1]] for index in indices]
        hidden = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).float()
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(hidden.shape[1])[None, :] < lengths[:, None]).long()
        return {"inputs_embeds": hidden, "attention_mask": mask}


@dataclass(frozen=True)
class PooledInputs:
    """Pooled vectors of a wholly frozen encoder, (texts, width); lengths stay those of the texts."""

    pooled: torch.Tensor
    lengths: NDArray[np.int64]

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Return `pooled`, (texts, width)."""
        return {"pooled": self.pooled[torch.from_numpy(indices)].float()}


@dataclass(frozen=True)
class ScoredInputs:
    """Any of these, with what the texts' word pieces say by themselves."""

    inputs: Inputs
    piece_scores: torch.Tensor

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text."""
        return self.inputs.lengths

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Return what the inputs return, and `piece_scores`, (texts, outputs); see `TwoHeadBert.forward`."""
        return self.inputs.batch(indices) | {"piece_scores": self.piece_scores[torch.from_numpy(indices)]}


def plan_batches(
    lengths: NDArray[np.int64], batch_tokens: int, batch_texts: int, generator: np.random.Generator | None = None
) -> list[NDArray[np.int64]]:
    """Group texts of similar length into batches.

    Args:
        lengths: Tokens of each text, (texts,).
        batch_tokens: Most tokens in a batch, padding included; a longer text is a batch of its own.
        batch_texts: Most texts in a batch.
        generator: Mixes neighbours and the order of batches; without it the plan is the plain sorted one.

    Returns:
        Indices of each batch; every text stands in exactly one.
    """
    keys = lengths.astype(np.float64)
    if generator is not None:
        # A fifth of noise on the length: batches differ between epochs and are still of similar length.
        keys = keys * generator.uniform(0.9, 1.1, len(keys)) + generator.uniform(0.0, 1.0, len(keys))
    batches = list(_filled(np.argsort(keys, kind="stable"), lengths, batch_tokens, batch_texts))
    if generator is not None:
        batches = [batches[position] for position in generator.permutation(len(batches))]
    return batches


def _filled(order: NDArray[np.int64], lengths: NDArray[np.int64], batch_tokens: int, batch_texts: int) -> Iterator[NDArray[np.int64]]:
    current: list[int] = []
    longest = 0
    for index in order:
        longest = max(longest, int(lengths[index]))
        if current and (longest * (len(current) + 1) > batch_tokens or len(current) == batch_texts):
            yield np.array(current, dtype=np.int64)
            current, longest = [], int(lengths[index])
        current.append(int(index))
    if current:
        yield np.array(current, dtype=np.int64)


def labels_of(labels: dict[str, NDArray[np.int64]], indices: Sequence[int] | NDArray[np.int64]) -> dict[str, torch.Tensor]:
    """Take the class indices of a batch, head by head; -1 stays -1 (no label)."""
    return {head: torch.from_numpy(values[indices]) for head, values in labels.items()}
