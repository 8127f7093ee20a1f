"""Trains one model: batches, optimiser, schedule, early stopping; the best epoch is kept.

It does not know Ray, files of a search, or how the inputs were made (`inputs`). Stopped after any epoch and restored, it goes
on as if it had never stopped: every epoch has a seed of its own.

Sources, for averages of weights: Izmailov et al. 2018, Averaging Weights Leads to Wider Optima and Better Generalization; of the latest
ones: Kaddour 2022, Stop Wasting My Time! (LAWA).
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from training.errors import TuningError
from training.fit_settings import FitSettings
from training.fitting.predict import predict_logits
from training.fitting.step import Fold as Fold
from training.fitting.step import Objective as Objective
from training.fitting.step import Step, under
from training.fitting.workers import OneWorker, Workers
from training.judging.calibration import measured
from training.judging.metrics import HeadMetrics, head_scores, joint_accuracy, majority_class, selection_score
from training.network.inputs import plan_batches
from training.network.model import TwoHeadBert
from training.network.prefix import load_trainable_state, recompute_layers, rest_frozen, trainable_state

_TENSORS_FILE = "fit.safetensors"
_FACTS_FILE = "fit.json"
_SEED_STRIDE = 1_000_000_007
# The last epoch counts a half, the one before it a quarter, and so on.
_AVERAGE_WEIGHT = 0.5


class DivergedError(TuningError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training texts brought.

    Attributes:
        number: From 1; 0 is a model that could answer before it trained.
        loss: Mean training loss a step, balanced as the settings say; none in epoch 0.
        score: Selection score on the validation texts.
        best_score: The best so far, this epoch and its average included.
        best_number: The epoch it was reached in.
        metrics: Head → its validation metrics in this epoch.
        best_metrics: The same in the best epoch.
        joint_accuracy: Share of validation texts with all heads right in this epoch.
        is_last: Nothing will follow: the epochs or the patience are used up.
        average_score: What the average of the last epochs' weights has; nothing where none was made.
        trained_score: The best that this training brought, without what it began with; nothing in epoch 0.
        trained_number: The epoch it was reached in.
    """

    number: int
    loss: float | None
    score: float
    best_score: float
    best_number: int
    metrics: dict[str, dict[str, float]]
    best_metrics: dict[str, dict[str, float]]
    joint_accuracy: float
    is_last: bool
    average_score: float | None = None
    trained_score: float | None = None
    trained_number: int = 0


@dataclass(frozen=True)
class _Judged:
    """What an epoch's model is worth; `Epoch` has the same and says what each is."""

    number: int
    score: float
    metrics: dict[str, dict[str, float]]
    joint_accuracy: float


