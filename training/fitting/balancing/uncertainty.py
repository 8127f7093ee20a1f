"""Uncertainty weighting: each head learns how noisy its labels are, and a noisy head weighs less.

With s = log σ², a learned number per head, the balanced loss is Σ ½·exp(-s)·loss + ½·s: the paper's form for regression, which TorchJD's
`UW` uses for every loss. The form for classification lacks the first ½; its best s is higher by log 2, everything else is the same.

Source: Kendall, Gal and Cipolla 2018, Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from training.fitting.balancing.balancer import Balancer, Losses


class Uncertainty(Balancer):
    """Learned log-variances, 0 at the start; trained without weight decay.

    Args:
        heads: Their names.
        device: Where the losses are.
    """

    def __init__(self, heads: Sequence[str], device: torch.device) -> None:
        super().__init__()
        self.parameters = {head: nn.Parameter(torch.zeros((), device=device)) for head in heads}

    def factors(self, losses: Losses) -> torch.Tensor:
        """Return half the precision of each head."""
        return 0.5 * torch.exp(-self._log_variances(losses))

    def finish_step(self, losses: Losses, counts: Mapping[str, int]) -> torch.Tensor:
        """Give the log-variances their gradients, ½ - ½·exp(-s)·loss; by hand, because the loss of a step is known only now."""
        shares = self.factors(losses) * torch.stack(list(losses.values()))
        for head, share in zip(losses, shares, strict=True):
            self.parameters[head].grad = 0.5 - share.float()
        return (shares + 0.5 * self._log_variances(losses)).sum()

    def _log_variances(self, losses: Losses) -> torch.Tensor:
        return torch.stack([self.parameters[head].detach() for head in losses])
