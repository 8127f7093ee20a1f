"""Linear layers in whole numbers: eight bits for weights and activations, sums in 32, everything else in float32.

Each output of a layer has a scale for its weights, and each token a scale and a zero for its activations, so that an answer does not
depend on who else is in the batch. Inputs that are large in every text would take all steps for themselves: they are made smaller, and
their weights larger, by what the layer was seen to read. It does not know encoders, files, or whether the answers are good enough:
`calibration` compares them.

Sources: Yao et al. 2022, ZeroQuant (arXiv 2206.01861), for scales by token; Xiao et al. 2023, SmoothQuant (arXiv 2211.10438), for moving
what is hard to round from activations to weights.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from serving.engines.kernels import Kernels
from serving.engines.linear import replace_linear

# Weights are rounded to so many steps on both sides of 0, activations to all that eight bits have.
_MOST, _STEPS, _MIDDLE = 127.0, 255.0, 128.0
# Rows at a time: what is between two products stays in the cache.
_BLOCK = 256
# What is all alike has no step of its own.
_LEAST_STEP = 1e-12
# SmoothQuant's alpha: activations and weights are equally hard to round afterwards.
_MOVED, _LEAST_INPUT = 0.5, 1e-5


class Int8Linear(nn.Module):
    """What a linear layer computes, rounded.

    Args:
        linear: Its weights are rounded once, here.
        largest: The largest magnitude of each input that was seen, (inputs,); nothing leaves inputs as they are.
        has_gelu: Apply it to the result.
        kernels: Compute what surrounds the product; without them torch does.
    """

    weight: torch.Tensor
    step: torch.Tensor
    sums: torch.Tensor
    bias: torch.Tensor
    shrink: torch.Tensor

    def __init__(
        self, linear: nn.Linear, largest: torch.Tensor | None = None, has_gelu: bool = False, kernels: Kernels | None = None
    ) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        grown = torch.ones(linear.in_features)
        if largest is not None:
            grown = largest.clamp(min=_LEAST_INPUT) ** _MOVED / weight.abs().amax(dim=0).clamp(min=_LEAST_INPUT) ** (1.0 - _MOVED)
        weight = weight * grown
        step = weight.abs().amax(dim=1).clamp(min=_LEAST_STEP) / _MOST
        whole = torch.round(weight / step[:, None])
        # (inputs, outputs), as the product reads it.
        self.register_buffer("weight", whole.to(torch.int8).t())
        self.register_buffer("step", step)
        self.register_buffer("sums", whole.sum(dim=1) * step)
        self.register_buffer("bias", torch.zeros(len(step)) if linear.bias is None else linear.bias.detach().float())
        self.register_buffer("shrink", 1.0 / grown)
        self._has_gelu = has_gelu
        self._kernels = kernels

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Map (..., inputs) to (..., outputs), float32."""
        rows = values.reshape(-1, values.shape[-1]).float().contiguous()
        found = torch.empty(len(rows), len(self.step))
        for some, target in zip(rows.split(_BLOCK), found.split(_BLOCK), strict=True):
            if self._kernels is None:
                self._multiply(some, target)
            else:
                whole, steps = self._kernels.quantise(some, self.shrink)
                product = torch._int_mm(whole, self.weight)
                self._kernels.finish(product, steps, (self.step, self.sums, self.bias), self._has_gelu, target)
        return found.view(*values.shape[:-1], -1)

    def _multiply(self, rows: torch.Tensor, target: torch.Tensor) -> None:
        rows = rows * self.shrink
        # Not aminmax, which takes ten times as long here.
        low, high = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
        step = (high - low).clamp_(min=_LEAST_STEP).div_(_STEPS)
        whole = rows.sub_(low).mul_(1.0 / step).sub_(_MIDDLE).round_().to(torch.int8)
        torch.mul(torch._int_mm(whole, self.weight), step, out=target)
        # A row is its whole numbers times its step, and a constant, which meets the sum of an output's weights.
        constant = low + _MIDDLE * step
        target.mul_(self.step).add_(self.bias).addr_(constant[:, 0], self.sums)
        if self._has_gelu:
            target.copy_(nn.functional.gelu(target))


def is_exact() -> bool:
    """Whether this machine's products of whole numbers are sums in 32 bits; without VNNI some add pairs up in 16, which overflow."""
    ours, theirs = torch.full((32, 64), 127, dtype=torch.int8), torch.full((64, 32), 127, dtype=torch.int8)
    return bool((torch._int_mm(ours, theirs) == 64 * 127 * 127).all() and (torch._int_mm(-ours, theirs) == -64 * 127 * 127).all())


def quantise(module: nn.Module, run: Callable[[], object], kernels: Kernels | None = None) -> None:
    """Replace all linear layers inside a module; changes it in place.

    Args:
        module: On the CPU, in float32; used without gradients from now on.
        run: Sends typical values through it.
        kernels: See `Int8Linear`.
    """
    largest = _largest_inputs(module, run)
    replace_linear(module, lambda name, layer, has_gelu: Int8Linear(layer, largest.get(name), has_gelu, kernels))


def _largest_inputs(module: nn.Module, run: Callable[[], object]) -> Mapping[str, torch.Tensor]:
    largest: dict[str, torch.Tensor] = {}

    def note(name: str, _: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        seen = arguments[0].detach().reshape(-1, arguments[0].shape[-1]).abs().amax(dim=0)
        largest[name] = torch.maximum(largest[name], seen) if name in largest else seen

    linear = [(name, one) for name, one in module.named_modules() if isinstance(one, nn.Linear)]
    hooks = [one.register_forward_pre_hook(partial(note, name)) for name, one in linear]
    run()
    for hook in hooks:
        hook.remove()
    return largest
