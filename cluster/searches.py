"""Tells how far searches are, by what they have written into the storage.

    searches/NAME/search.json      when it began
    searches/NAME/jobs/ID          the jobs that worked on it
    searches/NAME/ledger/*.json    what happened: `proposed`, `epoch` and `ended`, each of one trial
    searches/NAME/result.json      once it is over

It knows these files, and neither what a trial trains nor who wrote them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import StorageError
from cluster.storage import Storage

FOLDER = "searches"
JOBS_FOLDER = "jobs"


@dataclass
class Search:
    """How far a search is.

    Attributes:
        name: Its name.
        begun: When, ISO 8601 in UTC.
        jobs: Ids of those that worked on it.
        trials: Trial → how it ended; "" while it has not.
        scores: Trial → its best score so far.
        has_result: Whether its result is there; one that was resumed afterwards goes on all the same.
    """

    name: str
    begun: str = ""
    jobs: tuple[str, ...] = ()
    trials: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    has_result: bool = False

    @property
    def open(self) -> int:
        """Trials that have not ended; of a search that was killed they never do."""
        return sum(not state for state in self.trials.values())

    @property
    def failed(self) -> int:
        """Trials that ended badly."""
        return sum(state not in ("", "finished", "stopped", "passed over") for state in self.trials.values())

    @property
    def best(self) -> float | None:
        """The best score so far."""
        return max(self.scores.values(), default=None)

    def take(self, event: dict[str, Any]) -> None:
        """Take in what happened next."""
        if (trial := event.get("trial")) is None:
            return
        name = str(trial["name"])
        self.trials[name] = str(event.get("state", "")) if event["kind"] == "ended" else ""
        if (score := (event.get("report") or {}).get("score")) is not None and event.get("state", "") in ("", "finished", "stopped"):
            self.scores[name] = float(score)


class Searches:
    """The searches in a storage; what was read of them is not read again.

    Args:
        storage: Of the cluster.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._known: dict[str, Search] = {}
        self._seen: set[str] = set()

    def all(self) -> list[Search]:
        """Read what is new, and return all of them, the newest first."""
        for name in self._storage.names(FOLDER):
            self._read(self._known.setdefault(name, Search(name)))
        return sorted(self._known.values(), key=lambda one: one.begun, reverse=True)

    def _read(self, search: Search) -> None:
        folder = f"{FOLDER}/{search.name}"
        search.begun = search.begun or str(self._json(f"{folder}/search.json").get("begun", ""))
        search.jobs = tuple(self._storage.names(f"{folder}/{JOBS_FOLDER}"))
        search.has_result = self._storage.exists(f"{folder}/result.json")
        for name in self._storage.names(f"{folder}/ledger"):
            if (path := f"{folder}/ledger/{name}") not in self._seen:
                self._seen.add(path)
                search.take(self._json(path))

    def _json(self, path: str) -> dict[str, Any]:
        try:
            found = json.loads(self._storage.read_bytes(path))
        except (StorageError, ValueError):
            # Damaged, or written just now: whoever goes on with the search says so.
            return {}
        return found if isinstance(found, dict) else {}


def best_by_job(searches: Sequence[Search]) -> dict[str, float]:
    """Return the best score of each job's search; of several searches, of the newest, which comes first."""
    return {job: one.best for one in reversed(searches) for job in one.jobs if one.best is not None}
