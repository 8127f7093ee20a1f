"""Linear layers on processors for which torch's own library has slower code than oneDNN, which torch has too.

On an AMD processor MKL leaves half of AVX-512's width unused; oneDNN does not ask who made it. Forward and backward products are the same
up to float noise. Which code a process takes depends on its machine alone, never on a measurement: the same training gives the same score.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

# Of a product's multiplications: below, what stands around it takes longer than is gained.
_LEAST = 2_000_000
_CPU_FACTS = Path("/proc/cpuinfo")


def compute_faster(module: nn.Module) -> None:
    """Let linear layers compute by oneDNN wherever that is faster: in float32, on the CPU, forward and backward.

    Args:
        module: Changed in place, and used as before: its parameters, their names and its hooks stay. Where MKL is as fast, nothing changes.
    """
    if not is_onednn_faster():
        return
    for layer in module.modules():
        # Whoever made a kind of their own computes something else.
        if type(layer) is nn.Linear:
            # In place: another layer with the same parameters would lose hooks, and what it is known by.
            layer.__class__ = OneDnnLinear


@cache
def is_onednn_faster() -> bool:
    """Whether this process has oneDNN, and a processor on which MKL is slower."""
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if not has_both or torch.backends.cpu.get_cpu_capability() != "AVX512" or not _CPU_FACTS.exists():
        return False
    return "AuthenticAMD" in _CPU_FACTS.read_text(encoding="utf-8", errors="replace") and has_product()


def has_product() -> bool:
    """Whether this build of torch has the product that we call."""
    try:
        _product(torch.zeros(1, 2), torch.zeros(2, 2))
    except (AttributeError, RuntimeError):
        return False
    return True


class OneDnnLinear(nn.Linear):
    """A linear layer whose larger products oneDNN computes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (..., inputs) to (..., outputs); the argument has torch's name."""
        return _computed(input, self.weight, self.bias) if _suits(input, self.weight) else super().forward(input)


def linear(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Map (..., inputs) to (..., outputs) by weights of (outputs, inputs), as torch's own function does, by whichever library is faster."""
    if is_onednn_faster() and _suits(values, weight):
        return _computed(values, weight, bias)
    return functional.linear(values, weight, bias)


def _computed(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    found: torch.Tensor = _Product.apply(values, weight, bias)
    return found


def _suits(values: torch.Tensor, weight: torch.Tensor) -> bool:
    is_plain = values.dtype == weight.dtype == torch.float32 and values.device.type == "cpu" and values.dim() >= 2
    is_large = values.numel() * len(weight) >= _LEAST
    # Autocast would compute more coarsely, as it was asked to; an exporter knows torch's own layer.
    return is_plain and is_large and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def _product(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "none")
    return found


class _Product(torch.autograd.Function):
    """A linear layer's product; oneDNN's has no gradient of its own."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        values = values.contiguous()
        ctx.save_for_backward(values, weight)
        return _product(values, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        values, weight = ctx.saved_tensors
        needs_values, needs_weight, needs_bias = ctx.needs_input_grad
        # That of a sum has one number for all places, which oneDNN would take for the first of many.
        gradient = gradient.contiguous()
        rows = gradient.flatten(0, -2)
        return (
            _product(gradient, weight.t()) if needs_values else None,
            _product(rows.t(), values.flatten(0, -2).t()) if needs_weight else None,
            rows.sum(dim=0) if needs_bias else None,
        )
