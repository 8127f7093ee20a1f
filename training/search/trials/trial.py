"""The seam to Ray Tune: hands a trial its order and its newest checkpoint, and Tune its reports.

The work itself is in `work`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.fitting.fit import Epoch, Fit
from training.fitting.memory import epochs_within_memory, release_memory
from training.fitting.workers import Workers
from training.search.proposing.searcher import HAS_NO_MEMORY, IS_LAST
from training.search.trials.assignment import Assignment, Order
from training.search.trials.together import Report, work_together
from training.search.trials.work import NOTHING, MakeFit, Work


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
        # The checkpoint is asked for anew where memory ran out: Tune then knows a later one.
        work = Work(order, assignment, latest=tune.get_checkpoint)
        work.report_epochs(work.epochs(epochs_within_memory), report)
        # This process trains the next trial too.
        release_memory()
        return
    # out of memory: one process alone cannot start again, so all of them do.
    for factor in (1, 2):
        try:
            work_together(_Share(order, assignment, factor, tune.get_checkpoint()), tuning.workers_per_trial, tuning.resources_per_trial)
        except MemoryError:
            continue
        return
    report(NOTHING | {HAS_NO_MEMORY: True, IS_LAST: True}, None)


@dataclass(frozen=True)
class _Share:
    """What each process of a trial with several does; it travels by pickling."""

    order: Order
    assignment: Assignment
    factor: int
    checkpoint: Any

    def __call__(self, workers: Workers, report: Report) -> None:
        work = Work(self.order, self.assignment, lambda: self.checkpoint, workers)
        work.report_epochs(work.epochs(self._train), report)

    def _train(self, make_fit: MakeFit, restore: Callable[[Fit], None]) -> Iterator[tuple[Fit, Epoch]]:
        fit = make_fit(self.factor)
        restore(fit)
        for epoch in fit.epochs():
            yield fit, epoch
