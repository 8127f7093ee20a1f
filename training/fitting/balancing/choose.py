"""Makes the balancing that the settings name."""

from collections.abc import Mapping

import torch

from training.fit_settings import FitSettings
from training.fitting.balancing.balancer import Balancer
from training.fitting.balancing.dynamic_average import DynamicAverage
from training.fitting.balancing.fixed import Fixed
from training.fitting.balancing.pcgrad import PCGrad
from training.fitting.balancing.uncertainty import Uncertainty
from training.network.model import TwoHeadBert


def choose_balancer(model: TwoHeadBert, settings: FitSettings, weights: Mapping[str, float], device: torch.device) -> Balancer:
    """Make a balancer for the heads of a model.

    Args:
        model: Already frozen as deep as it will be.
        settings: Name the method and the seed.
        weights: Head → weight of its loss, normalised; only `fixed` heeds them.
        device: Where the losses will be.
    """
    heads = list(model.head_names)
    if settings.balancing == "uncertainty":
        return Uncertainty(heads, device)
    if settings.balancing == "dynamic_average":
        return DynamicAverage(heads, device)
    if settings.balancing == "pcgrad":
        shared = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
        return PCGrad(shared, {name: list(head.parameters()) for name, head in zip(heads, model.heads, strict=True)}, settings.seed)
    return Fixed(weights)
