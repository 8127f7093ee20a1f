"""What a way of balancing heads is: it turns their losses into gradients, part by part of an optimiser step.

Most methods put a factor on each loss and differ in where it comes from; that much stands here. A head without a label in a step is
not among the losses, so nothing of it gets a gradient.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

Losses = Mapping[str, torch.Tensor]


class Balancer:
    """Base of all methods.

    Attributes:
        parameters: Learned numbers of the method's own, by name; the optimiser moves those that have a gradient.
    """

    def __init__(self) -> None:
        self.parameters: dict[str, nn.Parameter] = {}

    def factors(self, losses: Losses) -> torch.Tensor:
        """Return what each of the losses is multiplied by, (heads,), without gradient."""
        return torch.ones(len(losses), device=next(iter(losses.values())).device)

    def begin_epoch(self, number: int) -> None:
        """Get ready for an epoch, counted from 1; what is random begins anew here."""

    def begin_step(self, heads: Sequence[str]) -> None:
        """Get ready for an optimiser step in which these heads have labels."""

    def backward(self, losses: Losses) -> None:
        """Add the gradients of one part of the step.

        Args:
            losses: Head → the part's share of the head's loss in the step: summed over the part, divided by the count of the step.
        """
        self.total(losses).backward()

    def pending(self) -> list[torch.Tensor]:
        """Return what has to be summed over workers before `finish_step`, besides the gradients."""
        return []

    def finish_step(self, losses: Losses, counts: Mapping[str, int]) -> torch.Tensor:
        """Complete the gradients after the last part.

        Args:
            losses: Head → its mean loss over the whole step, all parts and workers, without gradient.
            counts: Head → what that mean is over.

        Returns:
            The balanced loss of the step.
        """
        return self.total(losses)

    def total(self, losses: Losses) -> torch.Tensor:
        """Sum the losses, each times its factor."""
        return (self.factors(losses) * torch.stack(list(losses.values()))).sum()

    def finish_epoch(self) -> None:
        """Draw conclusions from an epoch."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return what the next epoch depends on, `parameters` left out."""
        return {}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from a `state`."""
