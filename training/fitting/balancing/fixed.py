"""Fixed weights: the sum of the heads' losses, each times a weight that never changes."""

from collections.abc import Mapping

import torch

from training.fitting.balancing.balancer import Balancer, Losses


class Fixed(Balancer):
    """Weights as given.

    Args:
        weights: Head → weight of its loss.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self._weights = weights

    def factors(self, losses: Losses) -> torch.Tensor:
        """Return the weights of the heads at hand."""
        return torch.tensor([self._weights[head] for head in losses], device=next(iter(losses.values())).device)
