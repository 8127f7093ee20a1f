"""Many candidates for one head, trained together on one pass over frozen features, each as if it were alone.

While the encoder is frozen, heads have nothing in common: each is searched by itself, and its loss weight cannot matter. Every candidate
is trained once for each fold, on the texts of all others, and once on all texts. What the folds' trainings answer about texts they have not
seen chooses the candidate and its epoch; the training on all texts at that epoch is the result. So the validation texts stay unseen, and
the best of many candidates flatters less: it is judged on several times as many texts. A candidate's trainings read the same numbers, so
that their first layers are one matrix. It does not know the encoder, who proposes candidates, or Ray.

Sources: Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization (AdamW); Wang et al. 2021, HFTA (arXiv 2102.02344), for training
models of one shape as one; Stone 1974, Cross-validatory choice;
Jamieson and Talwalkar 2016, Non-stochastic Best Arm Identification and Hyperparameter Optimization, for halvings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.optim.adamw import adamw

from training.data.labels import MISSING
from training.fit_settings import ClassWeighting, FitSettings, HeadLoss
from training.fitting.loss import class_weights, loss_count
from training.fitting.optimiser import schedule
from training.judging.calibration import measured
from training.judging.metrics import head_score, majority_class
from training.network.model import Head
from training.network.ordinal import class_log_probabilities
from training.network.products import linear
from training.search_settings import Metric

_FIRST_DECAY, _SECOND_DECAY, _EPSILON = 0.9, 0.999, 1e-8
_NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class Candidate:
    """One way to make a head; see `HeadSettings` and `FitSettings` for what each means."""

    hidden_size: int
    dropout: float
    loss: HeadLoss
    learning_rate: float
    class_weighting: ClassWeighting = "none"


@dataclass(frozen=True)
class Features:
    """Frozen features of the training texts that have a label for the head.

    Attributes:
        pooled: (texts, width), float32.
        labels: Class indices, (texts,), int64.
        folds: The fold of each text, (texts,), int64, from 0.
        beside: What is added to every candidate's logits, (texts, classes), float32, or nothing.
    """

    pooled: torch.Tensor
    labels: torch.Tensor
    folds: torch.Tensor
    beside: torch.Tensor | None = None


@dataclass(frozen=True)
class Question:
    """The head all candidates are for.

    Attributes:
        name: Of the head.
        classes: How many.
        is_ordered: They have a natural order.
        metric: What a candidate is judged by.
    """

    name: str
    classes: int
    is_ordered: bool = False
    metric: Metric = "macro_f1"


@dataclass
class Outcome:
    """How a candidate did.

    Attributes:
        candidate: Which.
        score: Its best on texts that were held out, over all folds together.
        epoch: When that was.
        epochs: How many it trained.
        state: Its parameters then, trained on all texts, named as in `Head`.
    """

    candidate: Candidate
    score: float = -np.inf
    epoch: int = 0
    epochs: int = 0
    state: dict[str, torch.Tensor] = field(default_factory=dict)


def known(pooled: torch.Tensor, labels: NDArray[np.int64], folds: NDArray[np.int64], beside: NDArray[np.float32] | None = None) -> Features:
    """Leave the texts out that have no label."""
    chosen = torch.from_numpy(np.flatnonzero(labels != MISSING))
    added = None if beside is None else torch.tensor(beside)[chosen]
    return Features(pooled[chosen].float(), torch.from_numpy(labels)[chosen], torch.from_numpy(folds)[chosen], added)


def train_population(
    candidates: Sequence[Candidate], question: Question, features: Features, settings: FitSettings, halvings: Sequence[int] = ()
) -> list[Outcome]:
    """Train candidates for one head on frozen features.

    Args:
        candidates: Of any shapes.
        question: The head.
        features: Texts to learn from, in folds.
        settings: Epochs, patience, `batch_texts`, warm-up, weight decay, gradient norm and seed; the rest is the candidates' own.
        halvings: After each of these epochs the worse half of the candidates of each shape ends, with what it has.

    Returns:
        One outcome a candidate, in their order. Alone or with others a candidate's is the same up to float noise, as long as it trains.
    """
    outcomes = [Outcome(candidate) for candidate in candidates]
    shapes = {(one.candidate.hidden_size, one.candidate.loss) for one in outcomes}
    for hidden_size, loss in sorted(shapes):
        alike = [one for one in outcomes if (one.candidate.hidden_size, one.candidate.loss) == (hidden_size, loss)]
        _Shape(alike, question, features, settings).train(halvings)
    return outcomes


class _Shape:
    """Candidates of one shape, batch by batch side by side.

    Training f leaves out fold f; the last leaves out nothing.
    """

    def __init__(self, outcomes: Sequence[Outcome], question: Question, features: Features, settings: FitSettings) -> None:
        self._question, self._features, self._settings = question, features, settings
        self._held_out = [torch.nonzero(features.folds == fold).flatten() for fold in features.folds.unique()]
        # (trainings, texts): whether a training learns from a text.
        self._learns = torch.ones(len(self._held_out) + 1, len(features.labels))
        for training, texts in enumerate(self._held_out):
            self._learns[training, texts] = 0.0
        first = outcomes[0].candidate
        torch.manual_seed(settings.seed)
        head = Head(features.pooled.shape[1], question.classes, first.hidden_size, 0.0, first.loss)
        if features.beside is not None:
            head.say_nothing()
        self._loss = first.loss
        # What each layer reads, which dropout thins.
        self._widths = [features.pooled.shape[1], *([first.hidden_size] if first.hidden_size else [])]
        labels = features.labels.numpy()
        ways = [one.candidate.class_weighting for one in outcomes]
        weights = [torch.from_numpy(class_weights(way, labels, question.classes, first.loss)) for way in ways]
        self._living = [_Trained(one, head, len(self._learns), own) for one, own in zip(outcomes, weights, strict=True)]
        self._majority = majority_class(labels, question.classes)

    def train(self, halvings: Sequence[int]) -> None:
        settings = self._settings
        if self._features.beside is not None:
            # It may be best to add nothing.
            self._judge(0)
        for number in range(1, settings.epochs + 1):
            self._epoch(number)
            self._judge(number)
            left = [one for one in self._living if number - one.outcome.epoch < settings.patience]
            if number in halvings:
                better = sorted(left, key=lambda one: -one.outcome.score)[: (len(left) + 1) // 2]
                left = [one for one in left if one in better]
            if not left:
                return
            self._living = left

    def _epoch(self, number: int) -> None:
        settings = self._settings
        generator = torch.Generator().manual_seed(settings.seed * 100_003 + number)
        order = torch.randperm(len(self._features.labels), generator=generator)
        batches = order.split(settings.batch_texts)
        for position, indices in enumerate(batches):
            factor = schedule((number - 1 + position / len(batches)) / settings.epochs, settings.warmup_fraction)
            self._step(indices, factor, generator)

    def _step(self, indices: torch.Tensor, factor: float, generator: torch.Generator) -> None:
        labels, learns = self._features.labels[indices], self._learns[:, indices]
        # The same noise for all, each with its own threshold: so it does not matter who else is there.
        noises = [torch.rand((len(indices), width), generator=generator) for width in self._widths]
        pooled = self._features.pooled[indices]
        logits = torch.stack([one.logits(pooled, one.parameters, noises) for one in self._living])
        logits = self._finished(logits, indices)
        repeated = labels.expand(*logits.shape[:2], -1).reshape(-1)
        losses = functional.cross_entropy(logits.flatten(0, 2), repeated, reduction="none").view(logits.shape[:3])
        # (candidates, 1, texts): each candidate weighs classes in its own way, and all its trainings in the same.
        weights = torch.stack([one.class_weights[labels] for one in self._living])[:, None]
        # Each training's mean is over its own texts of the batch.
        shares = learns / torch.stack([loss_count(labels[own > 0], self._question.classes, self._loss) for own in learns])[:, None]
        # One sum over all trainings: none of their parameters is in another's loss.
        summed = (losses * weights * shares).sum()
        gradients = torch.autograd.grad(summed, [value for one in self._living for value in one.parameters.values()])
        each = len(gradients) // len(self._living)
        for place, one in enumerate(self._living):
            one.update(gradients[place * each : (place + 1) * each], factor, self._settings)

    def _finished(self, logits: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Turn what output layers say about texts, (..., texts, out), into logits, (..., texts, classes)."""
        logits = class_log_probabilities(logits) if self._loss == "corn" else logits
        return logits if self._features.beside is None else logits + self._features.beside[texts]

    @torch.no_grad()
    def _judge(self, number: int) -> None:
        found = torch.zeros(len(self._living), len(self._features.labels), self._question.classes)
        for training, texts in enumerate(self._held_out):
            pooled = self._features.pooled[texts]
            for place, one in enumerate(self._living):
                own = {name: value[training, None] for name, value in one.parameters.items()}
                found[place, texts] = self._finished(one.logits(pooled, own)[0], texts)
        for one, logits in zip(self._living, found.numpy(), strict=True):
            one.note(number, self._score(logits))

    def _score(self, logits: NDArray[np.float32]) -> float:
        if not np.isfinite(logits).all():
            return -np.inf
        question, labels = self._question, self._features.labels.numpy()
        found = measured(labels, logits, self._majority, question.metric, is_ordered=question.is_ordered)
        return head_score(found.to_dict(), question.metric)


