"""One optimiser step: its batches in parts, the heads' losses balanced, gradients summed over workers.

A head's loss in a step is the mean over all its labelled texts in that step, however many batches, parts and workers the step is made
of: every part's sum is divided by the count of the whole step. A head without a label in a step gets no gradient at all, and AdamW
passes over parameters without one: neither momentum nor weight decay moves it. It does not know epochs or validation.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.data.labels import MISSING
from training.fit_settings import FitSettings, HeadLoss
from training.fitting.balancing.choose import choose_balancer
from training.fitting.device import choose_precision, to_device
from training.fitting.loss import loss_count, normalise_weights, summed_loss
from training.fitting.optimiser import balancing_group, parameter_groups, schedule
from training.fitting.workers import Workers, share_of
from training.network.inputs import Inputs, labels_of
from training.network.model import TwoHeadBert
from training.search_settings import Metric

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """Texts and what is known about them.

    Attributes:
        inputs: What the model reads.
        labels: Head → class indices, (texts,); -1 where there is no label.
    """

    inputs: Inputs
    labels: Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Objective:
    """What the losses and scores of the heads are worth.

    Attributes:
        loss_weights: Head → weight of its loss; normalised here.
        class_weights: Head → (classes,), for heads that weigh classes.
        score_weights: Head → weight in the selection score; empty means equal.
        score_metrics: Head → its metric in the selection score; macro-F1 for a head that is left out.
        ordered: Heads whose classes have a natural order.
    """

    loss_weights: Mapping[str, float]
    class_weights: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    score_weights: Mapping[str, float] = field(default_factory=dict)
    score_metrics: Mapping[str, Metric] = field(default_factory=dict)
    ordered: frozenset[str] = frozenset()


class Step:
    """Takes the steps of a training.

    Args:
        model: Trained in place, where it is; only parameters that require gradients.
        training: Texts to learn from.
        settings: See `FitSettings`.
        objective: Weights of losses and classes.
        workers: Who computes the step together.
    """

    def __init__(self, model: TwoHeadBert, training: Fold, settings: FitSettings, objective: Objective, workers: Workers) -> None:
        self._model, self._training, self._settings, self._workers = model, training, settings, workers
        self._device = next(model.parameters()).device
        self._class_weights = {head: torch.from_numpy(weights).to(self._device) for head, weights in objective.class_weights.items()}
        self._losses: dict[str, HeadLoss] = {str(head["name"]): head.get("loss", "softmax") for head in model.config.heads}
        self._classes = {str(head["name"]): len(head["classes"]) for head in model.config.heads}
        self.balancer = choose_balancer(model, settings, normalise_weights(objective.loss_weights), self._device)
        own = list(self.balancer.parameters.values())
        # Fused: a fifth of a step of all layers on the CPU, word embeddings among them, was AdamW's otherwise.
        self._optimiser = torch.optim.AdamW(parameter_groups(model, settings) + balancing_group(own, settings), fused=True)
        self._base_rates = [float(group["lr"]) for group in self._optimiser.param_groups]
        self._precision = choose_precision(settings.precision, self._device)

    def set_rates(self, progress: float) -> None:
        """Set the learning rates for a share of the training done, 0 to 1."""
        factor = schedule(progress, self._settings.warmup_fraction)
        for group, rate in zip(self._optimiser.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor

    def take(self, batches: Sequence[Indices]) -> torch.Tensor:
        """Make one step over some batches.

        Returns:
            The balanced loss, the same on every worker.
        """
        counts = self._counts(np.concatenate(batches))
        if not counts:
            return torch.zeros((), device=self._device)
        self.balancer.begin_step(tuple(counts))
        losses = {head: torch.zeros((), device=self._device) for head in counts}
        for part in self._parts(batches):
            shares = self._shares(part, counts)
            self.balancer.backward(shares)
            for head, share in shares.items():
                losses[head] += share.detach()
        self._sum_over_workers(losses)
        balanced = self.balancer.finish_step(losses, counts)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.max_gradient_norm)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return balanced

    def _counts(self, indices: Indices) -> dict[str, int]:
        """Count what each head's loss is a mean over, for the heads that have any label."""
        labels = labels_of(dict(self._training.labels), indices)
        return {
            head: int(loss_count(labels[head], classes, self._losses[head]))
            for head, classes in self._classes.items()
            if bool((labels[head] != MISSING).any())
        }

    def _parts(self, batches: Sequence[Indices]) -> Iterator[Indices]:
        """Divide batches between workers, and this worker's shares into parts; empty ones are left out."""
        for batch in batches:
            parts = np.array_split(share_of(batch, self._workers), self._settings.micro_batches)
            yield from (part for part in parts if len(part))

    def _shares(self, indices: Indices, counts: Mapping[str, int]) -> dict[str, torch.Tensor]:
        batch = to_device(self._training.inputs.batch(indices), self._device)
        labels = {head: values.to(self._device) for head, values in labels_of(dict(self._training.labels), indices).items()}
        with self._precision:
            logits = self._model(**batch).logits
        return {head: summed_loss(logits[head], labels[head], self._class_weights.get(head)) / count for head, count in counts.items()}

    def _sum_over_workers(self, losses: Mapping[str, torch.Tensor]) -> None:
        if self._workers.count == 1:
            return
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        # A worker without a text in a small batch has no gradients, but must send something for those the others have.
        is_used = torch.tensor([0.0 if parameter.grad is None else 1.0 for parameter in parameters])
        self._workers.sum([is_used])
        used = [parameter for parameter, count in zip(parameters, is_used.tolist(), strict=True) if count]
        for parameter in used:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradients = [parameter.grad for parameter in used if parameter.grad is not None]
        self._workers.sum([*gradients, *self.balancer.pending(), *losses.values()])

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Return what the next step depends on beside the model's parameters.

        Returns:
            AdamW's moments (`exp_avg/NAME`, `exp_avg_sq/NAME`), the balancer's learned numbers (`learned/NAME`) and its
            other state (`balancing/NAME`); and AdamW's steps by name.
        """
        tensors = {f"balancing/{name}": tensor for name, tensor in self.balancer.state().items()}
        tensors |= {f"learned/{name}": parameter.detach().clone() for name, parameter in self.balancer.parameters.items()}
        names: dict[torch.Tensor, str] = {parameter: name for name, parameter in self._parameters().items()}
        steps: dict[str, float] = {}
        for parameter, moments in self._optimiser.state.items():
            name = names[parameter]
            tensors |= {f"{key}/{name}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
            steps[name] = float(moments["step"])
        return tensors, steps

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor], steps: Mapping[str, float]) -> None:
        """Continue from a `state`."""
        self.balancer.load(under("balancing/", tensors))
        for name, tensor in under("learned/", tensors).items():
            self.balancer.parameters[name].copy_(tensor)
        parameters = self._parameters()
        for name, step in steps.items():
            parameter = parameters[name]
            moments = {key: tensors[f"{key}/{name}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}
            self._optimiser.state[parameter] = {"step": torch.tensor(step, device=parameter.device), **moments}

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._model.named_parameters()) | {f"learned/{name}": one for name, one in self.balancer.parameters.items()}


def under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Take the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
