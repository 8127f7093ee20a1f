"""Dynamic weight average: a head whose loss falls more slowly than the others' weighs more in the next epoch.

The weights are the number of heads times softmax(ratio / temperature), the ratio being a head's mean loss in the last epoch over that in
the one before; in the first two epochs they are 1. A head without labels in one of the two epochs, or without loss, has the ratio 1.

Source: Liu, Johns and Davison 2019, End-to-End Multi-Task Learning with Attention.
"""

from collections.abc import Mapping, Sequence

import torch

from training.fitting.balancing.balancer import Balancer, Losses

_TEMPERATURE = 2.0


class DynamicAverage(Balancer):
    """Weights from the loss history; means are over labelled texts, so batches may differ in how many they have.

    Args:
        heads: Their names.
        device: Where the losses are.
    """

    def __init__(self, heads: Sequence[str], device: torch.device) -> None:
        super().__init__()
        self._heads = list(heads)
        self._device = device
        # Mean losses of the last two epochs, (epochs, heads); NaN where a head had no label.
        self._history = torch.zeros(0, len(heads), dtype=torch.float64)
        self._clear()

    def _clear(self) -> None:
        self._sums = {head: torch.zeros((), device=self._device, dtype=torch.float64) for head in self._heads}
        self._counts = dict.fromkeys(self._heads, 0)

    def factors(self, losses: Losses) -> torch.Tensor:
        """Return the weights of this epoch."""
        if len(self._history) < 2:
            return super().factors(losses)
        ratios = torch.nan_to_num(self._history[-1] / self._history[-2], nan=1.0, posinf=1.0)
        weights = len(self._heads) * torch.softmax(ratios / _TEMPERATURE, dim=0)
        return weights[[self._heads.index(head) for head in losses]].to(self._device, torch.float32)

    def finish_step(self, losses: Losses, counts: Mapping[str, int]) -> torch.Tensor:
        """Note the losses."""
        for head, loss in losses.items():
            self._sums[head] += loss.double() * counts[head]
            self._counts[head] += counts[head]
        return super().finish_step(losses, counts)

    def finish_epoch(self) -> None:
        """Turn the noted losses into means."""
        means = [float(self._sums[head]) / count if (count := self._counts[head]) else torch.nan for head in self._heads]
        self._history = torch.cat([self._history, torch.tensor([means], dtype=torch.float64)])[-2:]
        self._clear()

    def state(self) -> dict[str, torch.Tensor]:
        """Return the history."""
        return {"history": self._history}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take a history over."""
        self._history = state["history"].cpu()
