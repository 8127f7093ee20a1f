"""A search ready to begin: its plan, its examples, its encoder, and what its trials share.

It does not know Ray or how trials are proposed.
"""

from dataclasses import dataclass

import numpy as np

from cluster.console import say
from cluster.storage import Storage
from training.data.dataset import Dataset, folds_of
from training.data.tokens import Tokenizer
from training.network.encoder import EncoderSource, find_encoder
from training.search.assignment import Assignment
from training.search.plan import Plan, search_path
from training.search.search_space import dimensions
from training.settings import TrainingSettings

# Each candidate of the first rung trains once more for each: with fewer it learns from less, with more it costs more.
_FOLDS = 4


@dataclass(frozen=True)
class Prepared:
    """A search ready to begin.

    Attributes:
        plan: Its name and pinned settings.
        storage: Where its folder is.
        dataset: Its examples.
        source: Its encoder.
        tokenizer: The encoder's, with the token limit.
        assignment: What its trials share.
    """

    plan: Plan
    storage: Storage
    dataset: Dataset
    source: EncoderSource
    tokenizer: Tokenizer
    assignment: Assignment

    @property
    def name(self) -> str:
        """Of the search."""
        return self.plan.name

    @property
    def settings(self) -> TrainingSettings:
        """The section `training` as it was pinned."""
        return self.plan.settings

    @property
    def folder(self) -> str:
        """Path of the search in its storage."""
        return search_path(self.name)


def prepare(plan: Plan, storage: Storage, dataset: Dataset) -> Prepared:
    """Find the encoder and tokenise every text once."""
    source = find_encoder(plan.settings.encoder)
    tokenizer = Tokenizer(source.folder, source.max_tokens)
    assignment = make_assignment(plan.settings, dataset, source, tokenizer, storage.uri, plan.start.weights if plan.start else "")
    return Prepared(plan, storage, dataset, source, tokenizer, assignment)


def make_assignment(
    settings: TrainingSettings, dataset: Dataset, source: EncoderSource, tokenizer: Tokenizer, storage: str = "", start: str = ""
) -> Assignment:
    """Put together what all trials share; see `Assignment`."""
    splits = dataset.splits()
    return Assignment(
        settings=settings,
        encoder_sha256=source.sha256,
        classes=dataset.classes,
        pad_id=tokenizer.pad_id,
        tokens={split: tokenizer.encode(examples.texts) for split, examples in splits.items()},
        labels={split: splits[split].labels for split in ("training", "validation")},
        folds=folds_of(dataset.training, _FOLDS, settings.data.split.seed),
        digest=dataset.digest,
        storage=storage,
        start=start,
    )


def announce(prepared: Prepared) -> None:
    """Say what is about to be searched, and in what."""
    dataset, tokens = prepared.dataset, prepared.assignment.tokens["training"]
    sizes = ", ".join(f"{len(examples)} {name}" for name, examples in dataset.splits().items())
    say(f"search    {prepared.name} in {prepared.storage.uri}/{prepared.folder}")
    say(f"examples  {sizes}; {int(np.mean(tokens.lengths))} tokens a text, {int(tokens.truncated.sum())} texts cut")
    for note in dataset.notes:
        say(f"note      {note}")
    if prepared.plan.start is not None:
        said = "configuration and weights" if prepared.plan.start.weights else "configuration"
        say(f"starts    from the {said} of version {prepared.plan.start.version}")
    say(f"searched  {', '.join(dimensions(prepared.settings)) or 'nothing: every dimension is fixed'}")
    tuning = prepared.settings.tuning
    singles = f", as many for each of {len(prepared.settings.heads)} heads alone" if tuning.compare_single else ""
    seeds = f"{tuning.confirm_seeds} other {'seed' if tuning.confirm_seeds == 1 else 'seeds'}"
    confirmed = f"; then the best {tuning.confirm_top} and the default with {seeds}" if tuning.confirm_top else ""
    say(f"plan      {tuning.num_samples} trials{singles}{confirmed}")
