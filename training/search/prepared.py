"""A search ready to begin: its plan, its examples, its encoder, and what its trials share.

It does not know Ray or how trials are proposed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.console import say
from cluster.storage import Storage
from training.data.dataset import Dataset, folds_of
from training.data.tokens import Tokenizer
from training.errors import TuningError
from training.network.encoder import EncoderSource, find_encoder, pooled_as_before
from training.network.letters import spell
from training.search.deciding.contest import MAIN_GROUP, REFIT_GROUP
from training.search.plan import Plan, Start, search_path
from training.search.proposing.ledger import TrialHistory
from training.search.proposing.search_space import dimensions, moved_into, without_equal_batches
from training.search.trials.assignment import Assignment, EarlierWeights
from training.search_settings import TuningSettings
from training.settings import TrainingSettings

# Each candidate of the first rung trains once more for each: with fewer it learns from less, with more it costs more.
_FOLDS = 4
# Of more, not all counts are kept from one head to the next (`piece_counts`): a token of the sample ads has seven, letters included.
_MANY_TOKENS = 4_000_000


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
    """Find the encoder and tokenise every text once.

    Returns:
        The search, with its pooling decided.

    Raises:
        EncoderError: See `find_encoder`.
        TuningError: See `check_start`.
    """
    if plan.start is not None:
        check_start(plan.start, plan.settings, dataset)
    encoder = plan.settings.encoder
    source = find_encoder(pooled_as_before(encoder) if plan.begun else encoder)
    # What is decided once is written down: `auto` may mean something else to a later release.
    encoder = encoder.model_copy(update={"pooling": source.pooling})
    plan = replace(plan, settings=plan.settings.model_copy(update={"encoder": encoder}))
    tokenizer = Tokenizer(source.folder, source.max_tokens)
    start = plan.start
    earlier = EarlierWeights(start.weights, start.weights_sha256, start.config_sha256) if start and start.weights else None
    assignment = make_assignment(plan.settings, dataset, source, tokenizer, storage.uri, earlier)
    if not plan.begun:
        # One that goes on has tried what it has tried.
        plan = _without_equal_batches(plan, assignment)
        assignment = replace(assignment, settings=plan.settings)
    return Prepared(plan, storage, dataset, source, tokenizer, assignment)


def _without_equal_batches(plan: Plan, assignment: Assignment) -> Plan:
    # Validation texts too: a refit trains on them.
    longest = max(int(assignment.tokens[split].lengths.max(initial=0)) for split in ("training", "validation"))
    settings, start = without_equal_batches(plan.settings, longest), plan.start
    return replace(plan, settings=settings, start=replace(start, point=moved_into(settings, start.point)) if start else None)


def check_start(start: Start, settings: TrainingSettings, dataset: Dataset) -> None:
    """Refuse weights that have learned, or may have learned, what is to be validated and tested with.

    Args:
        start: The earlier version; nothing is wrong with its configuration alone.
        settings: Of the search that is to start from it.
        dataset: Its examples.

    Raises:
        TuningError: The version was trained on validation texts too, or on other data while the splits are not files of their own.
    """
    if not start.weights:
        return
    if start.trial.startswith(f"{REFIT_GROUP}-"):
        # Whatever the data is called here: it may hold the same validation texts.
        raise TuningError(
            f"--with-weights: version {start.version} was trained once more on training and validation texts together (tuning.refit), "
            "so its weights know texts that are validated with",
            "start from a version of a search without tuning.refit, or leave --with-weights out and take its configuration alone",
        )
    has_own_files = settings.data.validation_files and settings.data.test_files
    if start.data_digest != dataset.digest and not has_own_files:
        raise TuningError(
            f"--with-weights: version {start.version} was trained on other data (digest {start.data_digest[:12]}, "
            f"here {dataset.digest[:12]}), so its weights may know texts that are validated and tested with here",
            "give those in files of their own (data.validation_files, data.test_files), or leave --with-weights out",
        )


def make_assignment(
    settings: TrainingSettings,
    dataset: Dataset,
    source: EncoderSource,
    tokenizer: Tokenizer,
    storage: str = "",
    start: EarlierWeights | None = None,
) -> Assignment:
    """Put together what all trials share; see `Assignment`."""
    splits = dataset.splits()
    assignment = Assignment(
        settings=settings,
        encoder_sha256=source.sha256,
        encoder_config_sha256=source.config_sha256,
        classes=dataset.classes,
        pad_id=tokenizer.pad_id,
        tokens={split: tokenizer.encode(examples.texts) for split, examples in splits.items()},
        labels={split: splits[split].labels for split in ("training", "validation")},
        folds=folds_of(dataset.training, _FOLDS, settings.data.split.seed),
        validation_groups=dataset.validation.groups,
        digest=dataset.digest,
        spelling=spell(tokenizer.spelled(source.vocabulary)),
        storage=storage,
        start=start,
    )
    if len(assignment.tokens["training"].ids) > _MANY_TOKENS:
        say(f"words     being counted in {len(assignment.tokens['training'])} texts, which may take minutes")
    return assignment.with_words()


def with_budget(prepared: Prepared, budget: Mapping[str, float], used: Mapping[str, float]) -> Prepared:
    """Return the search with other limits.

    Args:
        prepared: The search.
        budget: `num_samples` in all; `time_budget_s` and `cpu_budget_s` beyond what was used.
        used: Under the same names.
    """
    limits = {name: int(value) if name == "num_samples" else value + used[name] for name, value in budget.items()}
    tuning = prepared.settings.tuning.model_copy(update=limits)
    settings = prepared.settings.model_copy(update={"tuning": tuning})
    return replace(prepared, plan=replace(prepared.plan, settings=settings), assignment=replace(prepared.assignment, settings=settings))


def without_test(prepared: Prepared) -> Prepared:
    """Return the search as if it had no test texts."""
    dataset, assignment = prepared.dataset, prepared.assignment
    empty = {"test": assignment.tokens["test"].take(np.arange(0))}
    return replace(
        prepared,
        dataset=replace(dataset, test=dataset.test.take([])),
        assignment=replace(assignment, tokens={**assignment.tokens, **empty}),
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
    say(f"plan      {_plan_of(prepared.settings)}")


def _plan_of(settings: TrainingSettings) -> str:
    tuning = settings.tuning
    limits = [f"{tuning.time_budget_s / 60:g} minutes"] if tuning.time_budget_s else []
    limits += [f"{tuning.cpu_budget_s / 3600:g} CPU hours"] if tuning.cpu_budget_s else []
    trials = f"{tuning.num_samples} trials"
    if limits:
        trials = f"as many trials as fit into {' and '.join(limits)}, at most {tuning.num_samples}"
    singles = f", as many for each of {len(settings.heads)} heads alone" if tuning.compare_single else ""
    seeds = f"{tuning.confirm_seeds} other {'seed' if tuning.confirm_seeds == 1 else 'seeds'}"
    confirmed = f"; then the best {tuning.confirm_top} and the default with {seeds}" if tuning.confirm_top else ""
    rungs = ", their heads first, then top layers, the better ones all they may train" if tuning.ladder else ""
    return f"{trials}{rungs}{singles}{confirmed}"


def trials_so_far(tuning: TuningSettings, found: Sequence[TrialHistory]) -> str:
    """Say how many configurations have a score, and of how many where that is known: nobody waits for the most that a limit allows.

    Args:
        tuning: Number of trials, and limits.
        found: Trials with a score, those that confirm or refit too.
    """
    count = sum(one.group == MAIN_GROUP for one in found)
    if tuning.time_budget_s or tuning.cpu_budget_s:
        return f"{count} {'trial' if count == 1 else 'trials'}"
    return f"{count} of at least {tuning.num_samples} trials"
