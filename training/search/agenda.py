"""The seam between Ray Tune and what is to be trained: explorations first, then the trials that confirm their best.

Everything runs in one experiment of Tune, so that its reused processes keep what they computed once. `Agenda` hands out orders, writes
epochs and ends into the ledger and tells the proposers of them. It does not know how proposals are made (`searcher`) or which trials are
worth confirming (`contest`).
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from training.search.deciding.budget import Budget, Cost, one_after_other, used_by
from training.search.deciding.forecast import Forecast
from training.search.deciding.ladder import Ladder
from training.search.proposing.ledger import PASSED_OVER, Ledger, TrialHistory, trial_facts
from training.search.proposing.searcher import HAS_DIVERGED, HAS_NO_MEMORY, HEAD_SCORES, INTERVAL, IS_LAST, SAMPLED, SCORE, Proposer
from training.search.trials.assignment import Order

# What of a report is written down; Tune adds a dozen keys of its own.
_REPORTED = (
    *(SCORE, HEAD_SCORES, INTERVAL, IS_LAST, HAS_DIVERGED, HAS_NO_MEMORY, "epoch", "epoch_score", "loss", "metrics", "best_metrics"),
    *("best_number", "joint_accuracy", "epoch_s", "epoch_cpu_s", "point", "best_point", "depth", "is_climbing"),
    *("worker_bytes", "average_score", "trained_score", "hostname"),
)
_NO_LIMITS = Budget()
# Where a limit is used up and so many have failed, the next would too.
_ALL_FAIL = 3


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
        explorations: In the order in which they begin, the one to publish from first; within a budget see `_turns`.
        confirmations: Names the trials that confirm, once every exploration has ended: histories → histories yet without epochs.
        refit: Names the training of the winner on all texts, once everything else has ended; nothing where there is none.
        heads_of: Heads of a group.
        checkpoints_of: Folders of a trial's checkpoints, the newest first.
        ledger: What happened so far.
        most_concurrent: Tells how many trials may be alive at once, now.
        at_once: Tells how many of them train side by side, now.
        budget: What the search may use, with what confirms.
        beforehand_cpu_s: CPU seconds used before the first trial.
        spent_s: Wall seconds of earlier, interrupted processes.
        begun: When this process began, `time.monotonic()`.
        histories: All trials by name.
        pending: Trials of an interrupted search to go on with, and the checkpoints of each.
        live: Tune's id of a trial → its history.
        is_handed_out: Nothing is left to hand out.
    """

    explorations: Sequence[Exploration]
    confirmations: Callable[[Sequence[TrialHistory]], Sequence[TrialHistory]]
    refit: Callable[[Sequence[TrialHistory]], TrialHistory | None]
    heads_of: Callable[[str], tuple[str, ...]]
    checkpoints_of: Callable[[str], Sequence[str]]
    ledger: Ledger
    most_concurrent: Callable[[], int]
    at_once: Callable[[], int]
    budget: Budget = _NO_LIMITS
    beforehand_cpu_s: float = 0.0
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
        if len(self.live) >= self.most_concurrent():
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
            self._to_confirm = self._confirming
        if self._to_confirm and self.budget.leaves(self.used, self._forecast.before(self._to_confirm[0])):
            return self._begin(trial_id, self._to_confirm.pop(0))
        last = self._last
        if last is not None and self.budget.leaves(self.used, self._forecast.before(last)):
            return None if self.live else self._begin(trial_id, last)
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
    def used(self) -> Cost:
        """What the search has used so far."""
        return Cost(self.elapsed_s, self.beforehand_cpu_s + sum(used_by(one).cpu_s for one in self.histories.values()))

    @property
    def is_spent(self) -> bool:
        """Whether exploring has to end, so that its best can still be confirmed; not before it can be published, unless all fail."""
        if not self._has_score:
            may_end = self._failed >= _ALL_FAIL or (self.ledger.words_score is not None and not self._failed)
            return may_end and not self.budget.leaves(self.used, Cost(0.0, 0.0))
        if self._to_confirm is not None:
            # What has begun to confirm leaves `_confirming` before it is in `used`; who is confirmed does not change any more.
            return True
        return not self.budget.leaves(self.used, self._closing)

    @property
    def _has_score(self) -> bool:
        """Whether a trial of all heads has one, which alone can be published."""
        return any(one.epochs and not one.has_failed for one in self._own(self.explorations[0]))

    @property
    def _failed(self) -> int:
        return sum(one.has_failed for one in self._own(self.explorations[0]))

    @property
    def _closing(self) -> Cost:
        """What follows exploring will still use: what confirms, side by side, and after it the training on all texts."""
        forecast, last = self._forecast, self._last
        confirming = forecast.confirming(self._confirming, self._live_beside)
        return confirming if last is None else one_after_other(confirming, forecast.before(last))

    @property
    def _last(self) -> TrialHistory | None:
        """The training of the best so far on all texts, where it is wanted and has not begun; one that failed is not tried for ever."""
        last = self.refit(list(self.histories.values()))
        return None if last is None or any(one.identity == last.identity for one in self.histories.values()) else last

    @property
    def _confirming(self) -> list[TrialHistory]:
        """What would confirm the best so far, and has not begun."""
        return [one for one in self.confirmations(list(self.histories.values())) if one.name not in self.histories]

    @property
    def _live_beside(self) -> list[TrialHistory]:
        """What runs and does not explore: an interrupted search may go on in the middle of confirming."""
        return [one for one in self.live.values() if one.group not in self._groups]

    @property
    def _forecast(self) -> Forecast:
        layers = {one.group: one.ladder.layers if one.ladder else 0 for one in self.explorations}
        return Forecast(list(self.histories.values()), layers, self.at_once())

    def status(self) -> str:
        """Say in a line what is best so far, and how long it will about take."""
        main = self._own(self.explorations[0])
        # What has failed cannot be published, whatever it had before.
        found = [one for one in main if one.epochs and not one.has_failed]
        if not found:
            return ""
        best = max(found, key=lambda one: (float(one.last[SCORE]), -one.number))
        low, high = best.last.get(INTERVAL, (math.nan, math.nan))
        ends = "" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]"
        left, words = self.left_s(), self.ledger.words_score
        beside = f" (words by themselves {words:.3f})" if words is not None and words > best.last[SCORE] else ""
        time_left = "" if left is None else f", about {_minutes(left)} left"
        return f"best so far {best.name} {best.last[SCORE]:.3f}{ends}{beside}{time_left}"

    def left_s(self) -> float | None:
        """Forecast the seconds until the end; nothing before the first trial has ended."""
        forecast, limit = self._forecast, self.budget.left_s(self.used)
        if not any(one.state or one.is_climbing for one in forecast.explored):
            return limit
        live = [one for one in self.live.values() if one.group in self._groups]
        # Once the best are confirmed, nobody proposes any more.
        to_propose = sum(one.proposer.left for one in self.explorations) if self._to_confirm is None else 0
        needed_s = forecast.exploring(live, to_propose).wall_s + self._closing.wall_s
        return needed_s if limit is None else min(needed_s, limit)

    def _explore(self, trial_id: str) -> dict[str, Any] | None:
        """Begin the next proposed trial that is not passed over."""
        turns = self._turns
        if any(one.proposer.left for one in turns):
            # The study's file may be another process's since the last event.
            self.ledger.require_own()
        for one in turns:
            while (proposal := one.proposer.propose()) is not None:
                depths = one.ladder.depths(proposal.point) if one.ladder else ()
                name = f"{one.group}-{proposal.number}"
                facts = (name, one.group, proposal.number, proposal.point, one.seed, proposal.origin)
                history = TrialHistory(*facts, depths=depths)
                if not self._is_passed_over(one, history):
                    return self._begin(trial_id, history)
                self._pass_over(one, history)
        return None

    @property
    def _turns(self) -> list[Exploration]:
        """The explorations in the order in which they may propose now; nobody where exploring has to end."""
        if self.is_spent:
            return []
        # A population is compared while it trains, so it begins together.
        if self.budget == _NO_LIMITS or any(isinstance(one.scheduler, PopulationBasedTraining) for one in self.explorations):
            return list(self.explorations)
        if not self._has_score and (self._failed or not self.budget.leaves(self.used, self._closing)):
            # The others are for a comparison with what there would be nothing of.
            return [self.explorations[0]]
        # Nobody knows how many trials fit in: the next group would wait for one that never ends.
        return sorted(self.explorations, key=lambda one: len(self._own(one)))

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
        for one in () if self.is_spent else self.explorations:
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
            epochs=history.planned,
            # What confirms has as many depths, and trains all of them.
            is_climb=is_exploring and history.is_climbing,
        )
        return asdict(order)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: `recorder` hears of it with more details."""

    def heard(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Write an epoch down and tell the proposer."""
        history, report = self.live[trial_id], {key: result[key] for key in _REPORTED if key in result}
        if history.is_climbing and (report.get(HAS_DIVERGED) or report.get(HAS_NO_MEMORY)):
            # What it had before it climbed, it still has.
            return
        # As the trial says: a population may have changed the configuration of what comes next already.
        history.point = dict(report.get("point", history.point))
        history.forget([one for one in history.epochs if one["epoch"] >= report["epoch"]])
        history.epochs.append(report)
        self.ledger.append("epoch", {"trial": trial_facts(history), "report": report, "elapsed_s": self.elapsed_s})
        if self._is_told(history) and not report.get(HAS_DIVERGED):
            self._groups[history.group].proposer.heard(history.number, report)

    def ended(self, trial_id: str, state: str, error: str = "") -> None:
        """Write an end down and tell the proposer."""
        history = self.live[trial_id]
        if history.is_climbing and history.epochs and state not in ("finished", "stopped"):
            state, error = "stopped", f"{state} while it climbed {error}".rstrip()
        self.close(history, state, error)
        self.live.pop(trial_id)
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


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
