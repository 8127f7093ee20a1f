"""What trials are given: the assignment all of them share, and the order of each.

It does not know Ray; both travel to other processes by pickling.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.data.tokens import TokenTable, joined
from training.fit_settings import FitSettings
from training.fitting.word_weights import Asked, HeadWeights, WordWeights, find_word_weights
from training.network.letters import Spelling
from training.search.proposing.search_space import Point, TrialSettings, trial_settings
from training.search.trials.depths import first_depth
from training.settings import TrainingSettings, of_heads

Labels = dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class EarlierWeights:
    """What trials begin with instead of the pretrained encoder, as it was verified when the search began.

    Attributes:
        folder: Of the earlier version, in the storage.
        weights_sha256: Of its weights.
        config_sha256: Of its configuration, which says whose weights they are.
    """

    folder: str
    weights_sha256: str
    config_sha256: str


@dataclass(frozen=True)
class Assignment:
    """What all trials of a search share; Ray's object store lends its arrays to every process without copies.

    Attributes:
        settings: The section `training`.
        encoder_sha256: The encoder every process must find.
        classes: Head → ordered classes.
        pad_id: Token that fills batches.
        tokens: `training`, `validation` and `test` → tokens of their texts.
        labels: `training` and `validation` → head → (texts,); test labels are not here.
        folds: The fold of each training text, (texts,), for cross-validation.
        validation_groups: The group of each validation text, "" being none; nothing where there are no groups.
        digest: SHA-256 of the data.
        spelling: Of all pieces that the encoder knows.
        words: What word pieces say by themselves, for heads that want it and where it is something.
        storage: URI of the storage searches are in.
        start: Weights of an earlier version that every trial starts from; null starts from the pretrained encoder.
        heads_from: Folder in it of a first rung that heads start from; "" starts them at random.
        heads_again: Its heads are trained anew, on other texts than it had.
        encoder_config_sha256: Of the encoder's config.json; what frozen layers say depends on it too.
    """

    settings: TrainingSettings
    encoder_sha256: str
    classes: dict[str, tuple[str, ...]]
    pad_id: int
    tokens: Mapping[str, TokenTable]
    labels: Mapping[str, Labels]
    folds: NDArray[np.int64]
    validation_groups: Sequence[str] | None
    digest: str
    spelling: Spelling
    words: WordWeights | None = None
    storage: str = ""
    start: EarlierWeights | None = None
    heads_from: str = ""
    heads_again: bool = False
    encoder_config_sha256: str = ""

    def first_depth(self, layers: int) -> int:
        """Return the frozen layers of what the default configuration trains first on the ladder.

        Args:
            layers: Of the encoder.
        """
        return first_depth(layers, self.settings.fit.frozen_layers)

    @property
    def worded(self) -> Mapping[str, HeadWeights]:
        """What word pieces say, head by head."""
        return self.words.heads if self.words else {}

    def with_words(self, judged: Mapping[str, HeadWeights] | None = None) -> "Assignment":
        """Return the same with what the training texts' word pieces say by themselves.

        Args:
            judged: What they say in fewer texts, by head, where that was judged: these heads learn in the same way, and no others.
        """
        settings, labels = self.settings, self.labels["training"]
        asked = [
            Asked(head, len(self.classes[head]), labels[head], one.ordered, settings.tuning.score_metrics.get(head, "macro_f1"))
            for head, one in settings.heads.items()
            if one.word_pieces
        ]
        found = find_word_weights(self.tokens["training"], asked, self.folds, self.spelling, settings.fit.seed, judged)
        return replace(self, words=found)

    def with_validation(self) -> "Assignment":
        """Return the same with the validation texts among those that are learned from."""
        training, validation = self.tokens["training"], self.tokens["validation"]
        labels = {head: np.concatenate([own, self.labels["validation"][head]]) for head, own in self.labels["training"].items()}
        # A fold of their own: they were divided from the others with care.
        folds = np.concatenate([self.folds, np.full(len(validation), self.folds.max(initial=-1) + 1)])
        every = replace(
            self,
            tokens={**self.tokens, "training": joined(training, validation)},
            labels={**self.labels, "training": labels},
            folds=folds,
            heads_again=True,
        )
        # What was judged is what is published: a head that counted no letters begins with none now, nor loses those it had.
        return every.with_words(self.worded)

    def of_heads(self, heads: Sequence[str]) -> "Assignment":
        """Return the same with some of the heads only."""
        labels = {split: {head: labels[head] for head in heads} for split, labels in self.labels.items()}
        classes = {head: self.classes[head] for head in heads}
        return replace(self, settings=of_heads(self.settings, heads), classes=classes, labels=labels)


@dataclass(frozen=True)
class Order:
    """What one trial is asked to do; it travels as Ray Tune's configuration.

    Attributes:
        name: Of the trial.
        group: Trials that are compared while they train.
        number: Its place in the group.
        heads: Those it trains.
        point: Searched values by path.
        seed: Of weights, order and dropout.
        parts: What to multiply `fit.micro_batches` by; more than 1 after the trial died, maybe for lack of memory.
        checkpoints: Folders in the storage to go on from, the best first; the first whole one is taken.
        answers: Write the logits of validation and test texts beside the last checkpoint.
        depths: Frozen layers of what it trains one after the other, each from where the one before it was best; none trains once, as its
            configuration says.
        epochs: Of each of them, on training and validation texts together, with nothing to choose by; none chooses by the validation texts.
        is_climb: All but the last of `depths` are behind it, also where a scheduler stopped it there before its last epoch.
    """

    name: str
    group: str
    number: int
    heads: tuple[str, ...]
    point: Point
    seed: int
    parts: int = 1
    checkpoints: tuple[str, ...] = ()
    answers: bool = False
    depths: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    is_climb: bool = False

    def settings(self, settings: TrainingSettings) -> TrialSettings:
        """Decide every value of the trial."""
        trial = trial_settings(settings, self.point)
        return replace(trial, fit=trial.fit.model_copy(update={"seed": self.seed, "micro_batches": trial.fit.micro_batches * self.parts}))

    def trainings(self, settings: TrainingSettings) -> list[TrialSettings]:
        """Decide every value of each training, in their order.

        A training of fewer layers than the configuration says has a higher rate for them. One that goes on from another is half as long,
        at twice the rate.
        """
        whole = self.settings(settings)
        first, *climbs = self.depths or (whole.fit.frozen_layers,)
        fits = [_of_depth(whole.fit, first), *(_going_on(_of_depth(whole.fit, depth)) for depth in climbs)]
        return [replace(whole, fit=fit) for fit in fits]


# What suits all layers is slow for the top ones alone: on O*NET and the sample ads they wanted five to ten times the usual rate.
_TOP_LAYERS_FACTOR = 4.0
# As much movement in half the time: on KldB as good as all epochs at the usual rate.
_CLIMB_FACTOR = 2.0


def _of_depth(fit: FitSettings, depth: int) -> FitSettings:
    factor = _TOP_LAYERS_FACTOR if depth > fit.frozen_layers else 1.0
    return fit.model_copy(update={"frozen_layers": depth, "encoder_learning_rate": fit.encoder_learning_rate * factor})


def _going_on(fit: FitSettings) -> FitSettings:
    epochs = math.ceil(fit.epochs / _CLIMB_FACTOR)
    return fit.model_copy(update={"epochs": epochs, "encoder_learning_rate": fit.encoder_learning_rate * _CLIMB_FACTOR})
