"""Texts of different lengths through an encoder without padding: one stream of tokens, attention within each text.

All layers but attention treat every token alike, so they take the tokens of all texts one after the other, as one text. Attention is
computed text by text, or for several at once where they are equally long; on a GPU in half precision, where nothing is dropped, by one
kernel that knows where texts begin. What comes out is what padding would give, up to float noise, and gradients flow through it. It
does not know heads or files.

Source: Zeng et al. 2022, Boosting Distributed Training Performance of the Unpadded BERT Model (arXiv 2208.08124); the way through
transformers' own modules, as one more implementation of attention, is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

# As transformers calls it. Without a packing it is `sdpa`.
ATTENTION = "packed"
# Their attention asks transformers which implementation to take, and knows positions only from the embeddings.
PACKED_TYPES = ("bert", "distilbert", "electra", "roberta", "xlm-roberta")
# These count positions from the padding token's id on, and leave padding tokens out, even one that a text names.
COUNTED_TYPES = ("roberta", "xlm-roberta")
# Flash attention's.
_LEAST_CAPABILITY = (8, 0)
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Packing:
    """Where each text is in a stream of tokens; texts stand in it by length, the shortest first.

    Attributes:
        order: Which text comes where, (texts,).
        lengths: Tokens of each text, in that order.
        mask: Which places of the sorted, padded texts are tokens, (texts, longest); nothing where texts come as a stream already.
        attend: Computes attention in float32 without gradients, where something faster than torch can; see `Attend`.
    """

    order: torch.Tensor
    lengths: tuple[int, ...]
    mask: torch.Tensor | None = None
    attend: "Attend | None" = None

    def stream(self, padded: torch.Tensor) -> torch.Tensor:
        """Turn (texts, longest, ...) into (1, tokens, ...); what came as a stream stays one."""
        return padded if self.mask is None else padded[self.order][self.mask][None]

    def split(self, stream: torch.Tensor) -> list[torch.Tensor]:
        """Turn (1, tokens, ...) into the rows of each text, (tokens, ...), in the order the texts were given in."""
        rows = stream[0].split(list(self.lengths))
        return [rows[place] for place in self.places.tolist()]

    def means(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the mean over each text's tokens, (texts, width), in the order the texts were given in."""
        if stream.device.type == "cuda":
            # A GPU waits longer for each length than it computes.
            # Nor need it look whether the texts' ends are in order.
            return torch.segment_reduce(stream[0].float(), "mean", offsets=self.begins.long(), axis=0, unsafe=True)[self.places]
        rows = [part.view(count, tokens, -1).mean(dim=1) for part, count, tokens in self.groups(stream[0])]
        return torch.cat(rows)[self.places]

    def firsts(self, stream: torch.Tensor) -> torch.Tensor:
        """Return each text's first token, (texts, width), in the order the texts were given in."""
        return stream[0][self.begins[:-1].long()][self.places]

    def positions(self, ids: torch.Tensor | None, model_type: str, pad_id: int) -> torch.Tensor:
        """Number the tokens of each text as the encoder's embeddings would, (1, tokens).

        Args:
            ids: Token ids, (1, tokens); without them every place is a token.
            model_type: Of the encoder.
            pad_id: Its padding token.
        """
        lengths = torch.tensor(self.lengths)
        begins = torch.repeat_interleave(lengths.cumsum(dim=0) - lengths, lengths)
        counts = (torch.arange(len(begins)) - begins).to(self.order.device)[None]
        if model_type not in COUNTED_TYPES:
            return counts
        if ids is None or not bool((is_padding := ids == pad_id).any()):
            return counts + pad_id + 1
        seen = torch.cat([torch.cumsum(part, dim=0) for part in (~is_padding[0]).long().split(list(self.lengths))])[None]
        return torch.where(is_padding, pad_id, seen + pad_id)

    def groups(self, stream: torch.Tensor) -> list[tuple[torch.Tensor, int, int]]:
        """Divide (tokens, ...) into texts of one length each: their rows, how many texts, how many tokens each."""
        sizes = [(len(list(alike)), tokens) for tokens, alike in groupby(self.lengths)]
        parts = stream.split([count * tokens for count, tokens in sizes])
        return [(part, count, tokens) for part, (count, tokens) in zip(parts, sizes, strict=True)]

    @cached_property
    def begins(self) -> torch.Tensor:
        """Where each text begins, and where the last one ends, (texts + 1,), int32."""
        ends = torch.tensor((0, *self.lengths)).cumsum(dim=0)
        return ends.to(device=self.order.device, dtype=torch.int32)

    @cached_property
    def places(self) -> torch.Tensor:
        """Where each text is, in the order the texts were given in, (texts,)."""
        return torch.argsort(self.order)


