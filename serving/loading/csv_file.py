"""One row a request, for those who compute something else from it; no text is in it."""

import csv
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import StorageError
from serving.loading.outcomes import Run

COLUMNS = ("load", "due_s", "left_s", "latency_s", "status", "texts", "batch", "version")


def write_csv(path: Path, runs: Sequence[Run]) -> None:
    """Write all requests of all runs, those without an answer too, in the order they were due; what nobody told is empty.

    Raises:
        StorageError: It cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for run in runs:
                for one in sorted(run.outcomes):
                    times = (f"{seconds:.6f}" for seconds in (one.due_s, one.left_s, one.latency_s))
                    writer.writerow([run.name, *times, one.status, one.texts, one.batch_texts or "", one.version or ""])
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from error
