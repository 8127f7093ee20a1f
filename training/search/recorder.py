"""Tells the agenda what Ray Tune reports: epochs, ends, deaths.

It does not know what is written down of them.
"""

from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any

from ray.tune import Callback

from training.search.agenda import Agenda
from training.search.proposing.searcher import HAS_DIVERGED, HAS_NO_MEMORY, IS_LAST


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
