"""The seam between Ray Tune and what is to be trained: explorations first, then the trials that confirm their best.

Everything runs in one experiment of Tune, so that its reused processes keep what they computed once. `Agenda` hands out orders, `Recorder`
hears of epochs and ends, writes them into the ledger and tells the proposers. It does not know how proposals are made (`searcher`) or
which trials are worth confirming (`contest`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pickle import UnpicklingError
from typing import Any

from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from training.search.assignment import Order
from training.search.ladder import Ladder
from training.search.ledger import PASSED_OVER, Ledger, TrialHistory, trial_facts
from training.search.searcher import HAS_DIVERGED, HAS_NO_MEMORY, HEAD_SCORES, IS_LAST, SAMPLED, SCORE, Proposer

# What of a report is written down; Tune adds a dozen keys of its own.
_REPORTED = (
    *(SCORE, HEAD_SCORES, IS_LAST, HAS_DIVERGED, HAS_NO_MEMORY, "epoch", "epoch_score", "loss", "metrics", "best_metrics"),
    *("best_number", "joint_accuracy", "epoch_s", "epoch_cpu_s", "point", "best_point", "depth", "is_climbing"),
)


@dataclass(frozen=True)
class Exploration:
    """A group of trials that a proposer proposes.

    Attributes:
        group: Its name.
        heads: What its trials train.
        proposer: Of its configurations.
        scheduler: That stops its trials early.
        seed: Of each of its trials.
        ladder: Who is passed over and who climbs; without it every trial trains once, as its configuration says.
    """

    group: str
    heads: tuple[str, ...]
    proposer: Proposer
    scheduler: TrialScheduler
    seed: int
    ladder: Ladder | None = None


@dataclass(eq=False)
class Agenda(Searcher):
    """Hands out orders to Ray Tune.

    Attributes:
        explorations: In the order in which they begin.
        confirmations: Names the trials that confirm, once every exploration has ended: histories → histories yet without epochs.
        heads_of: Heads of a group.
        checkpoints_of: Folders of a trial's checkpoints, the newest first.
        ledger: What happened so far.
        most_concurrent: Trials at once.
        budget_s: No exploration begins a trial after this; null means no limit.
        spent_s: Wall seconds of earlier, interrupted processes.
        begun: When this process began, `time.monotonic()`.
        histories: All trials by name.
        pending: Trials of an interrupted search to go on with, and the checkpoints of each.
        live: Tune's id of a trial → its history.
        is_handed_out: Nothing is left to hand out.
    """

    explorations: Sequence[Exploration]
    confirmations: Callable[[Sequence[TrialHistory]], Sequence[TrialHistory]]
    heads_of: Callable[[str], tuple[str, ...]]
    checkpoints_of: Callable[[str], Sequence[str]]
    ledger: Ledger
    most_concurrent: int
    budget_s: float | None = None
    spent_s: float = 0.0
    begun: float = field(default_factory=time.monotonic)
    histories: dict[str, TrialHistory] = field(default_factory=dict)
    pending: list[tuple[TrialHistory, tuple[str, ...]]] = field(default_factory=list)
    live: dict[str, TrialHistory] = field(default_factory=dict)
    is_handed_out: bool = False
    _to_confirm: list[TrialHistory] | None = None

    def __post_init__(self) -> None:
        super().__init__(metric=SCORE, mode="max")

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its searcher with the experiment; nothing is ever read back from there.
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the ledger has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing: see `ledger`."""

    def suggest(self, trial_id: str) -> Any:
        """Hand out the next order; none while trials have to be waited for."""
        if len(self.live) >= self.most_concurrent:
            return None
        if self.pending:
            history, checkpoints = self.pending.pop(0)
            return self._order(trial_id, history, checkpoints)
        for next_order in (self._climb, self._explore, self._climb_at_last):
            if (order := next_order(trial_id)) is not None:
                return order
        if any(history.group in self._groups for history in self.live.values()):
            return None
        if self._to_confirm is None:
            known = self.confirmations(list(self.histories.values()))
            self._to_confirm = [history for history in known if history.name not in self.histories]
        if self._to_confirm:
            return self._begin(trial_id, self._to_confirm.pop(0))
        self.is_handed_out = True
        return Searcher.FINISHED

    @property
    def elapsed_s(self) -> float:
        """Wall seconds of this search, without the time it lay interrupted."""
        return self.spent_s + time.monotonic() - self.begun

    @property
    def _groups(self) -> dict[str, Exploration]:
        return {one.group: one for one in self.explorations}

    @property
    def _is_spent(self) -> bool:
        return self.budget_s is not None and self.elapsed_s > self.budget_s

    def _explore(self, trial_id: str) -> dict[str, Any] | None:
        """Begin the next proposed trial that is not passed over."""
        for one in () if self._is_spent else self.explorations:
            while (proposal := one.proposer.propose()) is not None:
                depths = one.ladder.depths(proposal.point) if one.ladder else ()
                name = f"{one.group}-{proposal.number}"
                facts = (name, one.group, proposal.number, proposal.point, one.seed, proposal.origin)
                history = TrialHistory(*facts, depths=depths)
                if not self._is_passed_over(one, history):
                    return self._begin(trial_id, history)
                self._pass_over(one, history)
        return None

    def _is_passed_over(self, exploration: Exploration, history: TrialHistory) -> bool:
        if exploration.ladder is None or history.origin != SAMPLED:
            return False
        before = self._own(exploration)
        scores = [exploration.ladder.heads_score(one.point) for one in before]
        return exploration.ladder.is_passed_over(scores, exploration.ladder.heads_score(history.point), before)

    def _pass_over(self, exploration: Exploration, history: TrialHistory) -> None:
        self.histories[history.name] = history
        self.close(history, PASSED_OVER)
        exploration.proposer.ended(history.number, PASSED_OVER, {})

    def _own(self, exploration: Exploration) -> list[TrialHistory]:
        """Return the trials of an exploration, by number."""
        return sorted((one for one in self.histories.values() if one.group == exploration.group), key=lambda one: one.number)

    def _climb(self, trial_id: str, *, is_end: bool = False) -> dict[str, Any] | None:
        """Let the next trial train more layers that has earned it."""
        for one in () if self._is_spent else self.explorations:
            has_more = any(history.group == one.group for history in self.live.values())
            if one.ladder is None or (is_end and has_more):
                continue
            if (found := one.ladder.next_climb(self._own(one), is_end=is_end)) is not None:
                history, depths = found
                history.state, history.depths = "", depths
                return self._begin(trial_id, history, tuple(self.checkpoints_of(history.name)))
        return None

    def _climb_at_last(self, trial_id: str) -> dict[str, Any] | None:
        return self._climb(trial_id, is_end=True)

    def _begin(self, trial_id: str, history: TrialHistory, checkpoints: tuple[str, ...] = ()) -> dict[str, Any]:
        self.ledger.append("proposed", {"trial": trial_facts(history), "elapsed_s": self.elapsed_s})
        return self._order(trial_id, history, checkpoints)

    def _order(self, trial_id: str, history: TrialHistory, checkpoints: tuple[str, ...]) -> dict[str, Any]:
        self.histories[history.name] = self.live[trial_id] = history
        heads = self.heads_of(history.group)
        is_exploring = history.group in self._groups
        order = Order(
            *(history.name, history.group, history.number, heads, history.point, history.seed),
            checkpoints=checkpoints,
            answers=not is_exploring,
            depths=history.depths,
        )
        return asdict(order)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: `Recorder` hears of it with more details."""

    def heard(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Write an epoch down and tell the proposer."""
        history, report = self.live[trial_id], {key: result[key] for key in _REPORTED if key in result}
        # As the trial says: a population may have changed the configuration of what comes next already.
        history.point = dict(report.get("point", history.point))
        history.epochs[:] = [*(one for one in history.epochs if one["epoch"] < report["epoch"]), report]
        self.ledger.append("epoch", {"trial": trial_facts(history), "report": report, "elapsed_s": self.elapsed_s})
        if self._is_told(history) and not report.get(HAS_DIVERGED):
            self._groups[history.group].proposer.heard(history.number, report)

    def ended(self, trial_id: str, state: str, error: str = "") -> None:
        """Write an end down and tell the proposer."""
        self.close(self.live[trial_id], state, error)
        history = self.live.pop(trial_id)
        if self._is_told(history):
            self._groups[history.group].proposer.ended(history.number, state, history.last)

    def _is_told(self, history: TrialHistory) -> bool:
        """Whether a proposer hears of a trial; of one that climbs it heard when that first ended."""
        return history.group in self._groups and not history.is_climbing

    def close(self, history: TrialHistory, state: str, error: str = "") -> None:
        """Write down how a trial ended."""
        facts = {"trial": trial_facts(history), "state": state, "error": error, "report": history.last, "elapsed_s": self.elapsed_s}
        # First: an end that is not written down has not happened.
        self.ledger.append("ended", facts)
        history.state, history.error = state, error


