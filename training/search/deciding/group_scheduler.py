"""Each group of trials under its own scheduler, in one experiment of Ray Tune.

It does not know how a scheduler decides (`schedulers`) or what is handed out (`agenda`).
"""

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler


class GroupScheduler(FIFOScheduler):
    """Lets each exploration's own scheduler judge its trials; nobody stops a trial that confirms.

    Args:
        schedulers: By group.
        is_spent: Tells whether exploring has to end; what trains then stops.
    """

    def __init__(self, schedulers: Mapping[str, TrialScheduler], is_spent: Callable[[], bool] = lambda: False) -> None:
        super().__init__()
        self._schedulers, self._is_spent = dict(schedulers), is_spent

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
        """Ask the group's scheduler, unless the budget is spent."""
        if trial.config["group"] in self._schedulers and self._is_spent():
            return str(TrialScheduler.STOP)
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
