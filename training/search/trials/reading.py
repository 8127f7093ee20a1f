"""What a trial reads: activations of its frozen layers from the machine's cache, or token ids where there is no room for them.

Beside them is what word pieces say by themselves, where heads add that up. A process keeps what it has mapped for its later trials; only
pages that are used take memory. It does not know Ray.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.storage import Storage
from training.activations.cache import ActivationCache, RangeExceeded, folder_for
from training.activations.wanted import Shard, Source, Wanted
from training.network.encoder import encoder_layers
from training.network.inputs import ActivationInputs, Inputs, PooledInputs, ScoredInputs, TokenInputs
from training.network.letters import ENDS
from training.network.model import TwoHeadBert
from training.network.prefix import has_prefix, prefix_rows
from training.search.trials.assignment import Assignment

_BATCH_TOKENS = 4096
# Of every token the weights of its runs of letters are looked up, for every class: so many at once.
_WEIGHTS_TOGETHER = 16_777_216
_mapped: dict[str, torch.Tensor] = {}


def read(
    assignment: Assignment, model: TwoHeadBert, depth: int, splits: Sequence[str], parts: int = 1, below: int | None = None
) -> dict[str, Inputs]:
    """Return what a model with so many frozen layers reads: activations of all splits, or token ids of all.

    Args:
        assignment: What all trials share.
        model: With its encoder whole, on its device.
        depth: Frozen layers; with 0 the model reads token ids.
        splits: Those that will be read.
        parts: Batches are so many times smaller, where memory ran out.
        below: What a model with fewer frozen layers will read is kept by the same pass, where there is room.
    """
    inputs: dict[str, Inputs | None] = {}
    for split in splits if depth else ():
        beside = _wanted(assignment, model, below, split) if below and below < depth else None
        inputs[split] = _opened(_wanted(assignment, model, depth, split), beside, assignment, model, parts)
    found = {split: one for split, one in inputs.items() if one is not None}
    return found if len(found) == len(splits) else {split: tokens_of(assignment, split) for split in splits}


def read_again(assignment: Assignment, model: TwoHeadBert, depth: int, split: str) -> Inputs:
    """Return what `read` returned; a model that kept its frozen layers reads token ids, whatever this process has mapped."""
    for wanted in () if has_prefix(model) else _precisions(_wanted(assignment, model, depth, split)):
        if wanted.name in _mapped:
            return _as_inputs(wanted)
    return tokens_of(assignment, split)


def scored(assignment: Assignment, model: TwoHeadBert, split: str, inputs: Inputs) -> Inputs:
    """Put what word pieces say of a split's texts beside what the model reads, where its heads add it up."""
    return inputs if model.word_pieces is None else ScoredInputs(inputs, piece_scores(assignment, tuple(model.scored), split))


def piece_scores(assignment: Assignment, heads: Sequence[str], split: str) -> torch.Tensor:
    """Return what word pieces say of a split's texts; of training texts, what is said by who has not learned from them.

    Args:
        assignment: What all trials share.
        heads: Those that have weights.
        split: Of the texts.

    Returns:
        (texts, classes of these heads), float32.
    """
    if split == "training":
        return torch.cat([torch.tensor(assignment.worded[head].held_out) for head in heads], dim=1)
    if assignment.words is None:
        raise ValueError(f"no word pieces have weights, but heads {', '.join(heads)} read them")
    ends = [0, *accumulate(len(assignment.classes[head]) for head in heads)]
    places = {head: slice(*place) for head, place in zip(heads, pairwise(ends), strict=True)}
    weights, table = assignment.words.module(assignment.spelling, places), assignment.tokens[split]
    parts = table.parts(max(1, _WEIGHTS_TOGETHER // (ENDS.shape[1] * ends[-1])))
    return torch.cat([weights.of_stream(torch.tensor(part.ids, dtype=torch.int64), torch.tensor(part.offsets)) for part in parts])


def tokens_of(assignment: Assignment, split: str) -> TokenInputs:
    """Return the token ids of a split."""
    return TokenInputs(assignment.tokens[split], assignment.pad_id)


def _wanted(assignment: Assignment, model: TwoHeadBert, depth: int, split: str) -> Wanted:
    start = assignment.start.weights_sha256 if assignment.start else ""
    source = Source(assignment.encoder_sha256, str(model.config.pooling), start, depth, assignment.encoder_config_sha256)
    is_pooled = depth == len(encoder_layers(model.encoder))
    return Wanted(source, assignment.tokens[split], int(model.config.encoder.hidden_size), is_pooled)


def _precisions(wanted: Wanted) -> tuple[Wanted, Wanted]:
    return wanted, replace(wanted, precision="float32")


def _opened(wanted: Wanted, beside: Wanted | None, assignment: Assignment, model: TwoHeadBert, parts: int) -> Inputs | None:
    settings = assignment.settings.activations
    storage = Storage(assignment.storage)
    kept = _cache(folder_for(storage, settings.folder), settings.most_bytes, None if storage.local_root else storage.uri)
    depths = [wanted.source.depth, *([beside.source.depth] if beside else [])]

    def compute(shard: Shard) -> list[NDArray[np.float32]]:
        texts = wanted.table.take(np.arange(shard.first, shard.end))
        rows = prefix_rows(model, texts, assignment.pad_id, depths, max(1, _BATCH_TOKENS // parts))
        return [rows[depth].numpy() for depth in depths]

    for one in _precisions(wanted):
        if one.name not in _mapped:
            try:
                found = kept.open(one, compute, beside)
            except RangeExceeded:
                continue
            if found is None:
                return None
            _mapped[one.name] = found
        return _as_inputs(one)
    return None


@cache
def _cache(folder: Path, most_bytes: int, others: str | None) -> ActivationCache:
    return ActivationCache(folder, most_bytes, Storage(others) if others else None)


def _as_inputs(wanted: Wanted) -> Inputs:
    rows, table = _mapped[wanted.name], wanted.table
    return PooledInputs(rows, table.lengths) if wanted.is_pooled else ActivationInputs(rows, table.offsets)
