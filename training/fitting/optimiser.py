"""Learning rates: by layer, and over time.

It does not know batches or losses.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch

from training.fit_settings import FitSettings
from training.network.encoder import encoder_layers
from training.network.model import TwoHeadBert


def schedule(progress: float, warmup_fraction: float) -> float:
    """Return the factor on the learning rate: a linear rise, then a linear fall to 0.

    Args:
        progress: Share of the training done, 0 to 1.
        warmup_fraction: Share of the training that rises.
    """
    if progress < warmup_fraction:
        # Not quite 0 at the start: a step of no size would be wasted.
        return max(progress / warmup_fraction, 0.01)
    return (1.0 - progress) / (1.0 - warmup_fraction)


def parameter_groups(model: TwoHeadBert, settings: FitSettings) -> list[dict[str, Any]]:
    """Give each trained parameter its learning rate and weight decay.

    The rate falls by `layer_decay` from one encoder layer to the next lower one (Howard and Ruder 2018, ULMFiT); biases and
    norms have no weight decay (Devlin et al. 2019).
    """
    depth = len(encoder_layers(model.encoder))
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (_rate(name, depth, settings), settings.weight_decay if parameter.dim() > 1 else 0.0)
            groups.setdefault(key, []).append(parameter)
    return [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()]


def balancing_group(parameters: Sequence[torch.nn.Parameter], settings: FitSettings) -> list[dict[str, Any]]:
    """Give what a balancing learns the heads' learning rate and no weight decay; no group where it learns nothing."""
    return [{"params": list(parameters), "lr": settings.head_learning_rate, "weight_decay": 0.0}] if parameters else []


def _rate(name: str, depth: int, settings: FitSettings) -> float:
    if name.startswith("heads."):
        return settings.head_learning_rate
    layer = re.search(r"\.layers?\.(\d+)\.", name)
    if layer:
        below_top = depth - 1 - int(layer.group(1))
    elif "pooler" in name or "final_norm" in name:
        below_top = 0
    else:
        below_top = depth
    return float(settings.encoder_learning_rate * settings.layer_decay**below_top)