class Fit:
    """One training, epoch by epoch.

    Args:
        model: Trained in place; only parameters that require gradients.
        training: Texts to learn from.
        validation: Texts that choose the epoch.
        settings: See `FitSettings`.
        objective: Weights of losses and scores.
        device: Where to compute.
        workers: Who trains together; each has the same model and the same texts.

    Attributes:
        best_logits: Head → what the best epoch judged here answers about the validation texts, (texts, classes).
        stop_after: Train so many epochs, whatever they score, and end with the last one; null chooses by the validation texts.
        is_begun: The model can answer already, which is epoch 0; training that never gets better ends with that.
    """

    def __init__(
        self,
        model: TwoHeadBert,
        training: Fold,
        validation: Fold,
        settings: FitSettings,
        objective: Objective,
        device: torch.device,
        workers: Workers | None = None,
    ) -> None:
        nn.Module.to(model, device)
        self.model = model
        self._training, self._validation = training, validation
        self._settings, self._objective = settings, objective
        self._device = device
        self._workers = workers or OneWorker()
        classes = {str(head["name"]): len(head["classes"]) for head in model.config.heads}
        self._majority = {head: majority_class(training.labels[head], count) for head, count in classes.items()}
        if settings.gradient_checkpointing:
            recompute_layers(model)
        self._step = Step(model, training, settings, objective, self._workers)
        self.is_begun = False
        self.stop_after: int | None = None
        self.best_logits: Mapping[str, NDArray[np.float32]] = {}
        self._last: Epoch | None = None
        self._best: _Judged | None = None
        # Score and number of the best epoch trained here. What a model began with is not waited for: heads found alone fall when layers
        # begin to move under them, and come back some epochs later.
        self._trained: tuple[float | None, int] = None, 0
        self._best_state = trainable_state(model)
        # Epochs of trainings that this one goes on from.
        self._before = 0
        self._average: dict[str, torch.Tensor] = {}

    def epochs(self) -> Iterator[Epoch]:
        """Train and yield after each epoch; goes on where `restore` left off.

        Raises:
            DivergedError: The loss is no longer a number.
        """
        self._workers.copy_first(list(self.model.parameters()))
        if self._last is None and self.is_begun:
            self._best = found = self._judge(0)
            figures = (found.score, found.score, 0, found.metrics, found.metrics, found.joint_accuracy)
            self._last = Epoch(0, None, *figures, is_last=self.stop_after == 0)
            yield self._last
        if self._last is not None and self._last.is_last:
            # Restored after its end: whoever listens may have died before hearing of it.
            yield self._last
        while self._last is None or not self._last.is_last:
            self._last = self._epoch(self._last.number + 1 if self._last else 1)
            yield self._last

    @property
    def best_state(self) -> dict[str, torch.Tensor]:
        """Trained parameters of the best epoch, by name."""
        return self._best_state

    @property
    def evaluation_tokens(self) -> int:
        """What to give `predict_logits` as `batch_tokens`: fewer where batches had to be divided for lack of memory."""
        return max(1, self._settings.batch_tokens // self._settings.micro_batches)

    def _epoch(self, number: int) -> Epoch:
        seed = self._settings.seed * 100_003 + number
        # Workers read different texts, so their dropout must differ too.
        torch.manual_seed(seed + self._workers.rank * _SEED_STRIDE)
        loss = self._train(number, np.random.default_rng(seed))
        found = self._judge(number)
        self._compare(found)
        average_score = self._judge_average(number) if self._settings.average_epochs else None
        best, before = self._best or found, self._before
        is_last = number - before >= self._settings.epochs or number - self._trained[1] >= self._settings.patience
        if self.stop_after is not None:
            is_last = number - before >= self.stop_after
        return Epoch(
            number,
            loss,
            found.score,
            best.score,
            best.number,
            found.metrics,
            best.metrics,
            found.joint_accuracy,
            is_last,
            average_score,
            *self._trained,
        )

    def _compare(self, found: "_Judged") -> None:
        """Keep the model as it is, if it is the best so far."""
        if self._is_better(found):
            self._best, self._best_state = found, trainable_state(self.model)
        if self._trained[0] is None or found.score > self._trained[0]:
            self._trained = found.score, found.number

    def _is_better(self, found: "_Judged") -> bool:
        return self.stop_after is not None or self._best is None or found.score > self._best.score

    def _judge_average(self, number: int) -> float | None:
        """Move the average half way to the weights of this epoch, and judge it; it is the result where it is better than any epoch."""
        current = trainable_state(self.model)
        if not self._average:
            # Of one epoch alone: nothing new to judge.
            self._average = current
            return None
        for name, value in self._average.items():
            value.lerp_(current[name], _AVERAGE_WEIGHT)
        load_trainable_state(self.model, self._average)
        found = self._judge(number)
        self._compare(found)
        load_trainable_state(self.model, current)
        return found.score

    def _judge(self, number: int) -> "_Judged":
        """Score the model as it is on the validation texts."""
        logits = predict_logits(self.model, self._validation.inputs, self.evaluation_tokens, self._workers)
        if not all(np.isfinite(values).all() for values in logits.values()):
            raise _diverged(number, "an answer about a validation text is no number")
        figures = {head: one.to_dict() for head, one in self._measure(logits).items()}
        score = selection_score(head_scores(figures, self._objective.score_metrics), self._objective.score_weights)
        joint = joint_accuracy(self._validation.labels, {head: values.argmax(axis=1) for head, values in logits.items()})
        found = _Judged(number, score, figures, joint)
        if self._is_better(found):
            self.best_logits = logits
        return found

    def _measure(self, logits: Mapping[str, NDArray[np.float32]]) -> dict[str, HeadMetrics]:
        truth, objective = self._validation.labels, self._objective
        metrics = {head: objective.score_metrics.get(head, "macro_f1") for head in logits}
        return {
            head: measured(truth[head], values, self._majority[head], metrics[head], is_ordered=head in objective.ordered)
            for head, values in logits.items()
        }

    def _train(self, number: int, generator: np.random.Generator) -> float:
        settings = self._settings
        self.model.train()
        rest_frozen(self.model)
        batches = plan_batches(self._training.inputs.lengths, settings.batch_tokens, settings.batch_texts, generator)
        self._step.balancer.begin_epoch(number)
        losses = []
        for first in range(0, len(batches), settings.gradient_accumulation):
            together = batches[first : first + settings.gradient_accumulation]
            # By share of the epoch, not by steps: their number differs a little from epoch to epoch.
            self._step.set_rates((number - self._before - 1 + (first + len(together) - 1) / len(batches)) / settings.epochs)
            losses.append(self._step.take(together))
            # At once, not after a whole epoch of nonsense; the loss is the same on every worker.
            if not math.isfinite(float(losses[-1])):
                raise _diverged(number, f"the training loss is {float(losses[-1])}")
        self._step.balancer.finish_epoch()
        return float(torch.stack(losses).mean())

    def save(self, folder: Path) -> None:
        """Write what `restore` needs: trained and best parameters, the optimiser's and the balancing's state, and where we are.

        With several workers one of them is enough. After the last epoch only the best parameters are written: nothing will go on
        from the others.
        """
        tensors = {f"best/{name}": tensor for name, tensor in self._best_state.items()}
        steps: dict[str, float] = {}
        if self._last is None or not self._last.is_last:
            tensors |= {f"current/{name}": tensor for name, tensor in trainable_state(self.model).items()}
            tensors |= {f"average/{name}": tensor for name, tensor in self._average.items()}
            state, steps = self._step.state()
            tensors |= state
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, folder / _TENSORS_FILE)
        facts = {"last": asdict(self._last) if self._last else None, "steps": steps, "before": self._before}
        (folder / _FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")

    def restore(self, folder: Path) -> None:
        """Continue from what `save` wrote for the same model and settings."""
        tensors = load_file(folder / _TENSORS_FILE)
        facts = json.loads((folder / _FACTS_FILE).read_text(encoding="utf-8"))
        load_trainable_state(self.model, under("current/", tensors))
        self._best_state = under("best/", tensors)
        self._average = {name: value.to(self._device) for name, value in under("average/", tensors).items()}
        self._last, self._before = _last_epoch(facts), int(facts["before"])
        if self._last:
            self._best, self._trained = _best_of(self._last), (self._last.trained_score, self._last.trained_number)
        # Of one that has ended nothing but the best was written, and nothing else is needed.
        if not (self._last and self._last.is_last):
            self._step.load(tensors, facts["steps"])

    def begin_after(self, state: Mapping[str, torch.Tensor], last: Epoch) -> None:
        """Go on from a training of the same heads that trained fewer layers: with its best parameters, its epochs and its best score.

        Args:
            state: Its `best_state`.
            last: Its last epoch.
        """
        load_trainable_state(self.model, dict(state))
        self._best_state = trainable_state(self.model)
        self._last = replace(last, is_last=False, trained_score=None, trained_number=last.number)
        self._best, self._before, self._trained = _best_of(last), last.number, (None, last.number)


def _last_epoch(facts: Mapping[str, Any]) -> Epoch | None:
    return Epoch(**facts["last"]) if facts["last"] else None


def _best_of(last: Epoch) -> "_Judged":
    return _Judged(last.best_number, last.best_score, last.best_metrics, last.joint_accuracy)


def last_epoch_in(folder: Path) -> Epoch | None:
    """Read the last epoch from a folder written by `Fit.save`."""
    return _last_epoch(json.loads((folder / _FACTS_FILE).read_text(encoding="utf-8")))


def _diverged(epoch: int, found: str) -> DivergedError:
    return DivergedError(f"epoch {epoch}: {found}", "a lower learning rate or a longer warm-up keeps it finite")


def best_state_in(folder: Path) -> dict[str, torch.Tensor]:
    """Read the best epoch's trained parameters from a folder written by `Fit.save`."""
    return under("best/", load_file(folder / _TENSORS_FILE))
