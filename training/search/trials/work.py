"""One trial as one process sees it: from its order to trainings, checkpoints and reports.

It does not know Ray: whoever calls it hands checkpoints over and takes reports. A trial never sees a test label: its answers about test
texts are scored by the final report.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cluster.storage import Storage
from training.fitting.fit import DivergedError, Epoch, Fit, best_state_in, last_epoch_in
from training.fitting.memory import MemoryExhausted, own_bytes
from training.fitting.workers import OneWorker, Workers
from training.judging.bootstrap import interval, score_of, selection_score_of
from training.judging.calibration import judged_probabilities
from training.judging.metrics import head_scores
from training.search.proposing.search_space import TrialSettings
from training.search.proposing.searcher import HAS_DIVERGED, HAS_NO_MEMORY, HEAD_SCORES, INTERVAL, IS_LAST, SCORE
from training.search.trials.assignment import Assignment, Order
from training.search.trials.build import answer_all, prepare_fit
from training.search.trials.saved import save_answers, seal, whole_epoch
from training.search.trials.together import Report
from training.settings import TrainingSettings

_FACTS_FILE = "trial.json"
# Enough to see how wide an interval is, after every epoch that is better.
_RESAMPLES = 200
# What is reported of a trial without a single epoch.
NOTHING: dict[str, Any] = {SCORE: 0.0, HEAD_SCORES: {}, "epoch": 0}

MakeFit = Callable[[int], Fit]
Train = Callable[[MakeFit, Callable[[Fit], None]], Iterator[tuple[Fit, Epoch]]]


class Work:
    """One trial, from its order to reports, as one process sees it.

    Args:
        order: What to do.
        assignment: What all trials share.
        latest: Returns the checkpoint that Ray Tune hands over, if any.
        workers: Who trains together.
    """

    def __init__(
        self, order: Order, assignment: Assignment, latest: Callable[[], Any] = lambda: None, workers: Workers | None = None
    ) -> None:
        torch.set_num_threads(max(1, int(assignment.settings.tuning.resources_per_trial.cpu)))
        self._order, self._latest = order, latest
        self._storage = Storage(assignment.storage)
        self._assignment = (assignment.with_validation() if order.epochs else assignment).of_heads(order.heads)
        self._trainings = order.trainings(self._assignment.settings)
        self._trial = self._trainings[0]
        self._workers = workers or OneWorker()
        self._best_point, self._ends = order.point, (math.nan, math.nan)

    def epochs(self, train: Train) -> Iterator[tuple[Fit, Epoch]]:
        """Train what is ordered, one training after the other, from wherever an earlier process had come.

        Args:
            train: Trains one of them; see `epochs_within_memory`.
        """
        with self._checkpoint() as folder:
            first = self._trainings.index(self._reached(folder)) if folder else 0
        before: tuple[Mapping[str, torch.Tensor], Epoch] | None = None
        for training in self._trainings[first:]:
            self._trial = training
            for fit, epoch in train(self.prepare, partial(self.go_on, before=before)):
                before = fit.best_state, epoch
                yield fit, replace(epoch, is_last=epoch.is_last and self._is_at_the_end)
                # Memory may run out next; then nothing may hold on to this one.
                del fit

    @property
    def _is_at_the_end(self) -> bool:
        return self._trial is self._trainings[-1]

    def prepare(self, factor: int) -> Fit:
        """Build the fit, with each batch in so many times as many parts."""
        fit = self._trial.fit.model_copy(update={"micro_batches": self._trial.fit.micro_batches * factor})
        is_answering = self._order.answers and self._is_at_the_end
        trial = replace(self._trial, fit=fit)
        is_first = self._trial is self._trainings[0]
        made = prepare_fit(self._assignment, trial, with_test=is_answering, begins=is_first, workers=self._workers)
        if self._order.epochs:
            made.stop_after = self._order.epochs[self._trainings.index(self._trial)]
        return made

    def go_on(self, fit: Fit, before: tuple[Mapping[str, torch.Tensor], Epoch] | None) -> None:
        """Restore the newest checkpoint of this training; or else begin where the one before it was best, if there is one.

        Args:
            fit: A new one.
            before: Best parameters and last epoch of the training before it, where that was in this process.
        """
        with self._checkpoint() as folder:
            if folder is not None:
                # Its own, or in a population the donor's.
                facts = _read_facts(folder)
                self._best_point, self._ends = facts["best_point"], tuple(facts[INTERVAL])
            if folder is not None and self._depth(folder) == self._trial.fit.frozen_layers:
                fit.restore(folder)
            elif before is not None:
                fit.begin_after(*before)
            elif folder is not None and (last := last_epoch_in(folder)) is not None:
                fit.begin_after(best_state_in(folder), last)

    @contextmanager
    def _checkpoint(self) -> Iterator[Path | None]:
        """Find what Ray Tune hands over, or else the newest whole checkpoint of an interrupted search."""
        latest = self._latest()
        if latest is not None:
            with latest.as_directory() as folder:
                yield Path(folder)
            return
        with tempfile.TemporaryDirectory() as scratch:
            found = (self._storage.download(path, Path(scratch) / str(place)) for place, path in enumerate(self._order.checkpoints))
            yield next((folder for folder in found if whole_epoch(folder) is not None), None)

    def _reached(self, folder: Path) -> TrialSettings:
        """Return the training to go on with: the checkpoint's own, or the one after it where that had ended; the last one of a climb."""
        if self._order.is_climb:
            # Where a scheduler stopped what was trained before, no checkpoint says that it had ended.
            return self._trainings[-1]
        depths = [one.fit.frozen_layers for one in self._trainings]
        place = depths.index(self._depth(folder))
        last = last_epoch_in(folder)
        has_ended = last is not None and last.is_last and place + 1 < len(depths)
        return self._trainings[place + has_ended]

    def _depth(self, folder: Path) -> int:
        return int(_read_facts(folder)["depth"])

    def report_epochs(self, epochs: Iterator[tuple[Fit, Epoch]], report: Report) -> None:
        """Train, reporting after every epoch, and how it ended where it ended badly."""
        settings, clock = self._assignment.settings, _Clock(self._workers)
        facts = NOTHING
        try:
            for fit, epoch in epochs:
                # Of an epoch that an earlier process trained there is nothing to measure: what it said stands.
                if epoch.best_number == epoch.number and fit.best_logits:
                    self._best_point, self._ends = self._order.point, self._interval(fit)
                facts = report_of(epoch, settings) | {"point": self._order.point, "best_point": self._best_point}
                facts |= {INTERVAL: self._ends, "worker_bytes": own_bytes()}
                facts |= {"depth": self._trial.fit.frozen_layers, "is_climbing": self._trial is not self._trainings[0]}
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

    def _interval(self, fit: Fit) -> tuple[float, float]:
        """Return how far the score could lie elsewhere on other validation texts."""
        tuning, labels = self._assignment.settings.tuning, self._assignment.labels["validation"]
        metrics = {head: tuning.score_metrics.get(head, "macro_f1") for head in fit.best_logits}
        scores = {
            head: score_of(labels[head], judged_probabilities(logits, labels[head], metrics[head]), metrics[head])
            for head, logits in fit.best_logits.items()
        }
        statistic = selection_score_of(scores, tuning.score_weights)
        groups = self._assignment.validation_groups
        return interval(statistic, len(next(iter(labels.values()))), resamples=_RESAMPLES, groups=groups)

    def _keep(self, fit: Fit, epoch: Epoch, folder: Path) -> None:
        fit.save(folder)
        facts = {"best_point": self._best_point, "depth": self._trial.fit.frozen_layers, INTERVAL: self._ends}
        (folder / _FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")
        if epoch.is_last and self._order.answers:
            save_answers(folder, answer_all(self._assignment, self._trial, fit), self._assignment.tokens)
        seal(folder, epoch.number)


def _read_facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / _FACTS_FILE).read_text(encoding="utf-8"))
    return found


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
