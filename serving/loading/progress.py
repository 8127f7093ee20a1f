"""A bar while requests are sent, on a terminal; elsewhere nothing.

It looks at the run a few times a second, so that requests pay nothing for it.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from serving.loading.outcomes import Run

_REFRESHES_PER_S = 4
_WIDTH = 40


@contextmanager
def shown(run: Run) -> Iterator[None]:
    """Show how far a run is, while inside."""
    if not sys.stdout.isatty():
        yield
        return
    with Live(get_renderable=lambda: bar(run), refresh_per_second=_REFRESHES_PER_S, transient=True):
        yield


def bar(run: Run) -> Table:
    """Draw how far a run is, by its time or its count, whichever is further."""
    elapsed_s, done = time.monotonic() - run.begun, len(run.outcomes)
    seconds, count = run.load.seconds, run.load.count
    share = max(elapsed_s / seconds if seconds else 0.0, done / count if count else 0.0)
    line = Table.grid(padding=(0, 2))
    said = f"{run.name}  {elapsed_s:.0f} s  {done:,} done, {run.left - done:,} on their way"
    line.add_row(ProgressBar(total=1.0, completed=min(share, 1.0), width=_WIDTH), said)
    return line
