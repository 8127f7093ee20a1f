"""Trains one model: batches, optimiser, schedule, early stopping; the best epoch is kept.

It does not know Ray, files of a search, or how the inputs were made (`inputs`). Stopped after any epoch and restored, it goes
on as if it had never stopped: every epoch has a seed of its own.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from training.device import choose_precision, to_device
from training.errors import TuningError
from training.inputs import Inputs, labels_of, plan_batches
from training.loss import head_loss, normalise_weights, total_loss
from training.metrics import HeadMetrics, joint_accuracy, majority_class, measure_head, selection_score
from training.model import TwoHeadBert
from training.optimiser import parameter_groups, schedule
from training.prefix import load_trainable_state, rest_frozen, trainable_state
from training.settings import FitSettings

_TENSORS_FILE = "fit.safetensors"
_FACTS_FILE = "fit.json"
# Several times as many tokens as in training fit into a batch that keeps no activations for the backward pass.
_EVALUATION_FACTOR = 4


class DivergedError(TuningError):
    """The loss became NaN or infinite."""


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
    """

    loss_weights: Mapping[str, float]
    class_weights: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    score_weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training texts brought.

    Attributes:
        number: From 1.
        loss: Mean training loss a batch.
        score: Selection score on the validation texts.
        best_score: The best so far, this epoch included.
        best_number: The epoch it was reached in.
        metrics: Head → its validation metrics in this epoch.
        best_metrics: The same in the best epoch.
        joint_accuracy: Share of validation texts with all heads right in this epoch.
        is_last: Nothing will follow: the epochs or the patience are used up.
    """

    number: int
    loss: float
    score: float
    best_score: float
    best_number: int
    metrics: dict[str, dict[str, float]]
    best_metrics: dict[str, dict[str, float]]
    joint_accuracy: float
    is_last: bool


class Fit:
    """One training, epoch by epoch.

    Args:
        model: Trained in place; only parameters that require gradients.
        training: Texts to learn from.
        validation: Texts that choose the epoch.
        settings: See `FitSettings`.
        objective: Weights of losses and scores.
        device: Where to compute.
    """

    def __init__(
        self, model: TwoHeadBert, training: Fold, validation: Fold, settings: FitSettings, objective: Objective, device: torch.device
    ) -> None:
        nn.Module.to(model, device)
        self.model = model
        self._training, self._validation = training, validation
        self._settings = settings
        self._device = device
        self._loss_weights = normalise_weights(objective.loss_weights)
        self._class_weights = {head: torch.from_numpy(weights).to(device) for head, weights in objective.class_weights.items()}
        self._score_weights = objective.score_weights
        self._classes = {str(head["name"]): len(head["classes"]) for head in model.config.heads}
        self._majority = {head: majority_class(training.labels[head], count) for head, count in self._classes.items()}
        self._optimiser = torch.optim.AdamW(parameter_groups(model, settings))
        self._base_rates = [float(group["lr"]) for group in self._optimiser.param_groups]
        self._precision = choose_precision(settings.precision, device)
        if settings.gradient_checkpointing:
            encoder: Any = model.encoder
            encoder.activation_checkpointing_enable()
        self._last: Epoch | None = None
        self._best_state = trainable_state(model)

    def epochs(self) -> Iterator[Epoch]:
        """Train and yield after each epoch; goes on where `restore` left off.

        Raises:
            DivergedError: The loss is no longer a number.
        """
        while self._last is None or not self._last.is_last:
            self._last = self._epoch(self._last.number + 1 if self._last else 1)
            yield self._last

    @property
    def best_state(self) -> dict[str, torch.Tensor]:
        """Trained parameters of the best epoch, by name."""
        return self._best_state

    def _epoch(self, number: int) -> Epoch:
        seed = self._settings.seed * 100_003 + number
        torch.manual_seed(seed)
        loss = self._train(number, np.random.default_rng(seed))
        predicted = {
            head: logits.argmax(axis=1)
            for head, logits in predict_logits(self.model, self._validation.inputs, self._settings.batch_tokens).items()
        }
        metrics = self._measure(predicted)
        score = selection_score(metrics, self._score_weights)
        figures = {head: one.to_dict() for head, one in metrics.items()}
        is_better = self._last is None or score > self._last.best_score
        if is_better:
            self._best_state = trainable_state(self.model)
        best = (
            (score, number, figures)
            if is_better or self._last is None
            else (self._last.best_score, self._last.best_number, self._last.best_metrics)
        )
        is_last = number >= self._settings.epochs or number - best[1] >= self._settings.patience
        joint = joint_accuracy(self._validation.labels, predicted)
        return Epoch(number, loss, score, best[0], best[1], figures, best[2], joint, is_last)

    def _measure(self, predicted: Mapping[str, NDArray[np.int64]]) -> dict[str, HeadMetrics]:
        truth = self._validation.labels
        return {head: measure_head(truth[head], predicted[head], count, self._majority[head]) for head, count in self._classes.items()}

    def _train(self, number: int, generator: np.random.Generator) -> float:
        settings = self._settings
        self.model.train()
        rest_frozen(self.model)
        batches = plan_batches(self._training.inputs.lengths, settings.batch_tokens, settings.batch_texts, generator)
        losses = []
        for position, indices in enumerate(batches):
            # By share of the epoch, not by steps: their number differs a little from epoch to epoch.
            self._set_rates((number - 1 + position / len(batches)) / settings.epochs)
            losses.append(self._backward(indices))
            if (position + 1) % settings.gradient_accumulation == 0 or position + 1 == len(batches):
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_gradient_norm)
                self._optimiser.step()
                self._optimiser.zero_grad(set_to_none=True)
        loss = float(torch.stack(losses).mean())
        if not math.isfinite(loss):
            raise DivergedError(f"epoch {number}: the training loss is {loss}", "a lower learning rate or a longer warm-up keeps it finite")
        return loss

    def _backward(self, indices: NDArray[np.int64]) -> torch.Tensor:
        batch = to_device(self._training.inputs.batch(indices), self._device)
        labels = {head: values.to(self._device) for head, values in labels_of(dict(self._training.labels), indices).items()}
        with self._precision:
            logits = self.model(**batch).logits
        losses = {head: head_loss(logits[head], labels[head], self._class_weights.get(head)) for head in logits}
        loss = total_loss(losses, self._loss_weights)
        (loss / self._settings.gradient_accumulation).backward()
        return loss.detach()

    def _set_rates(self, progress: float) -> None:
        factor = schedule(progress, self._settings.warmup_fraction)
        for group, rate in zip(self._optimiser.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor

    def save(self, folder: Path) -> None:
        """Write what `restore` needs: trained and best parameters, optimiser moments, and where we are.

        After the last epoch only the best parameters are written: nothing will go on from the others.
        """
        tensors = {f"best/{name}": tensor for name, tensor in self._best_state.items()}
        steps: dict[str, float] = {}
        if self._last is None or not self._last.is_last:
            tensors |= {f"current/{name}": tensor for name, tensor in trainable_state(self.model).items()}
            moments, steps = self._moments()
            tensors |= moments
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, folder / _TENSORS_FILE)
        facts = {"last": asdict(self._last) if self._last else None, "steps": steps}
        (folder / _FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")

    def _moments(self) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Return AdamW's moments, `exp_avg/NAME` and `exp_avg_sq/NAME`, and its steps by name."""
        tensors: dict[str, torch.Tensor] = {}
        steps: dict[str, float] = {}
        names: dict[torch.Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        for parameter, moments in self._optimiser.state.items():
            name = names[parameter]
            tensors |= {f"{key}/{name}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
            steps[name] = float(moments["step"])
        return tensors, steps

    def restore(self, folder: Path) -> None:
        """Continue from what `save` wrote for the same model and settings."""
        tensors = load_file(folder / _TENSORS_FILE, device=str(self._device))
        facts = json.loads((folder / _FACTS_FILE).read_text(encoding="utf-8"))
        load_trainable_state(self.model, _under("current/", tensors))
        self._best_state = _under("best/", tensors)
        self._last = Epoch(**facts["last"]) if facts["last"] else None
        parameters = dict(self.model.named_parameters())
        for name, step in facts["steps"].items():
            self._optimiser.state[parameters[name]] = {
                "step": torch.tensor(step),
                "exp_avg": tensors[f"exp_avg/{name}"],
                "exp_avg_sq": tensors[f"exp_avg_sq/{name}"],
            }


def best_state_in(folder: Path) -> dict[str, torch.Tensor]:
    """Read the best epoch's trained parameters from a folder written by `Fit.save`."""
    return _under("best/", load_file(folder / _TENSORS_FILE))


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def predict_logits(model: TwoHeadBert, inputs: Inputs, batch_tokens: int) -> dict[str, NDArray[np.float32]]:
    """Compute all heads' logits for all texts, without dropout.

    Returns:
        Head → (texts, classes), float32, in the order of the inputs.
    """
    device = next(model.parameters()).device
    model.eval()
    rows: dict[str, NDArray[np.float32]] = {}
    for indices in plan_batches(inputs.lengths, batch_tokens * _EVALUATION_FACTOR, batch_texts=512):
        with torch.inference_mode():
            logits = model(**to_device(inputs.batch(indices), device)).logits
        for head, values in logits.items():
            table = rows.setdefault(head, np.zeros((len(inputs.lengths), values.shape[1]), np.float32))
            table[indices] = values.float().cpu().numpy()
    return rows
