"""Tells the agenda what Ray Tune reports: epochs, ends, deaths; and the loggers when a search ends before its trials.

It does not know what is written down of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from ray.tune import Callback
from ray.tune.logger import LoggerCallback

from training.search.agenda import Agenda
from training.search.proposing.searcher import HAS_DIVERGED, HAS_NO_MEMORY, IS_LAST

# Ray's words.
_LOW_ON_MEMORY = "killed due to the node running low on memory"


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
            name = _error_of(trial)
        except (OSError, EOFError, UnpicklingError):
            # Tune hands an error over through a file, which a full disk cuts short.
            name = "unknown error"
        self._agenda.ended(trial.trial_id, "out of memory" if "OutOfMemory" in name or name == "MemoryError" else "died", name)


def _error_of(trial: Any) -> str:
    """Name the last error of a trial that died."""
    # The one with which Ray's monitor ends a process Tune keeps as words alone, and of earlier ones the object may still be there. It
    # writes them here first, and into the storage later.
    words = Path(trial.error_file).read_text(encoding="utf-8", errors="replace") if trial.error_file else ""
    if _LOW_ON_MEMORY in words.rpartition("Failure # ")[2]:
        return "OutOfMemoryError"
    error = trial.get_pickled_error()
    return type(getattr(error, "cause", None) or error).__name__


class OpenLogs(Callback):
    """Ends the logs of trials that a search leaves behind: Tune ends those of trials that came to an end, and keeps the others' files open.

    Args:
        loggers: Tune's, which hear of every trial from Tune itself.
    """

    def __init__(self, loggers: Sequence[LoggerCallback]) -> None:
        self._loggers = loggers
        self._open: dict[str, Any] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Hear that a trial begins, or goes on."""
        self._open[trial.trial_id] = trial

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Hear that a trial ended by itself or was stopped: Tune ends its logs."""
        self._open.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Hear that a trial died for good: Tune ends its logs."""
        self._open.pop(trial.trial_id, None)

    def on_experiment_end(self, trials: list[Any], **_: Any) -> None:
        """End what is open: the search is over, by a signal or by what stopped it."""
        for trial in self._open.values():
            for logger in self._loggers:
                logger.log_trial_end(trial, failed=True)
        self._open.clear()


def state_of(result: Mapping[str, Any]) -> str:
    """Name how a trial ended that did not die, by its last report."""
    if result.get(HAS_DIVERGED):
        return "diverged"
    if result.get(HAS_NO_MEMORY):
        return "out of memory"
    return "finished" if result.get(IS_LAST) else "stopped"
