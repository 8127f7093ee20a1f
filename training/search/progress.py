"""Shows a search while it goes on: a live table in a terminal, one line an event elsewhere.

It knows trials by the reports of `trial` and nothing of how they are made.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.tune import Callback
from rich.console import Console
from rich.live import Live
from rich.table import Table

from training.search.proposing.searcher import HEAD_SCORES, SCORE
from training.search.recorder import state_of

_DIGITS = 3


@dataclass
class TrialRow:
    """What is shown of one trial."""

    name: str
    state: str = "waiting"
    epoch: int = 0
    score: float | None = None
    heads: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class Progress(Callback):
    """Follows the trials of a search.

    Args:
        heads: In the order of their columns.
        status: Returns the best so far, and how long it will still take.
    """

    def __init__(self, heads: Sequence[str], status: Callable[[], str] = str) -> None:
        self._heads, self._status = list(heads), status
        self._rows: dict[str, TrialRow] = {}
        self._started = time.monotonic()
        self._live: Live | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks with the search; an open terminal cannot be.
        return self.__dict__ | {"_live": None, "_status": str}

    def setup(self, *_: Any, **__: Any) -> None:
        """Open the live table, in a terminal."""
        if sys.stdout.isatty():
            self._live = Live(console=Console(), auto_refresh=False)
            self._live.start()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Show that a trial started."""
        self._show(self._row(trial), "training")

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Show an epoch."""
        row = self._row(trial)
        row.epoch, row.score, row.seconds = result["epoch"], result[SCORE], result.get("time_total_s", 0.0)
        row.heads = dict(result.get(HEAD_SCORES, {}))
        self._show(row, "training")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Show how a trial ended."""
        self._show(self._row(trial), state_of(trial.last_result or {}))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Show that a trial died for good."""
        self._show(self._row(trial), "died")

    def on_experiment_end(self, trials: list[Any], **_: Any) -> None:
        """Close the live table."""
        if self._live is not None:
            self._live.stop()

    def _row(self, trial: Any) -> TrialRow:
        return self._rows.setdefault(str(trial.trial_id), TrialRow(str(trial)))

    def _show(self, row: TrialRow, state: str) -> None:
        row.state = state
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            return
        print(self._line(row), flush=True)
        if state not in ("waiting", "training") and (said := self._status()):
            print(f"[{time.monotonic() - self._started:6.1f} s] {said}", flush=True)

    def _line(self, row: TrialRow) -> str:
        elapsed = time.monotonic() - self._started
        parts = [f"[{elapsed:6.1f} s] {row.name:<12} {row.state:<9}"]
        if row.score is not None:
            heads = "  ".join(f"{head} {value:.{_DIGITS}f}" for head, value in row.heads.items())
            parts.append(f"epoch {row.epoch}  score {row.score:.{_DIGITS}f}  ({heads})")
        return " ".join(parts).rstrip()

    def _table(self) -> Table:
        done = sum(row.state not in ("waiting", "training") for row in self._rows.values())
        table = Table(title="; ".join(said for said in (f"{done} trials done", self._status()) if said), title_justify="left")
        for column in ("trial", "state", "epoch", "score", *self._heads, "seconds"):
            table.add_column(column, justify="left" if column in ("trial", "state") else "right")
        best = max((row.score for row in self._rows.values() if row.score is not None), default=None)
        for row in self._rows.values():
            score = "" if row.score is None else f"{row.score:.{_DIGITS}f}"
            heads = [f"{row.heads[head]:.{_DIGITS}f}" if head in row.heads else "" for head in self._heads]
            style = "bold green" if row.score is not None and row.score == best else None
            table.add_row(row.name, row.state, str(row.epoch or ""), score, *heads, f"{row.seconds:.0f}", style=style)
        return table
