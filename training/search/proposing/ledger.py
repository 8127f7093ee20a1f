"""What happened in a search, event by event: the truth from which it is resumed.

    searches/NAME/ledger/000000.json   begun, with the settings
    searches/NAME/ledger/000017.json   trial-3 ended its second epoch
    searches/NAME/ledger/000018.json   resumed, by which job on which host

Every event is a file of its own, created whole and exclusively, so a crash cannot tear one, a full disk loses at most the newest, and two
processes cannot go on with the same search. Every event of a trial carries all that is known of the trial: losing one loses no other.
It does not know Ray: what Ray Tune writes for itself is never read back.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.errors import ConflictError
from cluster.storage import Storage
from training.errors import TuningError
from training.search.proposing.search_space import Point

# A state: its heads did badly on the frozen encoder, so it was not trained at all.
PASSED_OVER = "passed over"
# An event: the first rung was cut short.
CUT = "cut"
_DIGITS = 6


@dataclass
class TrialHistory:
    """What is known of one trial.

    Attributes:
        name: Like `trial-3`, `confirm-3-8` (trial 3 with seed 8), `refit-3-8-2` (the same on all texts, for 2 epochs) or
            `single-category-2`.
        group: Trials that are compared while they train, like `trial` or `single-category`.
        number: Its place in the group; 0 is the default configuration.
        point: Searched values by path, as they were in its last epoch.
        seed: Of weights, order and dropout.
        origin: Who proposed it: `default`, `equal weights`, `version N`, `heads alone`, `sampler`, `confirmation`, `words alone`.
        epochs: What each epoch reported, from epoch 1.
        state: How it ended: `finished`, `stopped`, `passed over`, `diverged`, `out of memory` or `died`; "" while it has not.
        error: Class of the error that ended it.
        depths: Frozen layers of what it trains one after the other; see `Order`.
        planned: Epochs of each of them, on training and validation texts together; see `Order.epochs`.
        repeated_s: Seconds that epochs took which were trained again since, from an older checkpoint or another trial's weights.
        repeated_cpu_s: The same in CPU seconds.
    """

    name: str
    group: str
    number: int
    point: Point
    seed: int
    origin: str
    epochs: list[dict[str, Any]] = field(default_factory=list)
    state: str = ""
    error: str = ""
    depths: tuple[int, ...] = ()
    planned: tuple[int, ...] = ()
    repeated_s: float = 0.0
    repeated_cpu_s: float = 0.0

    def forget(self, epochs: Sequence[dict[str, Any]]) -> None:
        """Take epochs out that are trained again; what they took was taken."""
        self.repeated_s += sum(float(one.get("epoch_s", 0.0)) for one in epochs)
        self.repeated_cpu_s += sum(float(one.get("epoch_cpu_s", 0.0)) for one in epochs)
        self.epochs[:] = [one for one in self.epochs if one not in epochs]

    @property
    def identity(self) -> tuple[str, int, int, tuple[int, ...], tuple[int, ...]]:
        """What tells it from every other training, whatever it is named: older searches have `refit-3`."""
        return self.group, self.number, self.seed, self.depths, self.planned

    @property
    def last(self) -> dict[str, Any]:
        """What its last epoch reported; empty before the first."""
        return self.epochs[-1] if self.epochs else {}

    def before_climbing(self) -> "TrialHistory":
        """Return what was known when it first ended, for a trial that climbs since."""
        if not self.is_climbing:
            return self
        before = [one for one in self.epochs if not one.get("is_climbing")]
        return replace(self, state="finished" if before and before[-1].get("is_last") else "stopped", epochs=before)

    @property
    def best_point(self) -> Point:
        """The point that its best epoch was trained with; a population changes points on the way."""
        return dict(self.last.get("best_point") or self.point)

    @property
    def is_climbing(self) -> bool:
        """Whether it trains more layers than it first did."""
        return len(self.depths) > 1

    @property
    def best_depth(self) -> int | None:
        """Frozen layers of the training that brought its best epoch; nothing before the first epoch."""
        best = self.last.get("best_number")
        return next((int(one["depth"]) for one in self.epochs if one["epoch"] == best and "depth" in one), None)

    @property
    def has_failed(self) -> bool:
        """Whether it ended badly."""
        return self.state not in ("", "finished", "stopped", PASSED_OVER)

    @property
    def is_sound(self) -> bool:
        """Whether it has a score that counts."""
        return self.state in ("finished", "stopped") and bool(self.epochs)


class Ledger:
    """The events of one search.

    Args:
        storage: Where searches are.
        path: Folder of the ledger in it.
    """

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage = storage
        self.path = path
        self.damaged: list[str] = []
        self._events = self._read()
        # Whether another process worked on this search before.
        self.is_resumed = bool(self.damaged) or any(event["kind"] != "begun" for event in self._events)
        self._next = 1 + max((int(name.partition(".")[0]) for name in self._names()), default=-1)

    def append(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Write the next event.

        Raises:
            TuningError: Another process wrote it.
        """
        event = {"kind": kind, **facts}
        try:
            self._storage.claim(self._next_file, event)
        except ConflictError:
            raise self._taken() from None
        self._events.append(event)
        self._next += 1

    def require_own(self) -> None:
        """Refuse to go on where another process does.

        Raises:
            TuningError: Another process wrote the next event.
        """
        if self._storage.exists(self._next_file):
            raise self._taken()

    @property
    def _next_file(self) -> str:
        return f"{self.path}/{self._next:0{_DIGITS}d}.json"

    def _taken(self) -> TuningError:
        return TuningError(f"{self._storage.uri}/{self.path}: another process goes on with this search", "wait until it ends, or stop it")

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return all events of a kind, oldest first."""
        return [event for event in self._events if event["kind"] == kind]

    @property
    def words_score(self) -> float | None:
        """What words say by themselves has, where that is a model to publish: see `words_alone`."""
        return next((float(one["look"]["score"]) for one in self.events("look") if one.get("is_model")), None)

    @property
    def cut_cpu_s(self) -> float:
        """CPU seconds that first rungs took which were cut short: what was encoded stays, and counts as used."""
        return sum(float(event["cpu_s"]) for event in self.events(CUT))

    @property
    def elapsed_s(self) -> float:
        """Wall seconds the search had taken at its last event."""
        return max((float(event.get("elapsed_s", 0.0)) for event in self._events), default=0.0)

    def histories(self) -> dict[str, TrialHistory]:
        """Put together what is known of each trial, by its name, in the order they began."""
        histories: dict[str, TrialHistory] = {}
        for event in self._events:
            if event["kind"] not in ("proposed", "epoch", "ended"):
                continue
            facts = event["trial"]
            history = histories.setdefault(facts["name"], TrialHistory(**facts))
            if event["kind"] == "proposed":
                # Or begun anew, to climb.
                history.state = ""
            history.point, history.depths, history.planned = facts["point"], tuple(facts["depths"]), tuple(facts["planned"])
            if event["kind"] == "epoch":
                _remember(history, event["report"])
            elif event["kind"] == "ended":
                history.state, history.error = event["state"], event["error"]
                # An epoch whose own event was lost.
                if event["report"]:
                    _remember(history, event["report"])
        return histories

    def _names(self) -> list[str]:
        return [name for name in self._storage.names(self.path) if name.endswith(".json")]

    def _read(self) -> list[dict[str, Any]]:
        events = []
        for name in self._names():
            try:
                event = json.loads(self._storage.read_bytes(f"{self.path}/{name}"))
                events.append({"kind": str(event["kind"]), **event})
            except (ValueError, KeyError, TypeError):
                self.damaged.append(name)
        return events


def _remember(history: TrialHistory, report: dict[str, Any]) -> None:
    # A trial that goes on from an older checkpoint reports an epoch a second time; the newer report replaces the older. Its end repeats
    # the last report, which is the same.
    history.forget([one for one in history.epochs if one["epoch"] == report["epoch"] and one != report])
    others = [one for one in history.epochs if one["epoch"] != report["epoch"]]
    history.epochs[:] = sorted([*others, report], key=lambda one: int(one["epoch"]))


def trial_facts(history: TrialHistory) -> dict[str, Any]:
    """Return what every event of a trial repeats."""
    return {key: getattr(history, key) for key in ("name", "group", "number", "point", "seed", "origin", "depths", "planned")}


def sound(histories: Sequence[TrialHistory], group: str) -> list[TrialHistory]:
    """Return the trials of a group with a score that counts, by number."""
    return sorted((one for one in histories if one.group == group and one.is_sound), key=lambda one: one.number)
