"""The search: Ray Tune drives trials, Optuna proposes them, ASHA stops the hopeless ones, the best becomes a checkpoint.

    searches/NAME/search.json    the settings and the data's digest, pinned when the search began
    searches/NAME/tune/          Ray Tune's own state, for --resume
    searches/NAME/best/          the best checkpoint
    searches/NAME/report.html    what was found

It does not know how one trial trains (`trial`). Source of the early stopping: Li et al. 2020 (ASHA).
"""

import json
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cluster.connection import connect
from cluster.console import say
from cluster.errors import ConflictError
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from training.dataset import Dataset, load_dataset
from training.encoder import EncoderSource, find_encoder
from training.errors import TuningError
from training.search_space import check_space, dimensions, first_points, tune_space
from training.settings import TrainingSettings
from training.tokens import Tokenizer
from training.trial import Assignment, flat, train
from training.winner import Prepared, SearchResult, TrialOutcome, finish

FOLDER = "searches"
PLAN_FILE = "search.json"
_TUNE_FOLDER = "tune"


@dataclass(frozen=True)
class Plan:
    """A search as it was begun: what `--resume` goes on with.

    Attributes:
        name: Its folder below `searches/`.
        settings: The section `training`.
        data_digest: SHA-256 of the data.
    """

    name: str
    settings: TrainingSettings
    data_digest: str


def default_name(settings: TrainingSettings) -> str:
    """Name a search after its heads and the time."""
    return f"{'-'.join(settings.heads)[:40]}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def search(settings: TrainingSettings, cluster: ClusterSettings, name: str | None = None) -> SearchResult:
    """Begin a search and see it through.

    Args:
        settings: The section `training`.
        cluster: The section `cluster`.
        name: Of a new search; by default made from heads and time.

    Raises:
        DataError: The data cannot be used.
        SettingsError: The search space reaches values that are not allowed.
        TuningError: The name is taken, or no trial brought a score.
    """
    check_space(settings)
    storage = Storage(cluster.storage)
    dataset = load_dataset(settings)
    plan = Plan(name or default_name(settings), settings, dataset.digest)
    _pin(storage, plan)
    return _see_through(plan, cluster, storage, dataset, is_resumed=False)


def resume(name: str, cluster: ClusterSettings) -> SearchResult:
    """Go on with a search that was interrupted, with the settings it began with.

    Finished trials stay as they are; interrupted ones go on from their last epoch.

    Raises:
        TuningError: There is no such search, or its data changed.
    """
    storage = Storage(cluster.storage)
    plan = read_plan(storage, name)
    dataset = load_dataset(plan.settings)
    if dataset.digest != plan.data_digest:
        raise TuningError(
            f"search {name!r}: its data changed since it began (digest {dataset.digest[:12]}, then {plan.data_digest[:12]})",
            "put the old tables back, or begin a new search",
        )
    return _see_through(plan, cluster, storage, dataset, is_resumed=True)


def read_plan(storage: Storage, name: str) -> Plan:
    """Read how a search began; `latest` is the one begun last.

    Raises:
        TuningError: There is no such search.
    """
    names = [found for found in storage.names(FOLDER) if storage.exists(f"{FOLDER}/{found}/{PLAN_FILE}")]
    if name != "latest" and name not in names:
        raise TuningError(f"search {name!r} is not in {storage.uri}; searches: {', '.join(names) or 'none yet'}")
    facts = {found: json.loads(storage.read_bytes(f"{FOLDER}/{found}/{PLAN_FILE}")) for found in (names if name == "latest" else [name])}
    if not facts:
        raise TuningError(f"there is no search in {storage.uri} yet", "python -m training tune")
    chosen = max(facts, key=lambda found: str(facts[found]["begun"]))
    return Plan(chosen, TrainingSettings.model_validate(facts[chosen]["settings"]), facts[chosen]["data_digest"])


