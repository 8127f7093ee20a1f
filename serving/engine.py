"""The forward pass: token ids in, every head's logits out, one pass through the encoder.

Knows neither texts nor classes nor HTTP. Where the encoder allows, `TorchEngine` computes no padding.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from training.data.tokens import pad

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


class TorchEngine:
    """The model in PyTorch, on a GPU where there is one.

    Args:
        folder: A verified checkpoint.
        pad_id: Token id to pad with.
        threads: Threads of one forward pass on the CPU.
    """

    name = "torch"

    def __init__(self, folder: Path, pad_id: int, threads: int = 1) -> None:
        import torch

        from training.checkpoint import load_model

        torch.set_num_threads(threads)
        self._pad_id = pad_id
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"
        # bf16 is for GPUs that have it: on a CPU without AMX it is slower than fp32.
        self._autocast = self._device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.dtype = "bfloat16" if self._autocast else "float32"
        model: Any = load_model(folder)
        self._model = model.to(self._device)
        self.pads = not model.packs

    def forward(self, rows: Sequence[NDArray[np.int32]]) -> Logits:
        """Compute logits; see `Engine.forward`."""
        import torch

        ids, mask = pad(rows, self._pad_id)
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            output = self._model(torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device))
            return {head: logits.float().cpu().numpy() for head, logits in output.logits.items()}
