"""What the first rung found: heads, their scores, and the files it is kept in.

It does not know how heads are searched (`heads_alone`), Ray, or texts.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from cluster.errors import StorageError
from cluster.storage import Storage, sha256
from training.fit_settings import ClassWeighting, HeadSettings
from training.fitting.population import Candidate
from training.judging.metrics import selection_score
from training.search.proposing.search_space import Point, TrialSettings

_WEIGHTS_FILE, _FACTS_FILE = "heads.safetensors", "heads.json"
# Of a tensor's name without a class weighting: head, units, loss, parameter.
_LEAST_PARTS = 4
# A loss weight means nothing to a head by itself.
OF_A_HEAD = ("hidden_size", "dropout", "loss", "class_weighting")


@dataclass(frozen=True)
class HeadFound:
    """The first rung of one head.

    Attributes:
        candidates: How many were tried.
        best: The best candidate of each shape and class weighting, the best of all first; none where all diverged.
        scores: Theirs, by cross-validation over the training texts.
        seconds: Wall time.
        cpu_seconds: Of the process.
    """

    candidates: int
    best: tuple[Candidate, ...]
    scores: tuple[float, ...]
    seconds: float
    cpu_seconds: float

    def place(self, head: HeadSettings) -> int | None:
        """Return which of the best a head begins with: of its shape, and where that was tried of its class weighting as well."""
        alike = [place for place, one in enumerate(self.best) if (one.hidden_size, one.loss) == (head.hidden_size, head.loss)]
        own = [place for place in alike if self.best[place].class_weighting == head.class_weighting]
        return next(iter([*own, *alike]), None)

    def score(self, head: HeadSettings) -> float | None:
        """Return the score of what a head begins with, if its shape was tried."""
        place = self.place(head)
        return None if place is None else self.scores[place]


@dataclass(frozen=True)
class FirstRung:
    """What was found, head by head.

    Attributes:
        heads: By name.
        tensors: Weights of the best candidates: `HEAD/HIDDEN_SIZE/LOSS/CLASS_WEIGHTING/PARAMETER`.
        encoding_cpu_s: CPU seconds that the texts took, of all processes; 0 where their vectors were there already.
    """

    heads: Mapping[str, HeadFound]
    tensors: Mapping[str, torch.Tensor]
    encoding_cpu_s: float = 0.0

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all of it."""
        return self.encoding_cpu_s + sum(one.cpu_seconds for one in self.heads.values())

    def score(self, trial: TrialSettings, score_weights: Mapping[str, float]) -> float | None:
        """Return the selection score that a configuration's heads have here; nothing where a head's shape was not tried."""
        found = {head: self.heads[head].score(one) for head, one in trial.heads.items()}
        known = {head: score for head, score in found.items() if score is not None}
        return selection_score(known, score_weights) if len(known) == len(found) else None

    def point(self, searched: Iterable[str]) -> Point:
        """Return the best candidate of every head, by path, as far as it is searched."""
        found: Point = {
            f"heads/{head}/{name}": getattr(one.best[0], name) for head, one in self.heads.items() if one.best for name in OF_A_HEAD
        }
        return {path: found[path] for path in searched if path in found}


def kind(head: str, candidate: Candidate) -> str:
    """Name what the best candidate is kept of: what decides whether weights fit a head, and what they were to learn."""
    return f"{head}/{candidate.hidden_size}/{candidate.loss}/{candidate.class_weighting}"


def join(rungs: Sequence[FirstRung], encoding_cpu_s: float) -> FirstRung:
    """Put the rungs of several heads together."""
    heads = {head: one for rung in rungs for head, one in rung.heads.items()}
    return FirstRung(heads, {name: value for rung in rungs for name, value in rung.tensors.items()}, encoding_cpu_s)


def write_rung(storage: Storage, folder: str, rung: FirstRung) -> None:
    """Write a first rung into a search's folder; it is there when its facts are."""
    content = save_tensors({name: value.contiguous() for name, value in rung.tensors.items()})
    storage.write_bytes(f"{folder}/{_WEIGHTS_FILE}", content)
    facts = {
        "sha256": sha256(content),
        "encoding_cpu_s": rung.encoding_cpu_s,
        "heads": {head: asdict(one) for head, one in rung.heads.items()},
    }
    storage.write_bytes(f"{folder}/{_FACTS_FILE}", json.dumps(facts, indent=2).encode())


def read_rung(storage: Storage, folder: str, heads: Mapping[str, HeadSettings]) -> FirstRung | None:
    """Read what `write_rung` wrote; nothing where it is not there whole.

    Args:
        storage: Where searches are.
        folder: Of the search.
        heads: Its own; until 2026-11-30 these alone said how classes were weighed, which could not be searched.
    """
    try:
        facts = json.loads(storage.read_bytes(f"{folder}/{_FACTS_FILE}"))
        content = storage.read_bytes(f"{folder}/{_WEIGHTS_FILE}")
        if sha256(content) != facts["sha256"]:
            return None
        weightings = {head: heads[head].class_weighting if head in heads else "none" for head in facts["heads"]}
        found = {head: _head_found(weightings[head], **one) for head, one in facts["heads"].items()}
    except (StorageError, ValueError, KeyError, TypeError):
        return None
    tensors = {_with_weighting(name, weightings): value for name, value in load_tensors(content).items()}
    return FirstRung(found, tensors, float(facts.get("encoding_cpu_s", 0.0)))


def _head_found(weighting: ClassWeighting, best: list[dict[str, Any]], scores: list[float], **facts: Any) -> HeadFound:
    found = tuple(Candidate(**{"class_weighting": weighting, **one}) for one in best)
    return HeadFound(best=found, scores=tuple(scores), **facts)


def _with_weighting(name: str, weightings: Mapping[str, ClassWeighting]) -> str:
    """Complete the name of a tensor that names no class weighting."""
    parts = name.split("/")
    return name if len(parts) > _LEAST_PARTS else "/".join([*parts[:-1], weightings[parts[0]], parts[-1]])
