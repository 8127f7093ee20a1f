"""The first rung: every head by itself on the frozen encoder's pooled vectors, many candidates at once, before any layer is trained.

An encoder that trains costs minutes a trial; heads on vectors that are there already cost seconds for all. What is found here is where
every trial begins, its heads with the best weights of their shape, and one of the first points. It does not know Ray.

Sources: Kumar et al. 2022, Fine-Tuning can Distort Pretrained Features (arXiv 2202.10054), for training heads before layers;
Optuna's ask-and-tell interface for proposals in batches.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
import torch
from optuna.trial import TrialState
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from cluster.errors import StorageError
from cluster.storage import Storage, sha256
from training.fitting.loss import inverse_sqrt_weights
from training.fitting.population import Candidate, Outcome, Question, known, train_population
from training.network.encoder import encoder_layers
from training.network.inputs import PooledInputs
from training.network.model import TwoHeadBert
from training.search.assignment import Assignment
from training.search.reading import read
from training.search.samplers import make_sampler
from training.search.search_space import Point, distributions, first_points, trial_settings

_WEIGHTS_FILE, _FACTS_FILE = "heads.safetensors", "heads.json"
_RATE = "head_learning_rate"
# A loss weight means nothing to a head by itself.
_OF_A_HEAD = ("hidden_size", "dropout", "loss")
# Proposals made together: more would learn less from each other, fewer would fill no stack.
_BATCH = 16
# Features cost nothing to read again, so heads may take the time they need.
_EPOCHS, _PATIENCE = 60, 8
_STEPS, _LEAST_TEXTS, _MOST_TEXTS = 16, 32, 512

Pooled = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class HeadFound:
    """The first rung of one head.

    Attributes:
        candidates: How many were tried.
        best: The best candidate of each shape, the best of all first; none where all diverged.
        scores: Theirs, on the validation texts.
        seconds: Wall time.
        cpu_seconds: Of the process.
    """

    candidates: int
    best: tuple[Candidate, ...]
    scores: tuple[float, ...]
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class FirstRung:
    """What was found, head by head.

    Attributes:
        heads: By name.
        tensors: Weights of the best candidate of each shape: `HEAD/HIDDEN_SIZE/LOSS/PARAMETER`.
        encoding_cpu_s: CPU seconds that the texts took, of all processes; 0 where their vectors were there already.
    """

    heads: Mapping[str, HeadFound]
    tensors: Mapping[str, torch.Tensor]
    encoding_cpu_s: float = 0.0

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all of it."""
        return self.encoding_cpu_s + sum(one.cpu_seconds for one in self.heads.values())

    def point(self, searched: Iterable[str]) -> Point:
        """Return the best candidate of every head, by path, as far as it is searched."""
        found: Point = {
            f"heads/{head}/{name}": getattr(one.best[0], name) for head, one in self.heads.items() if one.best for name in _OF_A_HEAD
        }
        return {path: found[path] for path in searched if path in found}


def encode(assignment: Assignment, model: TwoHeadBert) -> dict[str, torch.Tensor] | None:
    """Return the wholly frozen encoder's pooled vectors of training and validation texts; nothing where there is no room to keep them.

    Args:
        assignment: What all trials share.
        model: With its encoder whole.
    """
    inputs = read(assignment, model, len(encoder_layers(model.encoder)), ("training", "validation"))
    return {split: one.pooled for split, one in inputs.items() if isinstance(one, PooledInputs)} or None


def explore_head(assignment: Assignment, head: str, pooled: Pooled) -> FirstRung:
    """Search one head on frozen features.

    Args:
        assignment: What all trials share.
        head: Its name.
        pooled: `training` and `validation` → (texts, width).
    """
    begun, cpu = time.monotonic(), time.process_time()
    own = assignment.of_heads((head,))
    settings = own.settings
    searched = {path: one for path, one in distributions(settings).items() if path == _RATE or path.rpartition("/")[2] in _OF_A_HEAD}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    count = settings.tuning.head_candidates
    study = optuna.create_study(direction="maximize", sampler=make_sampler("tpe", searched, count, settings.tuning.seed))
    study.enqueue_trial({path: value for path, value in first_points(settings)[0].items() if path in searched})
    outcomes: list[Outcome] = []
    while len(outcomes) < count:
        asked = [study.ask(searched) for _ in range(min(_BATCH, count - len(outcomes)))]
        ended = _train([_candidate(own, head, trial.params) for trial in asked], own, head, pooled, settings.fit.seed)
        for trial, one in zip(asked, ended, strict=True):
            study.tell(trial, one.score) if one.state else study.tell(trial, state=TrialState.FAIL)
        outcomes += ended
    best = _best_of_each_shape(outcomes)
    candidates, scores = tuple(one.candidate for one in best), tuple(one.score for one in best)
    found = HeadFound(len(outcomes), candidates, scores, time.monotonic() - begun, time.process_time() - cpu)
    tensors = {f"{_shape(head, one.candidate)}/{name}": value for one in best for name, value in one.state.items()}
    return FirstRung({head: found}, tensors)


