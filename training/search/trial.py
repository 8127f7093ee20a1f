"""The seam to Ray Tune: one trial, from an order to reports and checkpoints.

The work itself is in `build` and `fit`. A trial never sees a test label: its answers about test texts are scored by the final report.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cluster.storage import Storage
from training.fitting.fit import DivergedError, Epoch, Fit
from training.fitting.memory import MemoryExhausted, epochs_within_memory
from training.fitting.workers import OneWorker, Workers
from training.judging.metrics import head_scores
from training.search.assignment import Assignment, Order
from training.search.build import answer_all, prepare_fit
from training.search.saved import save_answers, seal, whole_epoch
from training.search.searcher import HAS_DIVERGED, HAS_NO_MEMORY, HEAD_SCORES, IS_LAST, SCORE
from training.search.together import Report, work_together
from training.settings import TrainingSettings

_POINT_FILE = "point.json"
# What is reported of a trial without a single epoch.
_NOTHING: dict[str, Any] = {SCORE: 0.0, HEAD_SCORES: {}, "epoch": 0}


def train(config: dict[str, Any], assignment: Assignment) -> None:
    """Train one trial inside Ray Tune, reporting after every epoch.

    Args:
        config: The fields of an `Order`.
        assignment: What all trials share.
    """
    from ray import tune

    def report(metrics: Mapping[str, Any], folder: Path | None) -> None:
        tune.report(dict(metrics), checkpoint=tune.Checkpoint.from_directory(str(folder)) if folder else None)

    tuning = assignment.settings.tuning
    order = Order(**config)
    if tuning.workers_per_trial == 1:
        work = _Work(order, assignment)
        # The checkpoint is asked for anew where memory ran out: Tune then knows a later one.
        work.report_epochs(epochs_within_memory(work.prepare, lambda fit: work.go_on(fit, tune.get_checkpoint())), report)
        return
    # out of memory: one process alone cannot start again, so all of them do.
    for factor in (1, 2):
        try:
            work_together(_Share(order, assignment, factor, tune.get_checkpoint()), tuning.workers_per_trial, tuning.resources_per_trial)
        except MemoryError:
            continue
        return
    report(_NOTHING | {HAS_NO_MEMORY: True, IS_LAST: True}, None)


@dataclass(frozen=True)
class _Share:
    """What each process of a trial with several does; it travels by pickling."""

    order: Order
    assignment: Assignment
    factor: int
    checkpoint: Any

    def __call__(self, workers: Workers, report: Report) -> None:
        work = _Work(self.order, self.assignment, workers)
        fit = work.prepare(self.factor)
        work.go_on(fit, self.checkpoint)
        work.report_epochs(((fit, epoch) for epoch in fit.epochs()), report)


class _Work:
    """One trial, from its order to reports, as one process sees it."""

    def __init__(self, order: Order, assignment: Assignment, workers: Workers | None = None) -> None:
        torch.set_num_threads(max(1, int(assignment.settings.tuning.resources_per_trial.cpu)))
        self._order = order
        self._storage = Storage(assignment.storage)
        self._assignment = assignment.of_heads(order.heads)
        self._trial = order.settings(self._assignment.settings)
        self._workers = workers or OneWorker()
        self._best_point = order.point

    def prepare(self, factor: int) -> Fit:
        """Build the fit, with each batch in so many times as many parts."""
        fit = self._trial.fit.model_copy(update={"micro_batches": self._trial.fit.micro_batches * factor})
        return prepare_fit(self._assignment, replace(self._trial, fit=fit), with_test=self._order.answers, workers=self._workers)

    def go_on(self, fit: Fit, checkpoint: Any) -> None:
        """Restore what Ray Tune hands over, or else the best whole checkpoint of an interrupted search."""
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                self._restore(fit, Path(folder))
            return
        for path in self._order.checkpoints:
            with tempfile.TemporaryDirectory() as folder:
                found = self._storage.download(path, Path(folder) / "checkpoint")
                if whole_epoch(found) is not None:
                    self._restore(fit, found)
                    return

    def _restore(self, fit: Fit, folder: Path) -> None:
        fit.restore(folder)
        # Its own, or in a population the donor's.
        self._best_point = json.loads((folder / _POINT_FILE).read_text(encoding="utf-8"))

    def report_epochs(self, epochs: Iterator[tuple[Fit, Epoch]], report: Report) -> None:
        """Train, reporting after every epoch, and how it ended where it ended badly."""
        settings, clock = self._assignment.settings, _Clock(self._workers)
        facts = _NOTHING
        try:
            for fit, epoch in epochs:
                if epoch.best_number == epoch.number:
                    self._best_point = self._order.point
                facts = report_of(epoch, settings) | {"point": self._order.point, "best_point": self._best_point}
                with tempfile.TemporaryDirectory() as folder:
                    if self._workers.rank == 0:
                        self._keep(fit, epoch, Path(folder))
                    report(facts | clock.lap(), Path(folder))
                # Memory may run out next; then nothing may hold on to this one.
                del fit
        # Reported, not raised: training it again would end in the same way, and the search learns that it failed.
        except DivergedError:
            report(facts | {HAS_DIVERGED: True, IS_LAST: True} | clock.lap(), None)
        except MemoryExhausted:
            report(facts | {HAS_NO_MEMORY: True, IS_LAST: True} | clock.lap(), None)

    def _keep(self, fit: Fit, epoch: Epoch, folder: Path) -> None:
        fit.save(folder)
        (folder / _POINT_FILE).write_text(json.dumps(self._best_point), encoding="utf-8")
        if epoch.is_last and self._order.answers:
            save_answers(folder, answer_all(self._assignment, self._trial, fit))
        seal(folder, epoch.number)


@dataclass
class _Clock:
    """CPU seconds of all processes and wall seconds since the last report."""

    workers: Workers
    cpu_s: float = field(default_factory=time.process_time)
    wall_s: float = field(default_factory=time.monotonic)

    def lap(self) -> dict[str, float]:
        before, self.cpu_s, self.wall_s = (self.cpu_s, self.wall_s), time.process_time(), time.monotonic()
        spent = torch.tensor(self.cpu_s - before[0])
        self.workers.sum([spent])
        return {"epoch_cpu_s": float(spent), "epoch_s": self.wall_s - before[1]}


def report_of(epoch: Epoch, settings: TrainingSettings) -> dict[str, Any]:
    """Turn an epoch into what Ray Tune is told: scores are the best so far."""
    facts = asdict(epoch)
    scores = head_scores(epoch.best_metrics, settings.tuning.score_metrics)
    return facts | {
        SCORE: facts["best_score"],
        HEAD_SCORES: scores,
        "epoch": facts["number"],
        "epoch_score": facts["score"],
        HAS_DIVERGED: False,
    }
