"""Finds what words say by themselves: for each head a logistic regression over the TF-IDF weights of the training texts' word pieces.

Runs of letters (`network.letters`) stand beside the pieces where held-out scores are better with them, as where an encoder's vocabulary
cuts words of another language to bits.
It takes seconds, needs no encoder, and where single words decide it is more than frozen features say. The encoder learns what it leaves:
while that trains, a training text has the scores of a regression that has not learned from this text, as validation texts do, or there
would be nothing left to learn. The same held-out scores choose the penalty, and say how far the scores are to be trusted. It does not know
how a model adds them up (`network.word_pieces`).

Sources: scikit-learn's LogisticRegression, https://scikit-learn.org/stable/modules/linear_model.html; Wolpert 1992, Stacked Generalization,
for held-out scores of one model as what the next one learns from.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from training.data.labels import MISSING
from training.data.tokens import TokenTable
from training.fitting.piece_counts import NO_TERMS, Counted, Terms, count_pieces, count_runs, runs_within
from training.judging.metrics import Labels, head_scores, majority_class, measure_head, probabilities
from training.network.letters import Spelling
from training.network.word_pieces import WordPieces
from training.search_settings import Metric

Scores = NDArray[np.float32]
# scikit-learn's C; between them nothing was gained.
_INVERSE_PENALTIES = (1.0, 10.0)
_INVERSE_PENALTY_OF_RUNS = 30.0
_MOST_STEPS = 200
# With more texts the weights hardly change, but the time they take does.
_MOST_LEARNED = 16_384
# With more, counting letters takes gigabytes; and so many numbers times classes minutes.
_MOST_TOKENS, _MOST_WORK = 4_000_000, 256_000_000
# A regression needs 200 bytes for each of its weights.
_MOST_WEIGHTS = 10_000_000
# Scores that are trusted less than this are left out; more than this, held-out texts were few and easy.
_LEAST_TRUST, _MOST_TRUST = 0.05, 5.0


@dataclass(frozen=True)
class HeadWeights:
    """What was found for one head.

    Attributes:
        weights: What each occurrence of a piece adds, (pieces, classes).
        run_weights: What each of a run of letters adds, (runs, classes); nothing where letters say no more than pieces.
        constants: (classes,).
        held_out: Scores of the training texts by regressions that had not learned from them, (texts, classes).
        score: Of these, by the head's metric.
    """

    weights: Scores
    run_weights: Scores | None
    constants: Scores
    held_out: Scores
    score: float


@dataclass(frozen=True)
class WordWeights:
    """What was found for all heads.

    Attributes:
        pieces: Those that have weights.
        runs: Runs of letters that heads may weigh; none where letters were not counted.
        heads: By name; a head is left out where its words say nothing.
    """

    pieces: Terms
    runs: Terms
    heads: Mapping[str, HeadWeights]

    @property
    def reads_letters(self) -> bool:
        """Whether any head weighs runs of letters."""
        return any(head.run_weights is not None for head in self.heads.values())

    def module(self, spelling: Spelling, places: Mapping[str, slice]) -> WordPieces:
        """Make a part of a model that has these weights.

        Args:
            spelling: Of all pieces.
            places: Head → its columns.
        """
        module = WordPieces(len(spelling), max(place.stop for place in places.values()), letters=self.reads_letters)
        self.fill(module, spelling, places)
        return module

    def fill(self, module: WordPieces, spelling: Spelling, places: Mapping[str, slice]) -> None:
        """Give a part of a model its weights.

        Args:
            module: Changed in place.
            spelling: Of all pieces.
            places: Head → its columns.
        """
        outputs = len(module.constants)
        # Copies: what Ray's object store lends cannot be written to, and torch warns of it.
        pieces = torch.tensor(self.pieces.ids)
        module.weights[pieces, outputs] = torch.tensor(self.pieces.rarities) ** 2
        for head, place in places.items():
            module.weights[pieces, place] = torch.tensor(self.heads[head].weights)
            module.constants[place] = torch.tensor(self.heads[head].constants)
        if module.letters:
            self._fill_letters(module, spelling, places)

    def _fill_letters(self, module: WordPieces, spelling: Spelling, places: Mapping[str, slice]) -> None:
        module.spelling.copy_(torch.tensor(spelling.table))
        runs = torch.tensor(self.runs.ids)
        module.run_weights[runs, -1] = torch.tensor(self.runs.rarities) ** 2
        for head, place in places.items():
            if (found := self.heads[head].run_weights) is not None:
                module.run_weights[runs, place] = torch.tensor(found)
                module.reads_letters[place] = 1.0
        # Runs within a piece need no looking up: where the piece stands, they do.
        module.weights += torch.from_numpy(runs_within(spelling) @ module.run_weights.numpy())


@dataclass(frozen=True)
class Asked:
    """One head.

    Attributes:
        name: Of it.
        classes: How many.
        labels: Class indices of the training texts, (texts,); -1 has none.
        is_ordered: Its classes have a natural order.
        metric: What it is judged by.
    """

    name: str
    classes: int
    labels: Labels
    is_ordered: bool = False
    metric: Metric = "macro_f1"


def find_word_weights(table: TokenTable, heads: list[Asked], folds: NDArray[np.int64], spelling: Spelling, seed: int) -> WordWeights | None:
    """Learn the weights.

    Args:
        table: The training texts.
        heads: Those that want weights.
        folds: The fold of each text, (texts,).
        spelling: Of all pieces that the encoder knows.
        seed: Draws the texts that are learned from, where there are very many.

    Returns:
        Nothing where no head's words say anything.
    """
    from threadpoolctl import threadpool_limits

    pieces = count_pieces(table, len(spelling))
    if not len(pieces.terms):
        return None
    ways, runs = [_Way(pieces, penalty) for penalty in _INVERSE_PENALTIES], NO_TERMS
    if len(table.ids) <= _MOST_TOKENS and len((found := count_runs(table, spelling)).terms):
        ways.append(_Way(pieces + found, _INVERSE_PENALTY_OF_RUNS))
        runs = found.terms
    # Steps are so short that more threads only wait for each other.
    with threadpool_limits(1):
        learned = {head.name: _learned(head, ways, folds, seed) for head in heads}
    kept = {name: one for name, one in learned.items() if one is not None}
    return WordWeights(pieces.terms, runs, kept) if kept else None


@dataclass(frozen=True)
class _Way:
    """What a regression reads, and scikit-learn's C for it."""

    counted: Counted
    inverse_penalty: float


