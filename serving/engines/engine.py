"""The forward pass: token ids in, every head's logits out, one pass through the encoder.

It knows neither texts nor classes nor HTTP.
"""

from collections.abc import Mapping, Sequence
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
    """

    name: str
    device: str
    dtype: str
    pads: bool

    def forward(self, rows: Sequence[NDArray[np.int32]]) -> Logits:
        """Compute logits.

        Args:
            rows: Token ids of each text, special tokens included.

        Returns:
            Head name → (texts, classes of that head), float32, in the order of `rows`.
        """
        ...
