"""The model in PyTorch: in float32 or whole numbers on the CPU, in 16 bits on a GPU.

Where the encoder allows, no padding is computed. It knows neither texts nor classes nor HTTP.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from serving.engines.engine import Logits
from serving.errors import ServingError
from training.data.tokens import pad

if TYPE_CHECKING:
    from serving.engines.graphs import Graphs

log = logging.getLogger(__name__)


def precisions() -> list[str]:
    """List what this machine can compute with, the most precise first."""
    import torch

    from serving.engines.int8 import is_exact

    if torch.cuda.is_available():
        # As fast as each other; numbers beyond 65,504 are only in bfloat16's reach, which is rougher.
        halves = ["float16", "bfloat16"] if torch.cuda.is_bf16_supported(including_emulation=False) else ["float16"]
        return ["float32", *halves]
    # Without AMX bf16 is slower than float32 on a CPU, so it is not tried there; it can be asked for.
    return ["float32", "int8"] if is_exact() else ["float32"]


class TorchEngine:
    """The model in PyTorch, on a GPU where there is one.

    Args:
        model: In float32; changed, and the engine's from now on.
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
        self, model: Any, pad_id: int, threads: int = 1, precision: str = "float32", typical: Sequence[NDArray[np.int32]] = ()
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self._pad_id = pad_id
        self._threads = threads
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"
        self.dtype = precision
        if precision not in (possible := [*precisions(), *(["bfloat16"] if self._device.type == "cpu" else [])]):
            raise ServingError(f"serving.precision is {precision}, but this machine can compute only with {', '.join(possible)}")
        self._model = model.to(self._device)
        self._attend: Any = None
        self.graphs: Graphs | None = None
        if precision in ("bfloat16", "float16"):
            # The heads stay as they are: they cost nothing, and their answers are what is compared.
            model.encoder.to(getattr(torch, precision))
        elif self._device.type == "cpu":
            self._speed_up(typical)
        self.pads = not model.packs
        if self._device.type == "cuda" and model.packs:
            self.graphs = _recorded(model, pad_id, self._device)

    def _speed_up(self, typical: Sequence[NDArray[np.int32]]) -> None:
        """Replace what a CPU computes faster in another way."""
        from serving.engines.int8 import quantise
        from serving.engines.kernels import compiled
        from serving.engines.linear import ExactLinear, can_lay_out, replace_linear
        from training.network.encoder import encoder_layers

        layers, kernels, config = encoder_layers(self._model.encoder), compiled(), self._model.config.encoder
        if self.dtype == "int8":
            quantise(layers, lambda: self.forward(typical) if len(typical) else None, kernels)
        elif can_lay_out():
            replace_linear(layers, lambda _, layer, has_gelu: ExactLinear(layer, has_gelu))
        # It computes with one thread.
        if kernels and self._threads == 1 and kernels.can_attend(config.hidden_size // config.num_attention_heads):
            self._attend = kernels.attend

    def end(self) -> None:
        """Do nothing: it has no process of its own."""

    def clock(self) -> float:
        """Tell the time; see `Engine.clock`."""
        return time.thread_time() if self._device.type == "cpu" and self._threads == 1 else time.perf_counter()

    def forward(self, rows: Sequence[NDArray[np.int32]]) -> Logits:
        """Compute logits; see `Engine.forward`."""
        import torch

        with torch.inference_mode():
            framed = self.graphs.forward(rows) if self.graphs is not None and all(map(len, rows)) else None
            if framed is not None:
                return framed
            output = self._answer(rows)
            return {head: logits.float().cpu().numpy() for head, logits in output.logits.items()}

    def _answer(self, rows: Sequence[NDArray[np.int32]]) -> Any:
        import torch

        from training.network.packed import stream_rows

        if self._model.packs and all(map(len, rows)):
            stream, packing = stream_rows(rows, self._device, self._attend)
            return self._model(stream, packing=packing)
        ids, mask = pad(rows, self._pad_id)
        return self._model(torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device))


def _recorded(model: Any, pad_id: int, device: Any) -> "Graphs | None":
    import torch

    from serving.engines.graphs import Graphs

    try:
        with torch.inference_mode():
            return Graphs(model, pad_id, device)
    # Libraries say so in this way; the kernels are started one by one then.
    except RuntimeError as error:
        log.warning("forward passes are not recorded: %s", error)
        return None


class InProcess:
    """Makes engines in this process."""

    def precisions(self) -> list[str]:
        """List what this machine can compute with; see `precisions`."""
        return precisions()

    def hardware(self) -> str:
        """Name what it computes on; see `Maker.hardware`."""
        import torch

        from serving.engines.kernels import compiled

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
        return "cpu" if compiled() is None else "cpu, own kernels"

    def make(self, folder: Path, pad_id: int, threads: int, precision: str, typical: Sequence[NDArray[np.int32]]) -> TorchEngine:
        """Make an engine; see `TorchEngine`."""
        from training.checkpoint import load_model

        return TorchEngine(load_model(folder), pad_id, threads, precision, typical)
