"""The seam to Ray Train: the work of one trial done by several processes, each on a share of every batch.

It starts them, hands what they report to Ray Tune, and takes them down with the trial. What the work is, it does not know. Ray Train's
own bridge to Tune passes a checkpoint on as a path among the metrics, so this one passes checkpoints on as checkpoints.
"""

import os
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from training.fitting.memory import is_out_of_memory
from training.fitting.workers import WorkerGroup, Workers
from training.search_settings import TrialResources

Report = Callable[[Mapping[str, Any], Path | None], None]
Work = Callable[[Workers, Report], None]

_ENDED = "ended"
_ADDRESS_VARIABLE = "RAY_ADDRESS"
# Train passes on one report per look at its processes, every 2 s by default: short epochs would wait for it. Whoever watches for
# preempted nodes logs an error at every start, and Tune starts a lost trial again anyway.
_TRAIN_VARIABLES = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def work_together(work: Work, count: int, resources: TrialResources) -> None:
    """Do the work of a Ray Tune trial in several processes; call it inside the trial.

    The trial itself should reserve nothing: the processes reserve what they need beside it.

    Args:
        work: Called in each process, with the group and a function to report with, which every process must call as often as the
            others. Only what the first process reports counts, metrics and a folder to be kept as checkpoint.
        count: Number of processes.
        resources: Of each.

    Raises:
        MemoryError: A process ran out of memory.
        ray.train.TrainingFailedError: A process failed otherwise.
    """
    from ray.util.queue import Queue

    _set_variables()
    queue: Any = Queue(actor_options={"num_cpus": 0})
    # A name that was used before would make Train go on where that one ended.
    name = f"together-{uuid.uuid4().hex[:8]}"
    trainer = _trainer(work, count, resources, queue, name)
    failures: list[Exception] = []
    thread = threading.Thread(target=_fit, args=(trainer, queue, failures), daemon=True)
    thread.start()
    groups: list[Any] = []
    try:
        # A word, reports, and placement groups.
        while not isinstance(item := queue.get(), str):
            if isinstance(item, dict):
                _pass_on(item)
            else:
                groups.append(item)
    finally:
        # Tune ends a stopped trial by an exception in `report`, with Train's processes still at work, and gives it little time.
        if thread.is_alive():
            _take_down(groups)
        _forget(trainer.run_config)
        queue.shutdown(force=True)
    if failures:
        raise failures[0]


def _set_variables() -> None:
    import ray
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

    # Train's cleaner frees what a killed trial had reserved, but on a machine with several Rays it does not find its own by itself.
    ENV_VARS_TO_PROPAGATE.add(_ADDRESS_VARIABLE)
    for variable, value in (_TRAIN_VARIABLES | {_ADDRESS_VARIABLE: ray.get_runtime_context().gcs_address}).items():
        os.environ.setdefault(variable, value)


def _trainer(work: Work, count: int, resources: TrialResources, queue: Any, name: str) -> Any:
    from ray.train import RunConfig, ScalingConfig, UserCallback
    from ray.train._internal.session import get_session
    from ray.train.torch import TorchConfig, TorchTrainer

    class Forward(UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            queue.put({"metrics": metrics[0], "checkpoint": checkpoint})

    # The trial's own place in the storage; Ray's bridge asks the session too, there is no other way.
    session: Any = get_session()
    storage = session.storage
    callbacks: Any = [Forward()]
    needs = {"CPU": resources.cpu} | ({"GPU": resources.gpu} if resources.gpu else {})
    return TorchTrainer(
        lambda: _serve(work, queue),
        scaling_config=ScalingConfig(num_workers=count, use_gpu=resources.gpu > 0, resources_per_worker=needs),
        # Two processes on one GPU cannot use nccl.
        torch_config=TorchConfig(backend="nccl" if resources.gpu >= 1 else "gloo"),
        run_config=RunConfig(
            name=name,
            storage_path=storage.trial_fs_path,
            storage_filesystem=storage.storage_filesystem,
            callbacks=callbacks,
        ),
    )


def _serve(work: Work, queue: Any) -> None:
    """Work as one process of the group."""
    from ray import train
    from ray.train.torch import get_device
    from ray.util import get_current_placement_group

    device = get_device()
    if device.type == "cuda":
        # `cuda` without a number means this one from here on.
        torch.cuda.set_device(device)
    workers = WorkerGroup(device)
    if workers.rank == 0:
        queue.put(get_current_placement_group())

    def report(metrics: Mapping[str, Any], folder: Path | None) -> None:
        keep = folder is not None and workers.rank == 0
        train.report(dict(metrics), checkpoint=train.Checkpoint.from_directory(str(folder)) if keep else None)

    work(workers, report)


def _fit(trainer: Any, queue: Any, failures: list[Exception]) -> None:
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    try:
        trainer.fit()
    except (TrainingFailedError, RayError) as error:
        causes = getattr(error, "worker_failures", {}).values()
        failures.append(MemoryError(str(error)) if any(is_out_of_memory(cause) for cause in causes) else error)
    finally:
        # The queue is gone where the trial was taken down.
        with suppress(RayError):
            queue.put(_ENDED)


def _pass_on(item: Mapping[str, Any]) -> None:
    from ray import tune

    kept = item["checkpoint"]
    tune.report(item["metrics"], checkpoint=tune.Checkpoint(kept.path, kept.filesystem) if kept is not None else None)
    if kept is not None:
        # Tune has a copy now.
        kept.filesystem.delete_dir(kept.path)


def _forget(place: Any) -> None:
    """Delete what Train wrote; where it has not ended yet it may write a note again."""
    with suppress(OSError):
        place.storage_filesystem.delete_dir(f"{place.storage_path}/{place.name}")


def _take_down(groups: list[Any]) -> None:
    from ray.util import remove_placement_group

    for group in groups:
        remove_placement_group(group)
