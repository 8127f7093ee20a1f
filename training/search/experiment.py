"""A search's experiment in Ray Tune: where it is written, what a trial reserves, who listens.

It does not know what is handed out (`agenda`), or what becomes of a search that ends (`tuning`).
"""

import logging
import os
from typing import Any

from training.errors import TuningError
from training.search.agenda import Agenda
from training.search.deciding.group_scheduler import GroupScheduler
from training.search.plan import next_attempt
from training.search.prepared import Prepared
from training.search.proposing.searcher import SCORE
from training.search.recorder import OpenLogs, Recorder
from training.search.trials.trial import train
from training.search_settings import TuningSettings


def fit(prepared: Prepared, agenda: Agenda) -> bool:
    """Let Tune train everything; a trial that fails is an outcome, which the ledger has.

    Returns:
        Whether it came to its end; a signal ends it before.
    """
    _tuner(prepared, agenda).fit()
    # Tune catches Ctrl-C and returns as if all were done.
    return agenda.is_handed_out and not agenda.live


def make_trackers(prepared: Prepared) -> list[Any]:
    """Make the callbacks that follow the search elsewhere.

    Raises:
        TuningError: The tracker's package is not installed.
    """
    made: list[Any] = []
    for tracker in prepared.settings.tuning.trackers:
        try:
            if tracker == "tensorboard":
                from ray.tune.logger import TBXLoggerCallback

                made.append(TBXLoggerCallback())
            else:
                from ray.air.integrations.mlflow import MLflowLoggerCallback

                made.append(MLflowLoggerCallback(experiment_name=prepared.name, save_artifact=False))
        except (ImportError, RuntimeError) as error:
            raise TuningError(f"training.tuning.trackers names {tracker!r}, but {error}", "pip install 'twohead[trackers]'") from None
    return made


def quieten() -> None:
    """Let Tune say what a search says itself only where it fails, and wait for processes as long as ours take to end."""
    # Only ours: the loggers Tune adds by itself write each result three times.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # The older output obeys verbose=0; the newer one prints a banner all the same.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # A stopped trial's process gets this long before Tune gives it up, silently, with the trial after it: 2 s are few on a busy machine.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    # A task that is ended for want of memory is begun again without end, if Ray is not told otherwise.
    os.environ.setdefault("RAY_task_oom_retries", "1")
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.ERROR)


def _tuner(prepared: Prepared, agenda: Agenda) -> Any:
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback

    from training.search.progress import Progress

    settings = prepared.settings
    tuning = settings.tuning
    filesystem, path = _tune_storage(prepared)
    trainable = tune.with_resources(tune.with_parameters(train, assignment=prepared.assignment), _resources(tuning))
    progress = Progress(list(settings.heads), agenda.status)
    loggers = [JsonLoggerCallback(), *make_trackers(prepared)]
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=SCORE,
            mode="max",
            search_alg=agenda,
            scheduler=GroupScheduler({one.group: one.scheduler for one in agenda.explorations}, lambda: agenda.is_spent),
            # As many as the agenda hands out.
            num_samples=-1,
            # A trial of several processes ends with them; a reused one would leave those of a stopped trial at work.
            reuse_actors=tuning.workers_per_trial == 1,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=next_attempt(prepared.storage, prepared.name),
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=tune.FailureConfig(max_failures=tuning.max_failures),
            # Two: a crash between writing one and noting it must leave the one before. A population's members copy each other's.
            checkpoint_config=tune.CheckpointConfig(num_to_keep=4 if tuning.scheduler == "pbt" else 2),
            callbacks=[Recorder(agenda), progress, *loggers, OpenLogs(loggers)],
            verbose=0,
        ),
    )


def _trial_name(trial: Any) -> str:
    # Another folder for a trial that begins once more, to climb: `checkpoints` knows them as its own.
    climbs = f".{len(trial.config['depths'])}" if trial.config["checkpoints"] and len(trial.config["depths"]) > 1 else ""
    return f"{trial.config['name']}{climbs}"


def _resources(tuning: TuningSettings) -> dict[str, float]:
    if tuning.workers_per_trial > 1:
        # Its processes reserve what they need beside the trial; Tune refuses a trial that reserves nothing at all.
        return {"cpu": 0, "memory": 2**20}
    return {"cpu": tuning.resources_per_trial.cpu, "gpu": tuning.resources_per_trial.gpu}


def _tune_storage(prepared: Prepared) -> tuple[Any, str]:
    """Return Tune's file system (None for a local one) and the folder of a search in it."""
    storage = prepared.storage
    if storage.local_root is not None:
        return None, str(storage.local_root / prepared.folder)
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    filesystem, root = fsspec.core.url_to_fs(storage.uri)
    return PyFileSystem(FSSpecHandler(filesystem)), f"{root}/{prepared.folder}"
