"""Many candidates for one head, trained together on one pass over frozen features, each as if it were alone.

While the encoder is frozen, heads have nothing in common: each is searched by itself, and its loss weight cannot matter. Candidates of the
same shape are stacked, so that one matrix product serves all of them; each has its own learning rate, dropout, optimiser state, gradient
norm and best epoch. It does not know the encoder, who proposes candidates, or Ray.

Sources: Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization (AdamW); Wang et al. 2021, HFTA (arXiv 2102.02344), for training
models of one shape as one. The stacking is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.optim.adamw import adamw

from training.data.dataset import MISSING
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
    """Frozen features of the texts that have a label for the head.

    Attributes:
        pooled: (texts, width), float32.
        labels: Class indices, (texts,), int64.
    """

    pooled: torch.Tensor
    labels: torch.Tensor


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
        score: Its best on the validation texts.
        epoch: When that was.
        epochs: How many it trained.
        state: Its parameters then, named as in `Head`.
    """

    candidate: Candidate
    score: float = -np.inf
    epoch: int = 0
    epochs: int = 0
    state: dict[str, torch.Tensor] = field(default_factory=dict)


def known(pooled: torch.Tensor, labels: NDArray[np.int64]) -> Features:
    """Leave the texts out that have no label."""
    chosen = torch.from_numpy(np.flatnonzero(labels != MISSING))
    return Features(pooled[chosen].float(), torch.from_numpy(labels)[chosen])


def train_population(
    candidates: Sequence[Candidate], question: Question, training: Features, validation: Features, settings: FitSettings
) -> list[Outcome]:
    """Train candidates for one head on frozen features.

    Args:
        candidates: Of any shapes.
        question: The head.
        training: Texts to learn from.
        validation: Texts that choose each candidate's epoch.
        settings: Epochs, patience, `batch_texts`, warm-up, weight decay, gradient norm and seed; the rest is the candidates' own.

    Returns:
        One outcome a candidate, in their order. Alone or with others a candidate's is the same up to float noise.
    """
    outcomes = [Outcome(candidate) for candidate in candidates]
    shapes = {(one.candidate.hidden_size, one.candidate.loss) for one in outcomes}
    for hidden_size, loss in sorted(shapes):
        alike = [one for one in outcomes if (one.candidate.hidden_size, one.candidate.loss) == (hidden_size, loss)]
        _Stack(alike, question, training, validation, settings).train()
    return outcomes


