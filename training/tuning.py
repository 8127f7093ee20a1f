"""The search: Ray Tune drives trials, Optuna proposes them, ASHA stops the hopeless ones, the best becomes a checkpoint.

It does not know how one trial trains (`trial`), nor what a search writes down (`plan`, `winner`). Source of the early stopping:
Li et al. 2020 (ASHA).
"""

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.connection import connect
from cluster.console import say
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from training.dataset import Dataset, load_dataset
from training.encoder import EncoderSource, find_encoder
from training.errors import TuningError
from training.plan import TUNE_FOLDER, Plan, check_name, default_name, pin, read_plan, search_path
from training.search_space import check_space, dimensions, first_points, tune_space
from training.settings import TrainingSettings
from training.tokens import Tokenizer
from training.trial import Assignment, flat, train
from training.winner import Prepared, SearchResult, TrialOutcome, finish


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
    name = name or default_name(settings)
    check_name(name)
    check_space(settings)
    storage = Storage(cluster.storage)
    dataset = load_dataset(settings)
    plan = Plan(name, settings, dataset.digest)
    prepared = _prepare(plan, storage, dataset)
    # Only now: a search that cannot begin leaves its name free.
    pin(storage, plan)
    return _see_through(prepared, cluster, is_resumed=False)


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
    return _see_through(_prepare(plan, storage, dataset), cluster, is_resumed=True)


def _prepare(plan: Plan, storage: Storage, dataset: Dataset) -> Prepared:
    source = find_encoder(plan.settings.encoder)
    tokenizer = Tokenizer(source.folder, source.max_tokens)
    return Prepared(plan.name, storage, dataset, source, tokenizer, make_assignment(plan.settings, dataset, source, tokenizer))


def _see_through(prepared: Prepared, cluster: ClusterSettings, *, is_resumed: bool) -> SearchResult:
    _announce(prepared)
    with connect(cluster) as connection:
        say(f"Ray       {connection.dashboard_url} {'(started for this search)' if connection.is_private else ''}".rstrip())
        results = _tune(prepared, is_resumed=is_resumed)
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


def _announce(prepared: Prepared) -> None:
    dataset, tokens = prepared.dataset, prepared.assignment.training
    sizes = ", ".join(f"{len(examples)} {name}" for name, examples in dataset.splits().items())
    say(f"search    {prepared.name} in {prepared.storage.uri}/{search_path(prepared.name)}")
    say(f"examples  {sizes}; {int(np.mean(tokens.lengths))} tokens a text, {int(tokens.truncated.sum())} texts cut")
    for note in dataset.notes:
        say(f"note      {note}")
    say(f"searched  {', '.join(dimensions(prepared.assignment.settings)) or 'nothing: every dimension is fixed'}")


def _tune(prepared: Prepared, *, is_resumed: bool) -> Any:
    from ray import tune

    _quieten()
    assignment = prepared.assignment
    tuning = assignment.settings.tuning
    trainable = tune.with_resources(
        tune.with_parameters(train, assignment=assignment), {"cpu": tuning.resources_per_trial.cpu, "gpu": tuning.resources_per_trial.gpu}
    )
    filesystem, path = _tune_storage(prepared.storage, prepared.name)
    if is_resumed and tune.Tuner.can_restore(f"{path}/{TUNE_FOLDER}", storage_filesystem=filesystem):
        return tune.Tuner.restore(f"{path}/{TUNE_FOLDER}", trainable, resume_errored=True, storage_filesystem=filesystem).fit()
    return _new_tuner(assignment.settings, trainable, filesystem, path).fit()


def _new_tuner(settings: TrainingSettings, trainable: Any, filesystem: Any, path: str) -> Any:
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback
    from ray.tune.schedulers import ASHAScheduler

    from training.progress import Progress
    from training.searcher import SCORE, TrialSearcher

    tuning = settings.tuning
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
            name=TUNE_FOLDER,
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
        return None, str(storage.local_root / search_path(name))
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    filesystem, root = fsspec.core.url_to_fs(storage.uri)
    return PyFileSystem(FSSpecHandler(filesystem)), f"{root}/{search_path(name)}"


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
