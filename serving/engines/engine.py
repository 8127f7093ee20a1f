"""The forward pass: token ids in, every head's logits out, one pass through the encoder.

It knows neither texts nor classes nor HTTP.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Logits = Mapping[str, NDArray[np.float32]]


class Engine(Protocol):
    """What a predictor needs of a forward pass.

    Attributes:
        name: What computes.
        device: Where.
        dtype: How precisely.
        pads: Padding is computed like tokens.
        is_alive: It can compute at all.
    """

    name: str
    device: str
    dtype: str
    pads: bool

    @property
    def is_alive(self) -> bool: ...  # noqa: D102  # see above

    def end(self) -> None:
        """End its process, where that is one of its own, in the middle of whatever it does."""
        ...

    def clock(self) -> float:
        """Tell the time by which this engine's speed is measured, in seconds.

        Where a CPU computes with one thread it is that thread's own, which no other work on the machine changes, else the wall's.
        """
        ...

    def forward(self, rows: Sequence[NDArray[np.int32]]) -> Logits:
        """Compute logits.

        Args:
            rows: Token ids of each text, special tokens included.

        Returns:
            Head name → (texts, classes of that head), float32, in the order of `rows`.
        """
        ...


class Maker(Protocol):
    """Where engines are made: in this process, or in one of its own."""

    def precisions(self) -> list[str]:
        """List what this machine can compute with, the most precise first."""
        ...

    def hardware(self) -> str:
        """Name what computes; on another one, what was found out about speed counts for nothing."""
        ...

    def make(self, folder: Path, pad_id: int, threads: int, precision: str, typical: Sequence[NDArray[np.int32]], /) -> Engine:
        """Make an engine.

        Args:
            folder: A verified checkpoint.
            pad_id: Token id to pad with.
            threads: Threads of one forward pass on the CPU.
            precision: How precisely the encoder's layers compute.
            typical: Token ids of some texts; whole numbers suit them better than any others.
        """
        ...
