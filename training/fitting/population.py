"""Many candidates for one head, trained together on one pass over frozen features, each as if it were alone.

While the encoder is frozen, heads have nothing in common: each is searched by itself, and its loss weight cannot matter. Every candidate
is trained once for each fold, on the texts of all others, and once on all texts. What the folds' trainings answer about texts they have not
seen chooses the candidate and its epoch; the training on all texts at that epoch is the result. So the validation texts stay unseen, and
the best of many candidates flatters less: it is judged on several times as many texts. Trainings of one shape are stacked, so that one
matrix product serves all of them. It does not know the encoder, who proposes candidates, or Ray.

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
from training.fit_settings import FitSettings, HeadLoss
from training.fitting.loss import loss_count
from training.fitting.optimiser import schedule
from training.judging.metrics import HeadMetrics, head_scores, majority_class, measure_head, probabilities
from training.network.model import Head
from training.network.ordinal import class_log_probabilities
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
        class_weights: (classes,), or none.
    """

    name: str
    classes: int
    is_ordered: bool = False
    metric: Metric = "macro_f1"
    class_weights: NDArray[np.float32] | None = None


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
        _Stack(alike, question, features, settings).train(halvings)
    return outcomes


class _Stack:
    """Candidates of one shape; parameters are (candidates x trainings, ...), a candidate's trainings side by side.

    Training f leaves out fold f; the last leaves out nothing.
    """

    def __init__(self, outcomes: Sequence[Outcome], question: Question, features: Features, settings: FitSettings) -> None:
        self._living = list(outcomes)
        self._question, self._features, self._settings = question, features, settings
        self._held_out = [torch.nonzero(features.folds == fold).flatten() for fold in features.folds.unique()]
        self._trainings = len(self._held_out) + 1
        # (trainings, texts): whether a training learns from a text.
        self._learns = torch.ones(self._trainings, len(features.labels))
        for training, texts in enumerate(self._held_out):
            self._learns[training, texts] = 0.0
        first = outcomes[0].candidate
        torch.manual_seed(settings.seed)
        head = Head(features.pooled.shape[1], question.classes, first.hidden_size, 0.0, first.loss)
        if features.beside is not None:
            head.say_nothing()
        self._loss = first.loss
        count = len(outcomes) * self._trainings
        self._parameters = {
            name: value.detach().repeat(count, *[1] * value.dim()).requires_grad_() for name, value in head.named_parameters()
        }
        self._moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in self._parameters.items()}
        self._matrices = [name for name, value in self._parameters.items() if value.dim() > 2]  # (trainings, out, in)
        self._biases = [name for name in self._parameters if name not in self._matrices]
        self._steps = 0
        weights = question.class_weights
        self._class_weights = None if weights is None else torch.from_numpy(weights)
        self._majority = majority_class(features.labels.numpy(), question.classes)

    def train(self, halvings: Sequence[int]) -> None:
        settings = self._settings
        if self._features.beside is not None:
            # It may be best to add nothing.
            self._judge(0)
        for number in range(1, settings.epochs + 1):
            self._epoch(number)
            self._judge(number)
            left = [place for place, one in enumerate(self._living) if number - one.epoch < settings.patience]
            if number in halvings:
                left = sorted(sorted(left, key=lambda place: -self._living[place].score)[: (len(left) + 1) // 2])
            if not left:
                return
            if len(left) < len(self._living):
                self._keep(left)

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
        logits = self._logits(indices, self._parameters, generator)
        repeated = labels.expand(len(logits), -1).reshape(-1)
        losses = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), repeated, weight=self._class_weights, reduction="none")
        # Each training's mean is over its own texts of the batch.
        shares = learns / torch.stack([loss_count(labels[own > 0], self._question.classes, self._loss) for own in learns])[:, None]
        # One sum over all trainings: none of their parameters is in another's loss.
        summed = (losses.view(len(self._living), *learns.shape) * shares).sum()
        names = list(self._parameters)
        gradients = torch.autograd.grad(summed, list(self._parameters.values()))
        self._update(dict(zip(names, gradients, strict=True)), factor)

    def _logits(
        self, texts: torch.Tensor, parameters: Mapping[str, torch.Tensor], generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Answer about texts by their indices, (trainings, texts, classes); with a generator, with dropout."""
        hidden = self._dropped(self._features.pooled[texts][None], generator)
        if "hidden.weight" in parameters:
            hidden = self._dropped(functional.gelu(_linear("hidden", hidden, parameters)), generator)
        logits = _linear("output", hidden, parameters)
        logits = class_log_probabilities(logits) if self._loss == "corn" else logits
        return logits if self._features.beside is None else logits + self._features.beside[texts]

    def _dropped(self, values: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        if generator is None:
            return values
        # The same noise for all, each with its own threshold: so it does not matter who else is there.
        noise = torch.rand(values.shape[1:], generator=generator)
        rates = torch.tensor([one.candidate.dropout for one in self._living for _ in range(self._trainings)]).view(-1, 1, 1)
        return values * (noise >= rates) / (1.0 - rates)

    @torch.no_grad()
    def _update(self, gradients: dict[str, torch.Tensor], factor: float) -> None:
        # Candidate by candidate: one's parameters, moments and gradients fit into a core's cache, those of all do not.
        self._steps += 1
        for place, one in enumerate(self._living):
            part = self._part(place)
            # The gradient of a transposed matrix has a transposed gradient.
            own = {name: gradient[part].contiguous() for name, gradient in gradients.items()}
            norms = torch.stack([gradient.flatten(1).square().sum(dim=1) for gradient in own.values()]).sum(dim=0).sqrt()
            scales = (self._settings.max_gradient_norm / (norms + _NORM_EPSILON)).clamp(max=1.0)
            for gradient in own.values():
                gradient.mul_(scales.view(-1, *[1] * (gradient.dim() - 1)))
            # Biases do not decay.
            for names, decay in ((self._matrices, self._settings.weight_decay), (self._biases, 0.0)):
                adamw(
                    [self._parameters[name][part] for name in names],
                    [own[name] for name in names],
                    [self._moments[name][0][part] for name in names],
                    [self._moments[name][1][part] for name in names],
                    [],
                    [torch.tensor(float(self._steps - 1)) for _ in names],
                    fused=True,
                    amsgrad=False,
                    beta1=_FIRST_DECAY,
                    beta2=_SECOND_DECAY,
                    lr=one.candidate.learning_rate * factor,
                    weight_decay=decay,
                    eps=_EPSILON,
                    maximize=False,
                )

    def _part(self, place: int) -> slice:
        """Return where a candidate's trainings are."""
        return slice(place * self._trainings, (place + 1) * self._trainings)

    @torch.no_grad()
    def _judge(self, number: int) -> None:
        logits = torch.zeros(len(self._living), len(self._features.labels), self._question.classes)
        for training, texts in enumerate(self._held_out):
            own = {name: value[training :: self._trainings] for name, value in self._parameters.items()}
            logits[:, texts] = self._logits(texts, own).float()
        for place, one in enumerate(self._living):
            one.epochs = number
            score = self._score(logits[place].numpy())
            if score > one.score:
                one.score, one.epoch = score, number
                one.state = {name: value[self._part(place)][-1].detach().clone() for name, value in self._parameters.items()}

    def _score(self, logits: NDArray[np.float32]) -> float:
        if not np.isfinite(logits).all():
            return -np.inf
        question = self._question
        found: HeadMetrics = measure_head(
            self._features.labels.numpy(), probabilities(logits), self._majority, is_ordered=question.is_ordered
        )
        return head_scores({question.name: found.to_dict()}, {question.name: question.metric})[question.name]

    def _keep(self, places: Sequence[int]) -> None:
        chosen = torch.cat([torch.arange(self._part(place).start, self._part(place).stop) for place in places])
        self._living = [self._living[place] for place in places]
        self._parameters = {name: value.detach()[chosen].requires_grad_() for name, value in self._parameters.items()}
        self._moments = {name: (first[chosen], second[chosen]) for name, (first, second) in self._moments.items()}


def _linear(name: str, values: torch.Tensor, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
    weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
    return torch.matmul(values, weight.transpose(1, 2)) + bias[:, None]
