"""The seam to Ray for the first rung: texts encoded by whoever is free, then heads likewise.

What is encoded and how heads are searched is in `reading` and `heads_alone`.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cluster.console import say
from cluster.storage import Storage
from training.activations.wanted import SHARD_TOKENS
from training.fitting.device import choose_device
from training.network.model import TwoHeadBert
from training.search.proposing.ledger import Ledger
from training.search.proposing.search_space import trial_settings
from training.search.trials.assignment import Assignment
from training.search.trials.build import build_model
from training.search.trials.first_look import Look, look
from training.search.trials.found_heads import FirstRung, join, read_rung, write_rung
from training.search.trials.heads_alone import encode, explore_head
from training.search.trials.slots import slots

# A process costs seconds to start: whoever has less to do than this shares one.
_SHARDS_EACH, _LABELS_EACH = 2, 1_000


def first_rung(assignment: Assignment, folder: str, ledger: Ledger) -> FirstRung | None:
    """Find the heads' beginnings on the frozen encoder, or read what an interrupted search found.

    Args:
        assignment: What all trials share.
        folder: Of the search, in the storage; the rung is written there.
        ledger: Takes the first look.

    Returns:
        Nothing where the settings want none, a version's heads are the beginning, or the features have no room.
    """
    if not assignment.settings.tuning.ladder or assignment.start:
        return None
    storage = Storage(assignment.storage)
    found = read_rung(storage, folder, assignment.settings.heads)
    if found is None and (found := _explored(assignment, ledger)) is not None:
        write_rung(storage, folder, found)
    if found is None:
        say("note      no room for the frozen encoder's vectors, so heads begin at random; see training.activations.most_bytes")
        return None
    for head, one in found.heads.items():
        said = f"cross-validated {one.scores[0]:.3f} on the frozen encoder, best" if one.best else "no score"
        say(f"heads     {head:<14} {said} of {one.candidates} in {one.seconds:.0f} s")
    return found


def _explored(assignment: Assignment, ledger: Ledger) -> FirstRung | None:
    import ray

    # What the search had taken before counts as well: whoever goes on goes on from the last event.
    begun, spent_s = time.monotonic(), ledger.elapsed_s
    resources = assignment.settings.tuning.resources_per_trial
    # Encoding wants what a trial has; heads on vectors that are there need no GPU.
    encoding: Any = ray.remote(_encode).options(num_cpus=resources.cpu, num_gpus=resources.gpu)
    exploring: Any = ray.remote(_explore).options(num_cpus=resources.cpu, num_gpus=0)
    shared = ray.put(assignment)
    looking: Any = ray.remote(_look).options(num_cpus=resources.cpu, num_gpus=resources.gpu)
    # By itself: whoever encodes the rest would keep it waiting.
    seen, looked = ray.get(looking.remote(shared))
    ledger.append("look", {"look": seen.to_dict(), "elapsed_s": spent_s + time.monotonic() - begun})
    texts = f"{seen.texts} of {len(assignment.tokens['training'])} texts, on {seen.validation_texts} validation texts"
    say(f"first     score {seen.score:.3f} ({seen.shown}): heads on {texts}")
    # They divide the texts among themselves; see `activations`.
    spent = ray.get([encoding.remote(shared) for _ in range(_encoders(assignment))])
    if None in spent:
        return None
    found = ray.get([exploring.remote(shared, heads) for heads in _groups(assignment)])
    if None in found:
        return None
    return join([rung for some in found for rung in some], sum(spent) + looked)


def _encoders(assignment: Assignment) -> int:
    """Return how many processes encode: as many as there is room for, each with enough to do."""
    tokens = sum(len(assignment.tokens[split].ids) for split in ("training", "validation"))
    return max(1, min(slots(assignment.settings.tuning), tokens // (_SHARDS_EACH * SHARD_TOKENS)))


def _groups(assignment: Assignment) -> list[tuple[str, ...]]:
    """Divide the heads among as many processes as there is room for, each with enough to do."""
    heads = tuple(assignment.settings.heads)
    labels = len(heads) * len(assignment.tokens["training"])
    count = max(1, min(slots(assignment.settings.tuning), len(heads), labels // _LABELS_EACH))
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