def _learned(head: Asked, ways: list[_Way], folds: NDArray[np.int64], seed: int) -> HeadWeights | None:
    """Learn one head's weights in the way whose held-out scores are best.

    The first way reads pieces alone; one that reads runs of letters too has these behind the pieces.
    """
    labelled = _drawn(head, ways[0].counted, seed)
    if len(np.unique(head.labels[labelled])) < 2:
        return None
    count = len(ways[0].counted.terms)
    ways = [way for way in ways if len(way.counted.terms) == count or _is_feasible(head, way.counted, labelled)]
    tried = [_held_out(head, way, labelled, folds) for way in ways]
    scored = [_score(head, scores, labelled) for scores in tried]
    # The first of equals: fewer weights.
    best = scored.index(max(scored))
    way, held_out = ways[best], tried[best]
    trust = _trust(held_out[labelled], head.labels[labelled])
    if trust < _LEAST_TRUST:
        return None
    weights, constants = _regress(head, way, labelled)
    of_terms = trust * way.counted.terms.rarities[:, None] * weights
    run_weights = of_terms[count:] if len(of_terms) > count else None
    return HeadWeights(of_terms[:count], run_weights, trust * constants, trust * held_out, scored[best])


def _drawn(head: Asked, pieces: Counted, seed: int) -> NDArray[np.int64]:
    """Return the texts to learn from: all that have a label, or so many by chance that it takes minutes and no more."""
    labelled = np.flatnonzero(head.labels != MISSING)
    work = max(int(pieces.counts[labelled].nnz) * head.classes, 1)
    most = min(_MOST_LEARNED, int(len(labelled) * _MOST_WORK / work))
    return labelled if len(labelled) <= most else np.sort(np.random.default_rng(seed).choice(labelled, most, replace=False))


def _is_feasible(head: Asked, counted: Counted, labelled: NDArray[np.int64]) -> bool:
    work = int(counted.counts[labelled].nnz) * head.classes
    return work <= _MOST_WORK and len(counted.terms) * head.classes <= _MOST_WEIGHTS


def _held_out(head: Asked, way: _Way, labelled: NDArray[np.int64], folds: NDArray[np.int64]) -> Scores:
    scores = np.zeros((len(folds), head.classes), np.float32)
    for fold in np.unique(folds):
        # Of a text that was not drawn a copy may have been: it is in the same fold.
        own, others = np.flatnonzero(folds == fold), labelled[folds[labelled] != fold]
        if len(np.unique(head.labels[others])) > 1:
            weights, constants = _regress(head, way, others)
            scores[own] = way.counted.vectors[own] @ weights + constants
    return scores


def _regress(head: Asked, way: _Way, chosen: NDArray[np.int64]) -> tuple[Scores, Scores]:
    """Return weights, (terms, classes), and constants, (classes,)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    terms = _weighed(way.counted, head.classes)
    vectors = way.counted.vectors[chosen][:, terms]
    model = LogisticRegression(C=way.inverse_penalty, class_weight="balanced", max_iter=_MOST_STEPS)
    with warnings.catch_warnings():
        # Nearly converged is as good: a penalty is chosen from two.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(vectors, head.labels[chosen])
    found, constants = model.coef_.T, model.intercept_
    if len(model.classes_) == 2:
        # One column says it for both.
        found, constants = np.hstack([-found, found]) / 2, np.concatenate([-constants, constants]) / 2
    weights = np.zeros((len(way.counted.terms), head.classes), np.float32)
    weights[np.ix_(terms, model.classes_)] = found
    # A class that nobody knows a text of is less likely than any other in any text.
    every = np.full(head.classes, float((vectors @ found + constants).min()), np.float32)
    every[model.classes_] = constants
    return weights, every


def _weighed(counted: Counted, classes: int) -> NDArray[np.int64]:
    """Choose the terms that get weights: those that stand in most texts, where there are too many times the classes."""
    texts = np.bincount(counted.counts.indices, minlength=len(counted.terms))
    return np.sort(np.argsort(-texts, kind="stable")[: max(1, _MOST_WEIGHTS // classes)])


def _score(head: Asked, scores: Scores, labelled: NDArray[np.int64]) -> float:
    truth = head.labels[labelled]
    measured = measure_head(truth, probabilities(scores[labelled]), majority_class(truth, head.classes), is_ordered=head.is_ordered)
    return head_scores({head.name: measured.to_dict()}, {head.name: head.metric})[head.name]


def _trust(scores: Scores, truth: Labels) -> float:
    """Return the factor on held-out scores that makes true classes most likely, classes weighing alike."""
    own = 1.0 / np.bincount(truth)[truth]

    def loss(factor: float) -> float:
        return -float((own * log_softmax(factor * scores, axis=1)[np.arange(len(truth)), truth]).sum())

    return float(minimize_scalar(loss, bounds=(0.0, _MOST_TRUST), method="bounded").x)
