"""Where and how precisely to compute, chosen when the process runs.

It does not know models.
"""

from contextlib import nullcontext
from typing import Any

import torch

from training.network.inputs import Batch


def choose_device() -> torch.device:
    """Return the GPU that Ray gave this process, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(precision: str, device: torch.device) -> Any:
    """Return the autocast context for a precision; `auto` is bf16 where a GPU has it."""
    if precision == "auto":
        # One that only emulates it computes more slowly and more coarsely than without.
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_bf16 else "fp32"
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
