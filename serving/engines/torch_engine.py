"""The model in PyTorch: in float32 or whole numbers on the CPU, in bf16 on a GPU.

Where the encoder allows, no padding is computed. It knows neither texts nor classes nor HTTP.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.engines.engine import Logits
from serving.errors import ServingError
from training.data.tokens import pad


def precisions() -> list[str]:
    """List what this machine can compute with, the most precise first."""
    import torch

    from serving.engines.int8 import is_exact

    if torch.cuda.is_available():
        return ["float32", "bfloat16"] if torch.cuda.is_bf16_supported(including_emulation=False) else ["float32"]
    # Without AMX bf16 is slower than float32 on a CPU, so it is not tried there; it can be asked for.
    return ["float32", "int8"] if is_exact() else ["float32"]


class TorchEngine:
    """The model in PyTorch, on a GPU where there is one.

    Args:
        folder: A verified checkpoint.
        pad_id: Token id to pad with.
        threads: Threads of one forward pass on the CPU.
        precision: How precisely the encoder's layers compute; see `precisions`.
        typical: Token ids of some texts; whole numbers suit them better than any others.

    Raises:
        ServingError: This machine cannot compute so.
    """

    name = "torch"
    is_alive = True

    def __init__(
        self, folder: Path, pad_id: int, threads: int = 1, precision: str = "float32", typical: Sequence[NDArray[np.int32]] = ()
    ) -> None:
        import torch

        from training.checkpoint import load_model

        torch.set_num_threads(threads)
        self._pad_id = pad_id
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"
        self.dtype = precision
        if precision not in (possible := [*precisions(), *(["bfloat16"] if self._device.type == "cpu" else [])]):
            raise ServingError(f"serving.precision is {precision}, but this machine can compute only with {', '.join(possible)}")
        model: Any = load_model(folder)
        self._model = model.to(self._device)
        with self._computing():
            self.pads = not model.packs
        if self.dtype == "int8":
            from serving.engines.int8 import quantise
            from training.network.encoder import encoder_layers

            quantise(encoder_layers(model.encoder), lambda: self.forward(typical) if len(typical) else None)

    def forward(self, rows: Sequence[NDArray[np.int32]]) -> Logits:
        """Compute logits; see `Engine.forward`."""
        import torch

        ids, mask = pad(rows, self._pad_id)
        with torch.inference_mode(), self._computing():
            output = self._model(torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device))
            return {head: logits.float().cpu().numpy() for head, logits in output.logits.items()}

    def _computing(self) -> Any:
        import torch

        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")


class InProcess:
    """Makes engines in this process."""

    def precisions(self) -> list[str]:
        """List what this machine can compute with; see `precisions`."""
        return precisions()

    def gpu(self) -> str:
        """Return the name of the GPU it computes on; "" without one."""
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else ""

    def make(self, folder: Path, pad_id: int, threads: int, precision: str, typical: Sequence[NDArray[np.int32]]) -> TorchEngine:
        """Make an engine; see `TorchEngine`."""
        return TorchEngine(folder, pad_id, threads, precision, typical)
