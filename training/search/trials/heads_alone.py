"""The first rung: every head by itself on the frozen encoder's pooled vectors, many candidates at once, before any layer is trained.

An encoder that trains costs minutes a trial; heads on vectors that are there already cost seconds for all. Candidates are judged by
cross-validation over the training texts, so that the validation texts can judge what comes of them. Every trial begins with the best
weights of its heads' shapes, and of its class weightings where those were tried. It does not know Ray.

Sources: Kumar et al. 2022, Fine-Tuning can Distort Pretrained Features (arXiv 2202.10054), for training heads before layers;
Optuna's ask-and-tell interface for proposals in batches.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from training.data.labels import MISSING
from training.fitting.population import Candidate, Outcome, Question, known, train_population
from training.network.encoder import encoder_layers
from training.network.inputs import PooledInputs
from training.network.model import Head, TwoHeadBert
from training.search.proposing.samplers import make_sampler
from training.search.proposing.search_space import TrialSettings, distributions, first_points, trial_settings
from training.search.trials.assignment import Assignment
from training.search.trials.found_heads import OF_A_HEAD, FirstRung, HeadFound, kind
from training.search.trials.reading import read
from training.settings import TrainingSettings

_RATE = "head_learning_rate"
# Proposals made together: more would learn less from each other, fewer would fill no stack.
_BATCH = 16
# Features cost nothing to read again, so heads may take the time they need.
_EPOCHS, _PATIENCE = 40, 6
# A third of the time, for the same best scores or nearly so (`benchmarks/LOG.md`).
_HALVINGS = (3, 6, 12)
_STEPS, _LEAST_TEXTS, _MOST_TEXTS = 12, 32, 512
# With more texts the order of candidates hardly changes, but the time they take does.
_MOST_CONTEST = 16_384
# Heads by themselves bear higher rates than heads above layers that train with them, and linear ones need them.
_HIGHEST_RATE = 0.03


def encode(assignment: Assignment, model: TwoHeadBert) -> torch.Tensor | None:
    """Return the wholly frozen encoder's pooled vectors of the training texts; nothing where there is no room to keep them.

    The validation texts are encoded as well, and both as the ladder's next rung reads them.

    Args:
        assignment: What all trials share.
        model: With its encoder whole.
    """
    layers = len(encoder_layers(model.encoder))
    inputs = read(assignment, model, layers, ("training", "validation"), below=assignment.first_depth(layers))
    training = inputs["training"]
    return training.pooled if isinstance(training, PooledInputs) else None


def explore_head(assignment: Assignment, head: str, pooled: torch.Tensor) -> FirstRung:
    """Search one head on frozen features.

    Args:
        assignment: What all trials share.
        head: Its name.
        pooled: Of the training texts, (texts, width).
    """
    begun, cpu = time.monotonic(), time.process_time()
    own = assignment.of_heads((head,))
    settings = own.settings
    searched = _searched(settings)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    count = settings.tuning.head_candidates
    study = optuna.create_study(direction="maximize", sampler=make_sampler("tpe", searched, count, settings.tuning.seed))
    default = {path: value for path, value in first_points(settings)[0].items() if path in searched}
    for point in _each_shape(default, searched)[:count]:
        study.enqueue_trial(point)
    outcomes: list[Outcome] = []
    some = _some(own, head)
    contest = pooled[torch.from_numpy(some)]
    while len(outcomes) < count:
        asked = [study.ask(searched) for _ in range(min(_BATCH, count - len(outcomes)))]
        ended = _train([_candidate(own, head, trial.params) for trial in asked], own, head, contest, chosen=some)
        for trial, one in zip(asked, ended, strict=True):
            study.tell(trial, one.score) if one.state else study.tell(trial, state=TrialState.FAIL)
        outcomes += ended
    best = _best_of_each_kind(outcomes)
    if best and len(some) == _MOST_CONTEST:
        # The winner learns from all texts; its score is still comparable with those of the others.
        best[0].state = _train([best[0].candidate], own, head, pooled)[0].state or best[0].state
    candidates, scores = tuple(one.candidate for one in best), tuple(one.score for one in best)
    found = HeadFound(len(outcomes), candidates, scores, time.monotonic() - begun, time.process_time() - cpu)
    tensors = {f"{kind(head, one.candidate)}/{name}": value for one in best for name, value in one.state.items()}
    return FirstRung({head: found}, tensors)


def _some(assignment: Assignment, head: str) -> NDArray[np.int64]:
    """Draw the training texts that candidates compete on, from those with a label; all where they are few enough."""
    labelled = np.flatnonzero(assignment.labels["training"][head] != MISSING)
    if len(labelled) <= _MOST_CONTEST:
        return labelled
    return np.sort(np.random.default_rng(assignment.settings.fit.seed).choice(labelled, _MOST_CONTEST, replace=False))


def default_head(assignment: Assignment, head: str, pooled: torch.Tensor, chosen: NDArray[np.int64]) -> Head:
    """Train the default configuration's head on some of the training texts, at the rate that heads by themselves bear.

    Args:
        assignment: What all trials share.
        head: Its name.
        pooled: Of those texts, (texts, width).
        chosen: Which they are, (texts,).
    """
    own = trial_settings(assignment.settings, first_points(assignment.settings)[0]).heads[head]
    candidate = Candidate(own.hidden_size, own.dropout, own.loss, _HIGHEST_RATE, own.class_weighting)
    (outcome,) = _train([candidate], assignment, head, pooled, chosen=chosen)
    module = Head(pooled.shape[1], len(assignment.classes[head]), own.hidden_size, own.dropout, own.loss)
    module.load_state_dict(outcome.state or module.state_dict())
    return module


def _searched(settings: TrainingSettings) -> dict[str, BaseDistribution]:
    searched = {path: one for path, one in distributions(settings).items() if path == _RATE or path.rpartition("/")[2] in OF_A_HEAD}
    rate = searched.get(_RATE)
    if isinstance(rate, FloatDistribution):
        searched[_RATE] = FloatDistribution(rate.low, max(rate.high, _HIGHEST_RATE), log=rate.log)
    return searched


def _each_shape(default: Mapping[str, Any], searched: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Return the default, then one point for each other shape of the head, where shapes are a list of choices."""
    shapes = {
        path: one.choices
        for path, one in searched.items()
        if path.rpartition("/")[2] in ("hidden_size", "loss") and isinstance(one, CategoricalDistribution)
    }
    points: list[dict[str, Any]] = [dict(default) | dict(zip(shapes, values, strict=True)) for values in product(*shapes.values())]
    return [dict(default), *(point for point in points if point != default)]


