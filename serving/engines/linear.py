"""Linear layers for a forward pass on the CPU: which ones an encoder has, and how to compute them exactly.

oneDNN lays weights out once as its product reads them and applies GELU while a result is still in the cache, which is a sixth faster than
torch's own product and gives the same up to float noise. It does not know whole numbers: see `int8`.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.activations import GELUActivation

# A linear layer before the activation between a layer's two halves, and where its neighbour keeps that.
_ACTIVATIONS = {"dense": "intermediate_act_fn", "lin1": "activation"}
# Rows of a batch that the layout suits; any other number works.
_ROWS = 256


class ExactLinear(nn.Module):
    """What a linear layer computes, in float32, with weights laid out once.

    Args:
        linear: Its weights are copied.
        has_gelu: Apply it to the result.
    """

    def __init__(self, linear: nn.Linear, has_gelu: bool = False) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._after = "gelu" if has_gelu else "none"

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Map (..., inputs) to (..., outputs), float32."""
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(values, self._weight, self._bias, self._after, [], "none")
        return found


def can_lay_out() -> bool:
    """Whether this build of torch has oneDNN's product."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        with torch.inference_mode():
            ExactLinear(nn.Linear(2, 2))(torch.zeros(1, 2))
    except (AttributeError, RuntimeError):
        return False
    return True


def replace_linear(module: nn.Module, make: Callable[[str, nn.Linear, bool], nn.Module]) -> None:
    """Replace all linear layers inside a module; changes it in place.

    Args:
        module: Used without gradients from now on.
        make: Given a layer's name, the layer, and whether GELU follows, returns what computes both.
    """
    for name, layer in [(name, one) for name, one in module.named_modules() if isinstance(one, nn.Linear)]:
        parent, _, last = name.rpartition(".")
        owner = module.get_submodule(parent)
        after = _ACTIVATIONS.get(last, "")
        has_gelu = _is_gelu(getattr(owner, after, None))
        if has_gelu:
            setattr(owner, after, nn.Identity())
        setattr(owner, last, make(name, layer, has_gelu))


def _is_gelu(module: object) -> bool:
    if isinstance(module, GELUActivation):
        return module.act is nn.functional.gelu
    return isinstance(module, nn.GELU) and module.approximate == "none"
