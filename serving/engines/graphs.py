"""Batches on a GPU as CUDA graphs: what a forward pass starts hundreds of kernels for is started at once.

Python takes several milliseconds to start the kernels of one forward pass, whatever the batch; below some 15,000 tokens that is longer
than the GPU computes. A graph has fixed shapes, so there is one for each of a row of frames, and a batch takes the smallest that holds it:
behind its texts the frame's tokens go on as texts of nothing, which no text sees, since attention knows where each begins.

Source: NVIDIA, CUDA C++ Programming Guide, "CUDA Graphs"; PyTorch, "CUDA semantics", the section on them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from serving.engines.engine import Logits
from training.network.packed import COUNTED_TYPES, Packing

Run = Callable[[torch.Tensor, Packing], Mapping[str, torch.Tensor]]

# From a short text to where the GPU computes for longer than Python takes; half as much again each and a third, by turns.
TOKENS = tuple(size for doubled in range(8) for size in (64 << doubled, 96 << doubled))
# A frame holds a text for so many of its tokens, and a few more; shorter ones take a larger frame.
_TOKENS_A_TEXT, _MORE_TEXTS = 32, 6
_WARM_UP = 2


@dataclass(frozen=True)
class Frame:
    """How much a graph holds.

    Attributes:
        tokens: Of all texts.
        longest: A text has no more.
    """

    tokens: int
    longest: int

    @property
    def texts(self) -> int:
        """How many."""
        return self.tokens // _TOKENS_A_TEXT + _MORE_TEXTS

    @property
    def ends(self) -> int:
        """How many ends of texts there are: of its own, and of the longest ones of nothing that may follow."""
        return self.texts + -(-self.tokens // self.longest)

    def holds(self, texts: int, tokens: int) -> bool:
        """Tell whether so many texts with so many tokens in all find room."""
        return texts <= self.texts and tokens <= self.tokens

    def lay_out(self, rows: Sequence[NDArray[np.int32]], pad_id: int, first_position: int) -> NDArray[np.int32]:
        """Write down what the graph reads.

        Args:
            rows: Token ids of each text, at least one each.
            pad_id: Token that texts of nothing are made of.
            first_position: Number of a text's first place, as the encoder counts them.

        Returns:
            One after the other: token ids and their places in their texts, (tokens,) each; where texts begin and the last one ends,
            (ends + 1,).
        """
        begins = np.full(self.ends + 1, self.tokens, np.int32)
        begins[0] = 0
        begins[1 : len(rows) + 1] = np.cumsum([len(row) for row in rows])
        used = begins[len(rows)]
        # Texts that are not there are empty.
        begins[len(rows) + 1 : self.texts + 1] = used
        of_nothing = used + self.longest * np.arange(1, self.ends - self.texts + 1)
        begins[self.texts + 1 :] = np.minimum(of_nothing, self.tokens)
        ids = np.concatenate([*rows, np.full(self.tokens - used, pad_id)])
        places = np.arange(self.tokens) - np.repeat(begins[:-1], np.diff(begins))
        return np.concatenate([ids, places + first_position, begins]).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class FramedPacking(Packing):
    """Where each text is, known only when the graph runs.

    Attributes:
        numbers: What `positions` returns, (1, tokens).
        ends: What `begins` returns, (ends + 1,), int32.
    """

    numbers: torch.Tensor
    ends: torch.Tensor

    def positions(self, ids: torch.Tensor | None, model_type: str, pad_id: int) -> torch.Tensor:
        """Return what was laid out."""
        return self.numbers

    @cached_property
    def begins(self) -> torch.Tensor:
        """Return what was laid out."""
        return self.ends


class Graph:
    """A forward pass through one frame, recorded.

    Args:
        frame: Its size.
        run: Maps token ids, (1, tokens), and where each text is to every head's logits.
        typical: What `Frame.lay_out` gives for any texts; recorded with.
        device: The GPU.
        pool: Memory that graphs share, of which one runs at a time.
    """

    def __init__(self, frame: Frame, run: Run, typical: NDArray[np.int32], device: torch.device, pool: Any) -> None:
        self._host = torch.from_numpy(typical).pin_memory()
        self._given = self._host.to(device)
        ids, places, ends = self._given.split([frame.tokens, frame.tokens, frame.ends + 1])
        # The graph reads it where it is now, so it has to stay there.
        self._order = torch.arange(frame.ends, device=device)

        def answer() -> torch.Tensor:
            packing = FramedPacking(self._order, (frame.longest,), numbers=places.long()[None], ends=ends)
            return torch.cat([logits.float() for logits in run(ids.long()[None], packing).values()], dim=1)

        # What libraries set up at their first call is no part of a graph.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                answer()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._found = answer()

    def replay(self, laid_out: NDArray[np.int32], texts: int) -> NDArray[np.float32]:
        """Compute; returns all heads' logits beside each other, (texts, classes of all)."""
        self._host.numpy()[:] = laid_out
        with torch.inference_mode():
            self._given.copy_(self._host, non_blocking=True)
            self._graph.replay()
            found: NDArray[np.float32] = self._found[:texts].cpu().numpy()
        return found


class Graphs:
    """A model's graphs.

    Args:
        model: In half precision, on the GPU; see `TwoHeadBert.packs`.
        pad_id: Token id to pad with.
        device: The GPU.

    Raises:
        RuntimeError: What it does cannot be recorded.
    """

    def __init__(self, model: Any, pad_id: int, device: torch.device) -> None:
        config = model.config.encoder
        self._pad_id = pad_id
        # These leave padding out when they count, wherever it stands; see `Packing.positions`.
        self._counts_padding = config.model_type not in COUNTED_TYPES
        self._first_position = 0 if self._counts_padding else int(config.pad_token_id) + 1
        self._classes = {head["name"]: len(head["classes"]) for head in model.config.heads}
        pool, self._graphs = torch.cuda.graph_pool_handle(), dict[Frame, Graph]()

        def run(ids: torch.Tensor, packing: Packing) -> Mapping[str, torch.Tensor]:
            logits: Mapping[str, torch.Tensor] = model(ids, packing=packing).logits
            return logits

        longest = int(config.max_position_embeddings) - self._first_position
        # The largest first: the others find room in what it leaves.
        for tokens in reversed(TOKENS):
            frame = Frame(tokens, min(tokens, longest))
            laid_out = frame.lay_out([np.full(1, pad_id, np.int32)], pad_id, self._first_position)
            self._graphs[frame] = Graph(frame, run, laid_out, device, pool)

    def forward(self, rows: Sequence[NDArray[np.int32]]) -> Logits | None:
        """Compute logits, see `Engine.forward`; nothing where no frame holds the texts."""
        tokens = sum(map(len, rows))
        fitting = [frame for frame in self._graphs if frame.holds(len(rows), tokens)]
        if not fitting or not (self._counts_padding or all((row != self._pad_id).all() for row in rows)):
            return None
        frame = min(fitting, key=lambda frame: frame.tokens)
        found = self._graphs[frame].replay(frame.lay_out(rows, self._pad_id, self._first_position), len(rows))
        ends = np.cumsum(list(self._classes.values()))[:-1]
        return dict(zip(self._classes, np.split(found, ends, axis=1), strict=True))
