"""PCGrad: where the gradients of two heads point against each other, each loses the part that works against the other.

Only what all heads share is balanced so; a head's own parameters get its own gradient. Instead of long gradient vectors their dot
products are projected: every projected gradient is a sum of the heads' gradients with some weights, and these follow from the dot
products alone.

Source: Yu et al. 2020, Gradient Surgery for Multi-Task Learning (algorithm 1).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from training.fitting.balancing.balancer import Balancer, Losses


class PCGrad(Balancer):
    """Projected gradients, heads taken in a random order of its own.

    Args:
        shared: Parameters that every head's loss depends on; may be empty.
        own: Head → its parameters.
        seed: Of the orders.
    """

    def __init__(self, shared: Sequence[nn.Parameter], own: Mapping[str, Sequence[nn.Parameter]], seed: int) -> None:
        super().__init__()
        self._shared, self._own = list(shared), own
        self._seed, self._generator = seed, torch.Generator()
        self._gradients: dict[str, list[torch.Tensor]] = {}
        self._is_used = torch.zeros(0)

    def begin_epoch(self, number: int) -> None:
        """Seed the orders of an epoch."""
        self._generator.manual_seed(self._seed * 100_003 + number)

    def begin_step(self, heads: Sequence[str]) -> None:
        """Forget the last step."""
        self._gradients = {head: [torch.zeros_like(parameter) for parameter in self._shared] for head in heads}
        self._is_used = torch.zeros(len(self._shared))

    def backward(self, losses: Losses) -> None:
        """Add each head's gradients to its own sums: projecting parts would not be the same as projecting the step."""
        for position, (head, loss) in enumerate(losses.items()):
            own = self._own[head]
            keep = position + 1 < len(losses)
            found = torch.autograd.grad(loss, [*self._shared, *own], retain_graph=keep, allow_unused=True)
            for index, (total, gradient) in enumerate(zip(self._gradients[head], found[: len(self._shared)], strict=True)):
                if gradient is not None:
                    total += gradient
                    self._is_used[index] = 1.0
            for parameter, gradient in zip(own, found[len(self._shared) :], strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def pending(self) -> list[torch.Tensor]:
        """Return the heads' sums, and which parameters they are of."""
        return [self._is_used, *(total for totals in self._gradients.values() for total in totals)]

    def finish_step(self, losses: Losses, counts: Mapping[str, int]) -> torch.Tensor:
        """Project, and give the shared parameters the sum."""
        stacks = [torch.stack([totals[index].flatten() for totals in self._gradients.values()]) for index in range(len(self._shared))]
        if stacks:
            gramian = torch.stack([stack @ stack.T for stack in stacks]).double().sum(dim=0).cpu()
            orders = [torch.randperm(len(gramian), generator=self._generator).tolist() for _ in range(len(gramian))]
            weights = projection_weights(gramian, orders)
            for parameter, stack, is_used in zip(self._shared, stacks, self._is_used, strict=True):
                parameter.grad = (weights.to(stack) @ stack).view_as(parameter) if is_used else None
        self._gradients = {}
        return super().finish_step(losses, counts)


def projection_weights(gramian: torch.Tensor, orders: Sequence[Sequence[int]]) -> torch.Tensor:
    """Weigh gradients so that their sum is that of the projected ones.

    Args:
        gramian: Dot products of the heads' gradients, (heads, heads).
        orders: For each head the order in which it meets the others (itself may stand in it).

    Returns:
        (heads,).
    """
    parts = torch.eye(len(gramian), dtype=gramian.dtype)
    for head, order in enumerate(orders):
        for other in order:
            overlap = parts[head] @ gramian[other]
            if other != head and overlap < 0:
                parts[head, other] -= overlap / gramian[other, other]
    return parts.sum(dim=0)