class _Stack:
    """Candidates of one shape; parameters are (candidates, …)."""

    def __init__(
        self, outcomes: Sequence[Outcome], question: Question, training: Features, validation: Features, settings: FitSettings
    ) -> None:
        self._living = list(outcomes)
        self._question, self._training, self._validation, self._settings = question, training, validation, settings
        first = outcomes[0].candidate
        torch.manual_seed(settings.seed)
        head = Head(training.pooled.shape[1], question.classes, first.hidden_size, 0.0, first.loss)
        self._loss = first.loss
        self._parameters = {
            name: value.detach().repeat(len(outcomes), *[1] * value.dim()).requires_grad_() for name, value in head.named_parameters()
        }
        self._moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in self._parameters.items()}
        self._matrices = [name for name, value in self._parameters.items() if value.dim() > 2]  # (candidates, out, in)
        self._biases = [name for name in self._parameters if name not in self._matrices]
        self._steps = 0
        weights = question.class_weights
        self._class_weights = None if weights is None else torch.from_numpy(weights)
        self._majority = majority_class(training.labels.numpy(), question.classes)

    def train(self) -> None:
        settings = self._settings
        for number in range(1, settings.epochs + 1):
            self._epoch(number)
            self._judge(number)
            left = [place for place, one in enumerate(self._living) if number - one.epoch < settings.patience]
            if not left:
                return
            if len(left) < len(self._living):
                self._keep(left)

    def _epoch(self, number: int) -> None:
        settings = self._settings
        generator = torch.Generator().manual_seed(settings.seed * 100_003 + number)
        order = torch.randperm(len(self._training.labels), generator=generator)
        batches = order.split(settings.batch_texts)
        for position, indices in enumerate(batches):
            factor = schedule((number - 1 + position / len(batches)) / settings.epochs, settings.warmup_fraction)
            self._step(indices, factor, generator)

    def _step(self, indices: torch.Tensor, factor: float, generator: torch.Generator) -> None:
        labels = self._training.labels[indices]
        logits = self._logits(self._training.pooled[indices], generator)
        repeated = labels.expand(len(self._living), -1).reshape(-1)
        summed = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), repeated, weight=self._class_weights, reduction="sum")
        # One sum over all candidates: none of their parameters is in another's loss.
        names = list(self._parameters)
        gradients = torch.autograd.grad(summed / loss_count(labels, self._question.classes, self._loss), list(self._parameters.values()))
        self._update(dict(zip(names, gradients, strict=True)), factor)

    def _logits(self, pooled: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Map features (texts, width) to logits (candidates, texts, classes); with a generator, with dropout."""
        hidden = self._dropped(pooled[None], generator)
        if "hidden.weight" in self._parameters:
            hidden = self._dropped(functional.gelu(self._linear("hidden", hidden)), generator)
        logits = self._linear("output", hidden)
        return class_log_probabilities(logits) if self._loss == "corn" else logits

    def _linear(self, name: str, values: torch.Tensor) -> torch.Tensor:
        weight, bias = self._parameters[f"{name}.weight"], self._parameters[f"{name}.bias"]
        return torch.matmul(values, weight.transpose(1, 2)) + bias[:, None]

    def _dropped(self, values: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        if generator is None:
            return values
        # The same noise for all, each with its own threshold: so it does not matter who else is there.
        noise = torch.rand(values.shape[1:], generator=generator)
        rates = self._column([one.candidate.dropout for one in self._living], 3)
        return values * (noise >= rates) / (1.0 - rates)

    @torch.no_grad()
    def _update(self, gradients: dict[str, torch.Tensor], factor: float) -> None:
        # Step by step through the candidates: one's parameters, moments and gradients fit into a core's cache, those of all do not.
        self._steps += 1
        for place, one in enumerate(self._living):
            # The fused kernel reads numbers as they lie, and a transposed matrix has a transposed gradient.
            own = {name: gradient[place].contiguous() for name, gradient in gradients.items()}
            norm = torch.nn.utils.get_total_norm(list(own.values()))
            torch._foreach_mul_(list(own.values()), (self._settings.max_gradient_norm / (norm + _NORM_EPSILON)).clamp(max=1.0))
            # Biases do not decay.
            for names, decay in ((self._matrices, self._settings.weight_decay), (self._biases, 0.0)):
                adamw(
                    [self._parameters[name][place] for name in names],
                    [own[name] for name in names],
                    [self._moments[name][0][place] for name in names],
                    [self._moments[name][1][place] for name in names],
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

    @torch.no_grad()
    def _judge(self, number: int) -> None:
        logits = self._logits(self._validation.pooled).float().numpy()
        for place, one in enumerate(self._living):
            one.epochs = number
            score = self._score(logits[place])
            if score > one.score:
                one.score, one.epoch = score, number
                one.state = {name: value[place].detach().clone() for name, value in self._parameters.items()}

    def _score(self, logits: NDArray[np.float32]) -> float:
        if not np.isfinite(logits).all():
            return -np.inf
        question = self._question
        found: HeadMetrics = measure_head(
            self._validation.labels.numpy(), probabilities(logits), self._majority, is_ordered=question.is_ordered
        )
        return head_scores({question.name: found.to_dict()}, {question.name: question.metric})[question.name]

    def _keep(self, places: Sequence[int]) -> None:
        chosen = torch.tensor(places)
        self._living = [self._living[place] for place in places]
        self._parameters = {name: value.detach()[chosen].requires_grad_() for name, value in self._parameters.items()}
        self._moments = {name: (first[chosen], second[chosen]) for name, (first, second) in self._moments.items()}

    def _column(self, values: Sequence[float], dimensions: int) -> torch.Tensor:
        return torch.tensor(values).view(-1, *[1] * (dimensions - 1))