def _pin(storage: Storage, plan: Plan) -> None:
    facts = {
        "name": plan.name,
        "begun": datetime.now(UTC).isoformat(),
        "data_digest": plan.data_digest,
        "settings": plan.settings.model_dump(mode="json"),
    }
    try:
        storage.create(f"{FOLDER}/{plan.name}/{PLAN_FILE}", json.dumps(facts, indent=2).encode())
    except ConflictError:
        raise TuningError(
            f"search {plan.name!r} exists already", f"choose another --name, or go on with it: --resume {plan.name}"
        ) from None


def _see_through(plan: Plan, cluster: ClusterSettings, storage: Storage, dataset: Dataset, *, is_resumed: bool) -> SearchResult:
    source = find_encoder(plan.settings.encoder)
    tokenizer = Tokenizer(source.folder, source.max_tokens)
    assignment = make_assignment(plan.settings, dataset, source, tokenizer)
    prepared = Prepared(plan.name, storage, dataset, source, tokenizer, assignment)
    _announce(plan, dataset, assignment, storage)
    with connect(cluster) as connection:
        say(f"Ray       {connection.dashboard_url} {'(started for this search)' if connection.is_private else ''}".rstrip())
        results = _tune(plan, storage, assignment, is_resumed=is_resumed)
        # A resumed search lists its trials in another order than they were proposed in.
        ended = sorted(((_outcome(result), result) for result in results), key=lambda pair: pair[0].position)
        outcomes = [outcome for outcome, _ in ended]
        winner = _best(outcomes)
        best = next(result for outcome, result in ended if outcome is winner)
        with tempfile.TemporaryDirectory() as folder:
            best.checkpoint.to_directory(folder)
            return finish(prepared, outcomes, winner, Path(folder))


def make_assignment(settings: TrainingSettings, dataset: Dataset, source: EncoderSource, tokenizer: Tokenizer) -> Assignment:
    """Tokenise once what all trials share."""
    return Assignment(
        settings=settings,
        encoder_sha256=source.sha256,
        classes=dataset.classes,
        pad_id=tokenizer.pad_id,
        training=tokenizer.encode(dataset.training.texts),
        validation=tokenizer.encode(dataset.validation.texts),
        training_labels=dataset.training.labels,
        validation_labels=dataset.validation.labels,
        digest=dataset.digest,
    )


def _announce(plan: Plan, dataset: Dataset, assignment: Assignment, storage: Storage) -> None:
    sizes = ", ".join(f"{len(examples)} {name}" for name, examples in dataset.splits().items())
    lengths = assignment.training.lengths
    say(f"search    {plan.name} in {storage.uri}/{FOLDER}/{plan.name}")
    say(f"examples  {sizes}; {int(np.mean(lengths))} tokens a text, {int(assignment.training.truncated.sum())} texts cut")
    for note in dataset.notes:
        say(f"note      {note}")
    say(f"searched  {', '.join(dimensions(plan.settings)) or 'nothing: every dimension is fixed'}")


def _tune(plan: Plan, storage: Storage, assignment: Assignment, *, is_resumed: bool) -> Any:
    from ray import tune

    _quieten()
    tuning = plan.settings.tuning
    trainable = tune.with_resources(
        tune.with_parameters(train, assignment=assignment), {"cpu": tuning.resources_per_trial.cpu, "gpu": tuning.resources_per_trial.gpu}
    )
    filesystem, path = _tune_storage(storage, plan.name)
    if is_resumed and tune.Tuner.can_restore(f"{path}/{_TUNE_FOLDER}", storage_filesystem=filesystem):
        return tune.Tuner.restore(f"{path}/{_TUNE_FOLDER}", trainable, resume_errored=True, storage_filesystem=filesystem).fit()
    return _new_tuner(plan, trainable, filesystem, path).fit()