class Attend(Protocol):
    """Computes attention within texts."""

    def __call__(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, begins: torch.Tensor, scale: float, /
    ) -> torch.Tensor:
        """Map three times (tokens of all texts, heads, width) to one more; see `Packing.begins`."""
        ...


def stream_rows(rows: Sequence[NDArray[np.int32]], device: torch.device, attend: Attend | None = None) -> tuple[torch.Tensor, Packing]:
    """Put texts into a stream that was never padded.

    Args:
        rows: Token ids of each text, at least one each.
        device: Where the stream goes.
        attend: See `Packing`.

    Returns:
        Token ids, (1, tokens), and where each text is among them.
    """
    lengths = np.array([len(row) for row in rows])
    order = np.argsort(lengths, kind="stable")
    ids = torch.from_numpy(np.concatenate([rows[text] for text in order]).astype(np.int64))
    return ids.to(device)[None], Packing(torch.from_numpy(order).to(device), tuple(lengths[order].tolist()), attend=attend)


def pack(attention_mask: torch.Tensor) -> Packing | None:
    """Plan the stream for padded texts.

    Args:
        attention_mask: 1 for a token, (texts, longest).

    Returns:
        Nothing where a text is empty, or has padding before or between its tokens: positions would not be what padding makes of them.
    """
    mask = attention_mask.bool().cpu()
    lengths = mask.sum(dim=1)
    if not bool(mask[:, :1].all()) or bool((mask[:, 1:] > mask[:, :-1]).any()):
        return None
    order = torch.argsort(lengths, stable=True)
    device = attention_mask.device
    return Packing(order.to(device), tuple(lengths[order].tolist()), mask[order].to(device))


def has_kernel(device: torch.device) -> bool:
    """Whether one kernel computes attention within all texts on a device in half precision."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention for transformers' encoders.

    Args:
        module: That asks.
        query: (texts, attention heads, tokens, width); with a packing (1, attention heads, tokens of all texts, width).
        key: The same.
        value: The same.
        attention_mask: For padded texts.
        named: `packing`, without which texts are padded; `dropout` of attention's weights; `scaling` of the products.

    Returns:
        (texts, tokens, attention heads, width), and no weights.
    """
    packing: Packing | None = named.pop("packing", None)
    if packing is None:
        padded: torch.Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **named)[0]
        return padded, None
    dropout, scale = float(named.get("dropout", 0.0)), named.get("scaling")
    streams = [one[0].transpose(0, 1).contiguous() for one in (query, key, value)]
    if packing.attend is not None:
        queries, keys, values = streams
        return packing.attend(queries, keys, values, packing.begins, scale or query.shape[-1] ** -0.5)[None], None
    if not dropout and query.dtype in HALVES and has_kernel(query.device):
        return _by_one_kernel(streams, packing, scale)[None], None
    answers = []
    for alike in zip(*(packing.groups(one) for one in streams), strict=True):
        queries, keys, values = (part.unflatten(0, (count, tokens)).transpose(1, 2) for part, count, tokens in alike)
        answers.append(scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, scale=scale).transpose(1, 2).flatten(0, 1))
    return torch.cat(answers)[None], None


def _by_one_kernel(streams: Sequence[torch.Tensor], packing: Packing, scale: float | None) -> torch.Tensor:
    queries, keys, values = streams
    begins, longest = packing.begins, packing.lengths[-1]
    answers: Any = varlen_attn(queries, keys, values, begins, begins, longest, longest, scale=scale)
    found: torch.Tensor = answers
    return found


AttentionInterface.register(ATTENTION, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)