def _candidate(assignment: Assignment, head: str, point: Mapping[str, Any]) -> Candidate:
    trial = trial_settings(assignment.settings, point)
    own = trial.heads[head]
    return Candidate(own.hidden_size, own.dropout, own.loss, trial.fit.head_learning_rate)


def _train(candidates: Sequence[Candidate], assignment: Assignment, head: str, pooled: Pooled, seed: int) -> list[Outcome]:
    settings, classes = assignment.settings, len(assignment.classes[head])
    training, validation = (known(pooled[split], assignment.labels[split][head]) for split in ("training", "validation"))
    is_weighted = settings.heads[head].class_weighting == "inverse_sqrt"
    weights = inverse_sqrt_weights(assignment.labels["training"][head], classes) if is_weighted else None
    question = Question(head, classes, settings.heads[head].ordered, settings.tuning.score_metrics.get(head, "macro_f1"), weights)
    # Few steps an epoch, each over many texts: such a step costs little more.
    texts = min(max(len(training.labels) // _STEPS, _LEAST_TEXTS), _MOST_TEXTS)
    fit = settings.fit.model_copy(update={"epochs": _EPOCHS, "patience": _PATIENCE, "batch_texts": texts, "seed": seed})
    return train_population(candidates, question, training, validation, fit)


def _best_of_each_shape(outcomes: Sequence[Outcome]) -> list[Outcome]:
    best: dict[str, Outcome] = {}
    # Of equals the earlier, which is nearer to the default.
    for one in sorted((one for one in outcomes if one.state), key=lambda one: -one.score):
        best.setdefault(_shape("", one.candidate), one)
    return list(best.values())


def _shape(head: str, candidate: Candidate) -> str:
    return f"{head}/{candidate.hidden_size}/{candidate.loss}"


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


def read_rung(storage: Storage, folder: str) -> FirstRung | None:
    """Read what `write_rung` wrote; nothing where it is not there whole."""
    try:
        facts = json.loads(storage.read_bytes(f"{folder}/{_FACTS_FILE}"))
        content = storage.read_bytes(f"{folder}/{_WEIGHTS_FILE}")
        if sha256(content) != facts["sha256"]:
            return None
        heads = {head: _head_found(**one) for head, one in facts["heads"].items()}
    except (StorageError, ValueError, KeyError, TypeError):
        return None
    return FirstRung(heads, load_tensors(content), float(facts.get("encoding_cpu_s", 0.0)))


def _head_found(best: list[dict[str, Any]], scores: list[float], **facts: Any) -> HeadFound:
    return HeadFound(best=tuple(Candidate(**one) for one in best), scores=tuple(scores), **facts)


@torch.no_grad()
def begin_heads(model: TwoHeadBert, assignment: Assignment, rung: FirstRung, seed: int) -> bool:
    """Give a model's heads what was found for their shapes; with another seed than the search's, trained anew with it.

    Args:
        model: With its encoder whole; changed in place.
        assignment: What all trials share.
        rung: The first rung.
        seed: Of the trial.

    Returns:
        Whether every head found its shape; the others stay as they are.
    """
    states: list[Mapping[str, torch.Tensor]] = []
    for described, module in zip(model.config.heads, model.heads, strict=True):
        head, shape = str(described["name"]), f"{described['name']}/{described['hidden_size']}/{described.get('loss', 'softmax')}"
        found = next((one for one in rung.heads[head].best if _shape(head, one) == shape), None)
        if found is None:
            continue
        state = {name: rung.tensors[f"{shape}/{name}"] for name in module.state_dict()}
        if seed != assignment.settings.fit.seed and (pooled := encode(assignment, model)) is not None:
            with torch.enable_grad():
                state = _train([found], assignment, head, pooled, seed)[0].state or state
        module.load_state_dict(state)
        states.append(state)
    return len(states) == len(model.heads)