class Recorder(Callback):
    """Tells the agenda what Ray Tune reports.

    Args:
        agenda: That handed out the trials.
    """

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Hear of an epoch."""
        self._agenda.heard(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Hear that a trial ended by itself or was stopped."""
        self._agenda.ended(trial.trial_id, state_of(trial.last_result or {}))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Give a trial that died another chance, in smaller parts: the same steps, should it have been the memory."""
        trial.config["parts"] = 2 * trial.config["parts"]

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Hear that a trial died for good."""
        try:
            error = trial.get_pickled_error()
            name = type(getattr(error, "cause", None) or error).__name__
        except (OSError, EOFError, UnpicklingError):
            # Tune hands an error over through a file, which a full disk cuts short.
            name = "unknown error"
        self._agenda.ended(trial.trial_id, "out of memory" if "OutOfMemory" in name or name == "MemoryError" else "died", name)


def state_of(result: Mapping[str, Any]) -> str:
    """Name how a trial ended that did not die, by its last report."""
    if result.get(HAS_DIVERGED):
        return "diverged"
    if result.get(HAS_NO_MEMORY):
        return "out of memory"
    return "finished" if result.get(IS_LAST) else "stopped"


class GroupScheduler(FIFOScheduler):
    """Lets each exploration's own scheduler judge its trials; nobody stops a trial that confirms.

    Args:
        schedulers: By group.
    """

    def __init__(self, schedulers: Mapping[str, TrialScheduler]) -> None:
        super().__init__()
        self._schedulers = dict(schedulers)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Pass the metric on."""
        for scheduler in self._schedulers.values():
            scheduler.set_search_properties(metric, mode, **spec)
        return True

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Let a population decide about its own trials; everybody else begins in order."""
        for group, scheduler in self._schedulers.items():
            own = [trial for trial in tune_controller.get_trials() if trial.config["group"] == group]
            if isinstance(scheduler, PopulationBasedTraining) and own:
                members: Any = _Members(tune_controller, own)
                chosen = scheduler.choose_trial_to_run(members)
                if chosen is not None:
                    return chosen
        return super().choose_trial_to_run(tune_controller)

    def _judge(self, trial: Any) -> TrialScheduler:
        return self._schedulers.get(trial.config["group"], _NOBODY)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Pass it on."""
        self._judge(trial).on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Pass it on."""
        self._judge(trial).on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Ask the group's scheduler."""
        return str(self._judge(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Pass it on."""
        self._judge(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Pass it on."""
        self._judge(trial).on_trial_remove(tune_controller, trial)


class _Members:
    """Tune's controller as a population sees it: with its own trials only."""

    def __init__(self, tune_controller: Any, trials: list[Any]) -> None:
        self._tune_controller = tune_controller
        self._trials = trials

    def get_trials(self) -> list[Any]:
        return self._trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tune_controller, name)


_NOBODY = FIFOScheduler()
