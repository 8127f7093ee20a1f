"""Proposes trials with Optuna, and tells it honestly how they ended.

Ray's `OptunaSearch` tells a trial that was stopped early as complete, with the value it had by then, never tells one whose score is
not a number, and drops the epochs of several metrics. Here a stopped trial is PRUNED, a dead or diverged one FAIL, one that does not fit
into the memory is infeasible, and only a finished one COMPLETE. It does not know Ray; `agenda` lends it to Ray Tune.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from training.search.proposing.ledger import PASSED_OVER, TrialHistory
from training.search.proposing.samplers import make_sampler
from training.search.proposing.search_space import Point
from training.search_settings import TuningSettings

SCORE = "score"
HEAD_SCORES = "head_scores"
# The 95 % interval of the score over the validation texts, (low, high).
INTERVAL = "interval"
IS_LAST = "is_last"
HAS_DIVERGED = "has_diverged"
HAS_NO_MEMORY = "has_no_memory"
# The origin of what no person and no rule chose.
SAMPLED = "sampler"

# A trial that does not fit into the memory breaks this constraint, and the sampler avoids its neighbourhood.
_MEMORY = "memory"
_STATES = {
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    PASSED_OVER: TrialState.PRUNED,
    "out of memory": TrialState.PRUNED,
}


@dataclass(frozen=True)
class FirstPoint:
    """A configuration to try before the sampler proposes any.

    Attributes:
        origin: `default`, `heads alone`, `equal weights` or `version N`.
        point: Searched values by path.
    """

    origin: str
    point: Point


@dataclass(frozen=True)
class Proposal:
    """A configuration to try.

    Attributes:
        number: Its place in the group, from 0.
        origin: Who proposed it.
        point: Searched values by path.
    """

    number: int
    origin: str
    point: Point


class Proposer:
    """Proposes the trials of one group.

    Args:
        distributions: The searched dimensions, by path.
        first: What is tried before the sampler proposes; cut to the number of trials.
        heads: With `mode: pareto` each head's score is a direction of its own, in this order.
        tuning: Sampler, mode, number of trials, seed.
        storage: Where Optuna keeps the study; null keeps it in memory.
    """

    def __init__(
        self,
        distributions: Mapping[str, BaseDistribution],
        first: Sequence[FirstPoint],
        heads: Sequence[str],
        tuning: TuningSettings,
        storage: optuna.storages.BaseStorage | None = None,
    ) -> None:
        # Without this Optuna writes a line to standard error for every study and trial.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._distributions = dict(distributions)
        self._first = list(first)
        self._heads = tuple(heads) if tuning.mode == "pareto" else ()
        self._tuning = tuning
        sampler = make_sampler(tuning.sampler, self._distributions, tuning.num_samples, tuning.seed)
        self.study = optuna.create_study(directions=["maximize"] * max(1, len(self._heads)), sampler=sampler, storage=storage)
        self._trials: dict[int, Trial] = {}
        self._used: set[int] = set()
        self._reported: set[tuple[int, int]] = set()

    @property
    def left(self) -> int:
        """How many trials it may still propose."""
        return max(self._tuning.num_samples - len(self._used), 0)

    def propose(self) -> Proposal | None:
        """Propose the next trial, or nothing when all are proposed.

        Proposal n depends on nothing but the seed, n and the trials told so far, so a resumed search goes on as it would have.
        """
        number = next(free for free in range(len(self._used) + 1) if free not in self._used)
        if number >= self._tuning.num_samples:
            return None
        is_given = number < len(self._first)
        if is_given:
            self.study.enqueue_trial(self._first[number].point)
        trial = self.study.ask(self._distributions)
        self._used.add(number)
        self._trials[number] = trial
        return Proposal(number, self._first[number].origin if is_given else SAMPLED, dict(trial.params))

    def heard(self, number: int, report: Mapping[str, Any]) -> None:
        """Note an epoch; Optuna takes such values for a single score only."""
        # Of an epoch that is trained again Optuna keeps what it was told first, and warns on the terminal.
        if not self._heads and (number, report["epoch"]) not in self._reported:
            self._reported.add((number, report["epoch"]))
            self._trials[number].report(report[SCORE], report["epoch"])

    def ended(self, number: int, state: str, report: Mapping[str, Any]) -> None:
        """Tell how a trial ended.

        Args:
            number: Its place in the group.
            state: See `TrialHistory`.
            report: Its last report.
        """
        trial = self._trials[number]
        told = _STATES.get(state, TrialState.FAIL)
        if told != TrialState.FAIL:
            trial.set_constraint(_MEMORY, float(state == "out of memory"))
        # By number: telling the Trial object of a resumed study would need its own bookkeeping.
        self.study.tell(trial.number, self._values(report) if told == TrialState.COMPLETE else None, state=told)

    def remember(self, history: TrialHistory) -> Proposal | None:
        """Take over a trial of an interrupted search.

        Returns:
            The proposal to go on with, if the trial had not ended.
        """
        state = _STATES.get(history.state, TrialState.FAIL) if history.state else TrialState.RUNNING
        params = {path: value for path, value in history.point.items() if path in self._distributions}
        frozen = create_trial(
            state=state,
            values=self._values(history.last) if state == TrialState.COMPLETE else None,
            params=params,
            distributions={path: self._distributions[path] for path in params},
            intermediate_values={} if self._heads else {one["epoch"]: one[SCORE] for one in history.epochs},
            constraints={_MEMORY: float(history.state == "out of memory")} if history.state else None,
        )
        while len(self.study.trials) < history.number:
            # Stands for a trial whose events were lost: a proposal is seeded by its place in the study.
            self.study.add_trial(create_trial(state=TrialState.FAIL))
        self._used.add(history.number)
        if history.state:
            self.study.add_trial(frozen)
            return None
        self.study.add_trial(_running(frozen))
        self._trials[history.number] = Trial(self.study, self.study.trials[-1]._trial_id)
        return Proposal(history.number, history.origin, history.point)

    def _values(self, report: Mapping[str, Any]) -> list[float]:
        return [report[HEAD_SCORES][head] for head in self._heads] or [report[SCORE]]


def _running(frozen: FrozenTrial) -> FrozenTrial:
    frozen.datetime_start, frozen.datetime_complete = datetime.now(), None
    return frozen