def _new_tuner(plan: Plan, trainable: Any, filesystem: Any, path: str) -> Any:
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback
    from ray.tune.schedulers import ASHAScheduler

    from training.progress import Progress
    from training.searcher import SCORE, TrialSearcher

    settings, tuning = plan.settings, plan.settings.tuning
    searcher: Any = TrialSearcher(tune_space(settings), first_points(settings), tuning.num_samples, tuning.seed)
    scheduler = ASHAScheduler(
        time_attr="training_iteration",
        max_t=settings.fit.epochs,
        grace_period=min(tuning.grace_period, settings.fit.epochs),
        reduction_factor=tuning.reduction_factor,
    )
    concurrent = tuning.max_concurrent_trials or _most_concurrent(tuning.resources_per_trial.cpu, tuning.resources_per_trial.gpu)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=SCORE,
            mode="max",
            search_alg=tune.search.ConcurrencyLimiter(searcher, max_concurrent=concurrent),
            scheduler=scheduler,
            num_samples=tuning.num_samples,
            time_budget_s=tuning.time_budget_s,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=_TUNE_FOLDER,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=tune.FailureConfig(max_failures=tuning.max_failures),
            # Two: a crash between writing one and noting it must leave the one before.
            checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
            callbacks=[Progress(list(settings.heads), tuning.num_samples), JsonLoggerCallback()],
            verbose=0,
        ),
    )


def _trial_name(trial: Any) -> str:
    # Tune's tag begins with the number of the proposal, from 1; its trial_id is random.
    return f"trial-{int(trial.experiment_tag.partition('_')[0]) - 1}"


def _most_concurrent(cpu: float, gpu: float) -> int:
    import ray

    total = ray.cluster_resources()
    by_cpu = int(total.get("CPU", 0.0) // cpu)
    by_gpu = int(total.get("GPU", 0.0) // gpu) if gpu else by_cpu
    if min(by_cpu, by_gpu) < 1:
        raise TuningError(
            f"a trial reserves {cpu:g} CPUs and {gpu:g} GPUs, but the cluster has {total.get('CPU', 0):g} and {total.get('GPU', 0):g}",
            "lower training.tuning.resources_per_trial",
        )
    return min(by_cpu, by_gpu)


def _quieten() -> None:
    # A finished trial must be on disk at once: a snapshot at most every 10 s, Ray's default, can lose it in a crash.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    # Only ours: the loggers Tune adds by itself write each result three times.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # The older output obeys verbose=0; the newer one prints a banner all the same.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    logging.getLogger("ray.tune.execution.tune_controller").addFilter(_is_news)
    logging.getLogger("ray.train").setLevel(logging.ERROR)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop one message: a resumed search deletes an old checkpoint again that it had deleted just before it was killed."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, FileNotFoundError) and "Error handling checkpoint" in record.msg)


def _tune_storage(storage: Storage, name: str) -> tuple[Any, str]:
    """Return Tune's file system (None for a local one) and the folder of a search in it."""
    if storage.local_root is not None:
        return None, str(storage.local_root / FOLDER / name)
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    filesystem, root = fsspec.core.url_to_fs(storage.uri)
    return PyFileSystem(FSSpecHandler(filesystem)), f"{root}/{FOLDER}/{name}"


def _outcome(result: Any) -> TrialOutcome:
    from training.progress import ended

    metrics = result.metrics or {}
    return TrialOutcome(
        position=_position(str(result.path)),
        state="died" if result.error else ended(metrics),
        score=metrics.get("score"),
        epoch=metrics.get("epoch", 0),
        best_epoch=metrics.get("best_number", 0),
        metrics=metrics.get("best_metrics", {}),
        point=flat(result.config or {}),
        seconds=metrics.get("time_total_s", 0.0),
        error=type(result.error).__name__ if result.error else "",
    )


def _position(path: str) -> int:
    # Where a killed search left the folder of a trial it never wrote down, Tune adds a suffix: trial-4_a5b9.
    return int(path.rpartition("/")[2].removeprefix("trial-").partition("_")[0])


def _best(outcomes: Sequence[TrialOutcome]) -> TrialOutcome:
    candidates = [outcome for outcome in outcomes if outcome.is_sound and outcome.score is not None]
    if not candidates:
        causes = ", ".join(f"trial {outcome.position} {outcome.state} {outcome.error}".rstrip() for outcome in outcomes)
        raise TuningError(
            f"no trial brought a score: {causes or 'none started'}",
            "look into Ray's log of a trial, or try one with --set training.tuning.num_samples=1",
        )
    # Of equals the earlier trial: the default configuration, if it is among them.
    return max(candidates, key=lambda outcome: (outcome.score, -outcome.position))
