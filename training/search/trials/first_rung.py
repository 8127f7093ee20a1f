"""The seam to Ray for the first rung: texts encoded by whoever is free, then heads likewise.

What is encoded and how heads are searched is in `reading` and `heads_alone`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cluster.console import say
from cluster.storage import Storage
from training.activations.wanted import SHARD_TOKENS
from training.fitting.device import choose_device
from training.network.model import TwoHeadBert
from training.search.proposing.ledger import CUT, Ledger
from training.search.proposing.search_space import trial_settings
from training.search.trials.assignment import Assignment
from training.search.trials.build import build_model
from training.search.trials.first_look import Look, look
from training.search.trials.found_heads import FirstRung, join, read_rung, write_rung
from training.search.trials.heads_alone import encode, explore_head
from training.search.trials.slots import side_by_side

# A process costs seconds to start: whoever has less to do than this shares one.
_SHARDS_EACH, _LABELS_EACH = 2, 1_000
# So often it is looked whether there is something left to use.
_LOOK_EVERY_S = 1.0


class BudgetSpentError(Exception):
    """What the search may use was used up before the first rung was done."""


@dataclass(frozen=True)
class Allowance:
    """What a search may have used by the end of its first rung; null means no limit.

    Attributes:
        wall_s: Seconds on the clock, what it took before included.
        cpu_s: CPU seconds of the first rung's processes. Of those that still run it is known what they reserve, which is what counts.
    """

    wall_s: float | None = None
    cpu_s: float | None = None

    def is_used_up(self, wall_s: float, cpu_s: float) -> bool:
        """Tell whether there is nothing left."""
        return (self.wall_s is not None and wall_s >= self.wall_s) or (self.cpu_s is not None and cpu_s >= self.cpu_s)


def first_rung(assignment: Assignment, folder: str, ledger: Ledger, allowance: Allowance, elapsed: Callable[[], float]) -> FirstRung | None:
    """Find the heads' beginnings on the frozen encoder, or read what an interrupted search found.

    Args:
        assignment: What all trials share.
        folder: Of the search, in the storage; the rung is written there.
        ledger: Takes the first look, and what was used where it is cut short.
        allowance: What may be used.
        elapsed: Tells the wall seconds that the search has taken.

    Returns:
        Nothing where the settings want none, a version's heads are the beginning, or the features have no room.

    Raises:
        BudgetSpentError: More was needed.
    """
    if not assignment.settings.tuning.ladder or assignment.start:
        return None
    storage = Storage(assignment.storage)
    found = read_rung(storage, folder, assignment.settings.heads)
    if found is None and (found := _explored(assignment, ledger, allowance, elapsed)) is not None:
        write_rung(storage, folder, found)
    if found is None:
        say("note      no room for the frozen encoder's vectors, so heads begin at random; see training.activations.most_bytes")
        return None
    for head, one in found.heads.items():
        said = f"cross-validated {one.scores[0]:.3f} on the frozen encoder, best" if one.best else "no score"
        say(f"heads     {head:<14} {said} of {one.candidates} in {one.seconds:.0f} s")
    return found


def _explored(assignment: Assignment, ledger: Ledger, allowance: Allowance, elapsed: Callable[[], float]) -> FirstRung | None:
    import ray

    resources = assignment.settings.tuning.resources_per_trial
    # Encoding wants what a trial has; heads on vectors that are there need no GPU. Not by `options`: only where `remote` itself is told of
    # a GPU, a process ends after its task, and with it what it holds of the GPU.
    encoding, looking = (ray.remote(num_cpus=resources.cpu, num_gpus=resources.gpu)(task) for task in (_encode, _look))
    exploring = ray.remote(num_cpus=resources.cpu, num_gpus=0)(_explore)
    shared = ray.put(assignment)
    # By itself: whoever encodes the rest would keep it waiting.
    waiting = _Waiting(ledger, allowance, elapsed, resources.cpu)
    ((seen, looked),) = waiting.get([looking.remote(shared)], lambda found: found[0][1])
    ledger.append("look", {"look": seen.to_dict(), "elapsed_s": elapsed()})
    texts = f"{seen.texts} of {len(assignment.tokens['training'])} texts, on {seen.validation_texts} validation texts"
    say(f"first     score {seen.score:.3f} ({seen.shown}): heads on {texts}")
    # They divide the texts among themselves; see `activations`.
    spent = waiting.get([encoding.remote(shared) for _ in range(_encoders(assignment))], lambda found: sum(one or 0.0 for one in found))
    if None in spent:
        return None
    found = waiting.get([exploring.remote(shared, heads) for heads in _groups(assignment)])
    if None in found:
        return None
    return join([rung for some in found for rung in some], sum(spent) + looked)


@dataclass
class _Waiting:
    """Waits for tasks as long as there is something left to use."""

    ledger: Ledger
    allowance: Allowance
    elapsed: Callable[[], float]
    cpus_each: float
    cpu_s: float = 0.0

    def get(self, tasks: Sequence[Any], used: Callable[[list[Any]], float] = lambda _: 0.0) -> list[Any]:
        """Return what all of them return.

        Args:
            tasks: References that run side by side. The first that fails ends the waiting.
            used: Tells from what they return how many CPU seconds they took.

        Raises:
            BudgetSpentError: They would have taken more than is left; they are ended, and the ledger says what they took.
        """
        import ray

        late, reserved_s, at = list(tasks), 0.0, self.elapsed()
        try:
            while late:
                if self.allowance.is_used_up(at, self.cpu_s + reserved_s):
                    raise BudgetSpentError
                running = min(self.cpus_each * len(late), ray.cluster_resources().get("CPU", 0.0))
                done, late = ray.wait(late, num_returns=1, timeout=_LOOK_EVERY_S)
                ray.get(done)
                before, at = at, self.elapsed()
                reserved_s += (at - before) * running
        except (BudgetSpentError, KeyboardInterrupt):
            for task in late:
                # What has been encoded is whole, shard by shard.
                ray.cancel(task, force=True)
            self.ledger.append(CUT, {"cpu_s": self.cpu_s + reserved_s, "elapsed_s": self.elapsed()})
            raise
        found: list[Any] = ray.get(list(tasks))
        self.cpu_s += used(found)
        return found


def _encoders(assignment: Assignment) -> int:
    """Return how many processes encode: as many as there is room for, each with enough to do."""
    tokens = sum(len(assignment.tokens[split].ids) for split in ("training", "validation"))
    each = assignment.settings.tuning.resources_per_trial
    return max(1, min(side_by_side(each.cpu, each.gpu), tokens // (_SHARDS_EACH * SHARD_TOKENS)))


def _groups(assignment: Assignment) -> list[tuple[str, ...]]:
    """Divide the heads among as many processes as there is room for, each with enough to do."""
    heads = tuple(assignment.settings.heads)
    labels = len(heads) * len(assignment.tokens["training"])
    count = max(1, min(side_by_side(assignment.settings.tuning.resources_per_trial.cpu, 0), len(heads), labels // _LABELS_EACH))
    return [heads[place::count] for place in range(count)]


def _look(assignment: Assignment) -> tuple[Look, float]:
    begun = time.process_time()
    return look(assignment, _model(assignment)), time.process_time() - begun


def _encode(assignment: Assignment) -> float | None:
    begun = time.process_time()
    return None if _pooled(assignment) is None else time.process_time() - begun


def _explore(assignment: Assignment, heads: Sequence[str]) -> list[FirstRung] | None:
    pooled = _pooled(assignment)
    # Another machine than the one that encoded need not have as much room.
    return None if pooled is None else [explore_head(assignment, head, pooled) for head in heads]


def _pooled(assignment: Assignment) -> torch.Tensor | None:
    return encode(assignment, _model(assignment))


def _model(assignment: Assignment) -> TwoHeadBert:
    torch.set_num_threads(max(1, int(assignment.settings.tuning.resources_per_trial.cpu)))
    model = build_model(assignment, trial_settings(assignment.settings, {}))
    nn.Module.to(model, choose_device())
    return model
