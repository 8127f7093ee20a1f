"""Linear layers in whole numbers: eight bits for weights and activations, sums in 32, everything else in float32.

Each output of a layer has a scale for its weights, each token one for its activations, so that an answer does not depend on who else is in
the batch. It does not know encoders, files, or whether the answers are good enough: `calibration` compares them.

Source: Yao et al. 2022, ZeroQuant (arXiv 2206.01861), for scales by token; processors with VNNI multiply four such pairs in the time of one
in float32.
"""

import torch
from torch import nn

_MOST = 127.0
# A token of zeros has no scale of its own.
_LEAST_SCALE = 1e-12


class Int8Linear(nn.Module):
    """What a linear layer computes, rounded.

    Args:
        linear: Its weights are rounded once, here.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = _scale(weight)
        # (inputs, outputs), as the product reads it.
        self.register_buffer("weight", torch.round(weight / scale).to(torch.int8).t())
        self.register_buffer("scale", scale[:, 0])
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Map (..., inputs) to (..., outputs), float32."""
        rows = values.reshape(-1, values.shape[-1]).float()
        scale = _scale(rows)
        whole = torch.round(rows / scale).to(torch.int8)
        products = torch._int_mm(whole, self.weight).float().mul_(scale).mul_(self.scale)
        found = products if self.bias is None else products.add_(self.bias)
        return found.view(*values.shape[:-1], -1)


def _scale(rows: torch.Tensor) -> torch.Tensor:
    """Return what each row is divided by, (rows, 1)."""
    return rows.abs().amax(dim=1, keepdim=True).clamp_(min=_LEAST_SCALE) / _MOST


def quantise(module: nn.Module) -> nn.Module:
    """Replace all linear layers inside a module; changes it in place.

    Args:
        module: On the CPU, in float32; used without gradients from now on.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            quantise(child)
    return module
