"""What is asked of the cache, the name it is kept under, and the parts it is computed in."""

import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from training.data.tokens import TokenTable

Precision = Literal["float16", "float32"]
# Tokens of one shard: seconds of work for one core, so that several processes end together.
SHARD_TOKENS = 32_768
_FORMAT = 1


@dataclass(frozen=True)
class Source:
    """Which layers speak.

    Attributes:
        encoder_sha256: Of the pretrained encoder's weights.
        pooling: How tokens become one vector.
        start: SHA-256 of the weights that are used instead, of an earlier version; "" for none.
        depth: So many layers are frozen.
        config_sha256: Of the file that says how the weights are put together.
    """

    encoder_sha256: str
    pooling: str
    start: str
    depth: int
    config_sha256: str = ""


@dataclass(frozen=True)
class Wanted:
    """Activations of all texts of a table.

    Attributes:
        source: Which layers speak.
        table: The texts.
        width: Of a vector.
        is_pooled: One vector a text; else one a token.
        precision: What they are kept in.
    """

    source: Source
    table: TokenTable
    width: int
    is_pooled: bool
    precision: Precision = "float16"

    @property
    def name(self) -> str:
        """Name of the same activations in every search: what they depend on, as a digest; not labels, heads or file names."""
        digest = hashlib.sha256(json.dumps([_FORMAT, asdict(self.source), self.width, self.is_pooled, self.precision]).encode())
        digest.update(self.table.ids.tobytes())
        digest.update(self.table.offsets.tobytes())
        return digest.hexdigest()[:32]

    @property
    def rows(self) -> int:
        """Vectors."""
        return len(self.table) if self.is_pooled else len(self.table.ids)

    @property
    def row_bytes(self) -> int:
        """Bytes of one vector."""
        return self.width * np.dtype(self.precision).itemsize

    @property
    def size_bytes(self) -> int:
        """Bytes of all."""
        return self.rows * self.row_bytes

    def shards(self) -> list["Shard"]:
        """Divide the texts into shards of similar cost, in their order."""
        offsets = self.table.offsets
        cuts = [0]
        while cuts[-1] < len(self.table):
            within = int(np.searchsorted(offsets, offsets[cuts[-1]] + SHARD_TOKENS, side="right")) - 1
            # A text longer than a shard is a shard of its own.
            cuts.append(min(len(self.table), max(within, cuts[-1] + 1)))
        return [self._shard(number, first, end) for number, (first, end) in enumerate(pairwise(cuts))]

    def _shard(self, number: int, first: int, end: int) -> "Shard":
        rows = (first, end) if self.is_pooled else (int(self.table.offsets[first]), int(self.table.offsets[end]))
        return Shard(number, first, end, rows[0] * self.row_bytes, (rows[1] - rows[0]) * self.row_bytes)


@dataclass(frozen=True)
class Shard:
    """Texts that are computed together.

    Attributes:
        number: From 0.
        first: Its first text.
        end: The text after its last.
        start_bytes: Where its vectors begin in the file.
        size_bytes: How long they are.
    """

    number: int
    first: int
    end: int
    start_bytes: int
    size_bytes: int
