"""PCGrad: where the gradients of two heads point against each other, each loses the part that works against the other.

Only what all heads share is balanced so; a head's own parameters get its own gradient. Instead of long gradient vectors their dot
products are projected: every projected gradient is a sum of the heads' gradients with some weights, and these follow from the dot
products alone. So a step holds one copy of the shared parameters' gradients for each head, and nothing beside them.

Source: Yu et al. 2020, Gradient Surgery for Multi-Task Learning (algorithm 1).
"""

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement

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
        # Head → its gradient of each shared parameter, summed over the parts so far; nothing where there is none.
        self._gradients: dict[str, list[torch.Tensor | None]] = {}
        # Whether any head of any worker has a gradient of each; only where there are several.
        self._is_used: torch.Tensor | None = None

    def begin_epoch(self, number: int) -> None:
        """Seed the orders of an epoch."""
        self._generator.manual_seed(self._seed * 100_003 + number)

    def begin_step(self, heads: Sequence[str]) -> None:
        """Forget the last step."""
        self._is_used = None
        self._gradients = {head: [None] * len(self._shared) for head in heads}

    def backward(self, losses: Losses) -> None:
        """Add each head's gradients to its own sums: projecting parts would not be the same as projecting the step."""
        for position, (head, loss) in enumerate(losses.items()):
            sums = self._gradients[head]
            # Torch adds to what it finds there, in place, and frees each parameter's part before it computes the next one's.
            for parameter, total in zip(self._shared, sums, strict=True):
                parameter.grad = total
            loss.backward(retain_graph=position + 1 < len(losses), inputs=[*self._shared, *self._own[head]])
            for index, parameter in enumerate(self._shared):
                sums[index], parameter.grad = parameter.grad, None

    def pending(self) -> list[torch.Tensor]:
        """Return which parameters have gradients, and the heads' sums: zeros where this worker has none, but another one may."""
        every = list(self._gradients.values())
        self._is_used = torch.tensor([float(any(sums[index] is not None for sums in every)) for index in range(len(self._shared))])
        filled = [
            [torch.zeros_like(parameter) if total is None else total for parameter, total in zip(self._shared, sums, strict=True)]
            for sums in every
        ]
        self._gradients = {head: list(sums) for head, sums in zip(self._gradients, filled, strict=True)}
        return [self._is_used, *(total for sums in filled for total in sums)]

    def finish_step(self, losses: Losses, counts: Mapping[str, int]) -> torch.Tensor:
        """Project, and give the shared parameters the sum."""
        heads = list(self._gradients)
        if self._shared:
            orders = [torch.randperm(len(heads), generator=self._generator).tolist() for _ in heads]
            weights = projection_weights(self._gramian(), orders).tolist()
            for index, parameter in enumerate(self._shared):
                parameter.grad = self._weighed(index, weights)
        self._gradients = {}
        return super().finish_step(losses, counts)

    def _gramian(self) -> torch.Tensor:
        """Return the dot products of the heads' gradients, (heads, heads), float64, on the CPU."""
        every = list(self._gradients.values())
        gramian = torch.zeros(len(every), len(every), dtype=torch.float64)
        for (row, ours), (column, theirs) in combinations_with_replacement(enumerate(every), 2):
            # Parameter by parameter: a stack of the heads' vectors would be as many copies again.
            products = [
                torch.dot(one.flatten(), other.flatten())
                for one, other in zip(ours, theirs, strict=True)
                if one is not None and other is not None
            ]
            if products:
                gramian[row, column] = gramian[column, row] = torch.stack(products).double().sum().cpu()
        return gramian

    def _weighed(self, index: int, weights: Sequence[float]) -> torch.Tensor | None:
        """Sum the heads' gradients of one parameter into the first of them, and let go of the others."""
        found = [(weight, sums[index]) for weight, sums in zip(weights, self._gradients.values(), strict=True)]
        for sums in self._gradients.values():
            sums[index] = None
        known = [(weight, gradient) for weight, gradient in found if gradient is not None]
        if not known or (self._is_used is not None and not self._is_used[index]):
            return None
        (weight, total), *others = known
        total.mul_(weight)
        for weight, gradient in others:
            total.add_(gradient, alpha=weight)
        return total


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