class _Trained:
    """A candidate's trainings, of which the parameters are (trainings, ...), side by side; its classes weigh (classes,)."""

    def __init__(self, outcome: Outcome, head: Head, trainings: int, weights: torch.Tensor) -> None:
        self.outcome, self.class_weights = outcome, weights
        self.parameters = {
            name: value.detach().repeat(trainings, *[1] * value.dim()).requires_grad_() for name, value in head.named_parameters()
        }
        self._moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in self.parameters.items()}
        self._steps = 0

    def logits(self, pooled: torch.Tensor, parameters: Mapping[str, torch.Tensor], noises: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """Map features of texts to (trainings, texts, out); with noise for what each layer reads, with dropout."""
        rate = self.outcome.candidate.dropout
        kept = [(noise >= rate) / (1.0 - rate) for noise in noises] if rate else []
        first = "hidden" if "hidden.weight" in parameters else "output"
        weight, bias = parameters[f"{first}.weight"], parameters[f"{first}.bias"]
        read = pooled * kept[0] if kept else pooled
        # The trainings' weights are one matrix.
        values: torch.Tensor = linear(read, weight.flatten(0, 1), bias.flatten()).unflatten(1, bias.shape).transpose(0, 1)
        if first == "output":
            return values
        hidden = functional.gelu(values)
        hidden = hidden * kept[1] if kept else hidden
        return torch.baddbmm(parameters["output.bias"][:, None], hidden, parameters["output.weight"].transpose(1, 2))

    @torch.no_grad()
    def update(self, gradients: Sequence[torch.Tensor], factor: float, settings: FitSettings) -> None:
        """Take one step of AdamW, the gradient of each training no longer than allowed."""
        # The gradient of a transposed matrix has a transposed gradient.
        own = {name: gradient.contiguous() for name, gradient in zip(self.parameters, gradients, strict=True)}
        lengths = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in own.values()])
        norms = torch.linalg.vector_norm(lengths, dim=0)
        scales = (settings.max_gradient_norm / (norms + _NORM_EPSILON)).clamp(max=1.0)
        for gradient in own.values():
            gradient.mul_(scales.view(-1, *[1] * (gradient.dim() - 1)))
        # Biases do not decay.
        matrices = [name for name, value in own.items() if value.dim() > 2]  # (trainings, out, in)
        biases = [name for name in own if name not in matrices]
        for names, decay in ((matrices, settings.weight_decay), (biases, 0.0)):
            adamw(
                [self.parameters[name] for name in names],
                [own[name] for name in names],
                [self._moments[name][0] for name in names],
                [self._moments[name][1] for name in names],
                [],
                [torch.tensor(float(self._steps)) for _ in names],
                fused=True,
                amsgrad=False,
                beta1=_FIRST_DECAY,
                beta2=_SECOND_DECAY,
                lr=self.outcome.candidate.learning_rate * factor,
                weight_decay=decay,
                eps=_EPSILON,
                maximize=False,
            )
        self._steps += 1

    def note(self, number: int, score: float) -> None:
        """Keep what the training on all texts has, where this epoch is the best."""
        self.outcome.epochs = number
        if score > self.outcome.score:
            self.outcome.score, self.outcome.epoch = score, number
            self.outcome.state = {name: value[-1].detach().clone() for name, value in self.parameters.items()}