def _candidate(assignment: Assignment, head: str, point: Mapping[str, Any]) -> Candidate:
    trial = trial_settings(assignment.settings, point)
    own = trial.heads[head]
    return Candidate(own.hidden_size, own.dropout, own.loss, trial.fit.head_learning_rate, own.class_weighting)


def _train(
    candidates: Sequence[Candidate],
    assignment: Assignment,
    head: str,
    pooled: torch.Tensor,
    *,
    chosen: NDArray[np.int64] | None = None,
    seed: int | None = None,
) -> list[Outcome]:
    """Train candidates on the training texts, or on some of them, with the search's seed or another."""
    settings, classes = assignment.settings, len(assignment.classes[head])
    every = slice(None) if chosen is None else chosen
    labels = assignment.labels["training"][head][every]
    words = assignment.worded.get(head)
    features = known(pooled, labels, assignment.folds[every], None if words is None else words.held_out[every])
    question = Question(head, classes, settings.heads[head].ordered, settings.tuning.score_metrics.get(head, "macro_f1"))
    # Few steps an epoch, each over many texts: such a step costs little more.
    texts = min(max(len(features.labels) // _STEPS, _LEAST_TEXTS), _MOST_TEXTS)
    fit = settings.fit.model_copy(update={"epochs": _EPOCHS, "patience": _PATIENCE, "batch_texts": texts})
    fit = fit if seed is None else fit.model_copy(update={"seed": seed})
    return train_population(candidates, question, features, fit, _HALVINGS)


def _best_of_each_kind(outcomes: Sequence[Outcome]) -> list[Outcome]:
    best: dict[str, Outcome] = {}
    # Of equals the earlier, which is nearer to the default.
    for one in sorted((one for one in outcomes if one.state), key=lambda one: -one.score):
        best.setdefault(kind("", one.candidate), one)
    return list(best.values())


@torch.no_grad()
def begin_heads(model: TwoHeadBert, assignment: Assignment, rung: FirstRung, trial: TrialSettings) -> bool:
    """Give a model's heads what was found for them; with another seed or other texts than the rung had, trained anew.

    Args:
        model: With its encoder whole; changed in place.
        assignment: What all trials share.
        rung: The first rung.
        trial: Whose heads they are.

    Returns:
        Whether every head found its shape; the others stay as they are.
    """
    states: list[Mapping[str, torch.Tensor]] = []
    seed = trial.fit.seed
    for (head, wanted), module in zip(trial.heads.items(), model.heads, strict=True):
        place = rung.heads[head].place(wanted)
        if place is None:
            continue
        found = rung.heads[head].best[place]
        state = {name: rung.tensors[f"{kind(head, found)}/{name}"] for name in module.state_dict()}
        is_known = seed == assignment.settings.fit.seed and not assignment.heads_again
        if not is_known and (pooled := encode(assignment, model)) is not None:
            with torch.enable_grad():
                state = _train([found], assignment, head, pooled, seed=seed)[0].state or state
        module.load_state_dict(state)
        states.append(state)
    return len(states) == len(model.heads)
