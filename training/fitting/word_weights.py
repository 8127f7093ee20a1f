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
from scipy.sparse import csr_matrix
from scipy.special import log_softmax

from training.data.labels import MISSING
from training.data.tokens import TokenTable
from training.fitting.piece_counts import NO_TERMS, Counted, Terms, count_both, count_pieces, divided, runs_within
from training.judging.calibration import measured
from training.judging.metrics import Labels, head_score, majority_class
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
# So many numbers that are not 0 take half a gigabyte; so many times classes take minutes.
_MOST_NUMBERS, _MOST_WORK = 64_000_000, 256_000_000
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
        score: Of these, as far as they are trusted, by the head's metric.
        inverse_penalty: Of the regression, scikit-learn's C; with `run_weights` this says in which way it learned.
    """

    weights: Scores
    run_weights: Scores | None
    constants: Scores
    held_out: Scores
    score: float
    inverse_penalty: float


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


def find_word_weights(
    table: TokenTable,
    heads: list[Asked],
    folds: NDArray[np.int64],
    spelling: Spelling,
    seed: int,
    judged: Mapping[str, HeadWeights] | None = None,
) -> WordWeights | None:
    """Learn the weights.

    Args:
        table: The training texts.
        heads: Those that want weights.
        folds: The fold of each text, (texts,).
        spelling: Of all pieces that the encoder knows.
        seed: Draws the texts that are learned from, where there are very many.
        judged: What was found on fewer texts and has been judged: the same heads, and no others, learn from these in the same way.

    Returns:
        Nothing where no head's words say anything.
    """
    from threadpoolctl import threadpool_limits

    asked = [head for head in heads if judged is None or head.name in judged]
    counted = count_pieces(table, len(spelling)) if asked else None
    if counted is None or not len(counted.terms):
        return None
    pieces, runs = counted.terms, NO_TERMS
    ways = [_Way(counted, len(pieces), penalty) for penalty in _INVERSE_PENALTIES]
    if len(spelling.runs) and (judged is None or any(one.run_weights is not None for one in judged.values())):
        counted = count_both(table, spelling)
        runs = divided(counted.terms, len(spelling))[1]
        ways += [_Way(counted, len(pieces), _INVERSE_PENALTY_OF_RUNS)] if len(runs) else []
    # Steps are so short that more threads only wait for each other.
    with threadpool_limits(1):
        learned = {head.name: _learned(head, ways, folds, seed, judged[head.name] if judged else None) for head in asked}
    kept = {name: one for name, one in learned.items() if one is not None}
    return WordWeights(pieces, runs, kept) if kept else None


@dataclass(frozen=True)
class _Way:
    """What a regression reads, how many of it are pieces (the first), and scikit-learn's C for it, by which ways are told apart."""

    counted: Counted
    pieces: int
    inverse_penalty: float


@dataclass(frozen=True)
class _Drawn:
    """What a regression learns from.

    Attributes:
        texts: Their places, (drawn,).
        terms: Those that get weights, (weighed,).
        vectors: (drawn, weighed).
    """

    texts: NDArray[np.int64]
    terms: NDArray[np.int64]
    vectors: csr_matrix


@dataclass(frozen=True)
class _Tried:
    """A way, the factor its scores are trusted by, the held-out ones with it, (texts, classes), and what these are worth."""

    way: _Way
    trust: float
    held_out: Scores
    score: float


def _learned(head: Asked, ways: list[_Way], folds: NDArray[np.int64], seed: int, judged: HeadWeights | None) -> HeadWeights | None:
    """Learn one head's weights in the way that was judged, or else in that whose held-out scores are best."""
    if judged is not None:
        ways = [way for way in ways if way.inverse_penalty == judged.inverse_penalty]
    labelled = np.flatnonzero(head.labels != MISSING)
    if len(np.unique(head.labels[labelled])) < 2:
        return None
    # In an order by chance, of which who learns from fewer takes the first. The same ones as ever: a search that goes on finds its words.
    order = np.random.default_rng(seed).choice(labelled, min(len(labelled), _MOST_LEARNED), replace=False)
    shown = np.sort(order)
    tried = [_tried(head, way, _held_out(head, way, _draw(head, way, order), folds), shown) for way in ways]
    # The first of equals: fewer weights. Not the best of those that are trusted: one of several is trusted by chance.
    best = max(tried, key=lambda one: one.score)
    if best.trust < _LEAST_TRUST and judged is None:
        return None
    way, trust, drawn = best.way, best.trust, _draw(head, best.way, order)
    if len(np.unique(head.labels[drawn.texts])) < 2:
        return None
    found, constants = _regress(head, way, drawn.vectors, head.labels[drawn.texts])
    weights = np.zeros((len(way.counted.terms), head.classes), np.float32)
    weights[drawn.terms] = trust * way.counted.terms.rarities[drawn.terms, None] * found
    run_weights = weights[way.pieces :] if len(weights) > way.pieces else None
    return HeadWeights(weights[: way.pieces], run_weights, trust * constants, best.held_out, best.score, way.inverse_penalty)


def _tried(head: Asked, way: _Way, scores: Scores, shown: NDArray[np.int64]) -> _Tried:
    """Decide how far held-out scores are to be trusted, and judge them as they are then: a model has no others."""
    trust = _trust(scores[shown], head.labels[shown])
    return _Tried(way, trust, trust * scores, _score(head, trust * scores, shown))


def _draw(head: Asked, way: _Way, order: NDArray[np.int64]) -> _Drawn:
    """Choose what to learn from, so that it takes minutes and some hundred megabytes, and no more.

    Terms get weights that stand in most texts, where all would be too many times the classes; of the texts in their order as many are
    taken as have not too many of these.
    """
    counted = way.counted
    terms = np.sort(np.argsort(-counted.having, kind="stable")[: max(1, _MOST_WEIGHTS // head.classes)])
    numbers = max(float(counted.having[terms].sum()) / len(counted), 1.0)
    most = min(_MOST_LEARNED, int(min(_MOST_WORK / head.classes, _MOST_NUMBERS) / numbers))
    texts = np.sort(order[: max(most, 1)])
    return _Drawn(texts, terms, counted.vectors(texts, None if len(terms) == len(counted.terms) else terms))


def _held_out(head: Asked, way: _Way, drawn: _Drawn, folds: NDArray[np.int64]) -> Scores:
    """Return what regressions say of all texts that have not learned from their fold, (texts, classes)."""
    found = {}
    for fold in np.unique(folds):
        # Of a text that was not drawn a copy may have been: it is in the same fold.
        others = np.flatnonzero(folds[drawn.texts] != fold)
        truth = head.labels[drawn.texts[others]]
        if len(np.unique(truth)) > 1:
            found[fold] = _regress(head, way, drawn.vectors[others], truth)
    scores = np.zeros((len(folds), head.classes), np.float32)
    for texts in way.counted.parts():
        vectors = way.counted.vectors(texts, drawn.terms)
        for fold, (weights, constants) in found.items():
            own = np.flatnonzero(folds[texts] == fold)
            scores[texts[own]] = vectors[own] @ weights + constants
    return scores


def _regress(head: Asked, way: _Way, vectors: csr_matrix, truth: Labels) -> tuple[Scores, Scores]:
    """Return weights, (terms, classes), and constants, (classes,)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=way.inverse_penalty, class_weight="balanced", max_iter=_MOST_STEPS)
    with warnings.catch_warnings():
        # Nearly converged is as good: a penalty is chosen from two.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(vectors, truth)
    found, constants = model.coef_.T, model.intercept_
    if len(model.classes_) == 2:
        # One column says it for both.
        found, constants = np.hstack([-found, found]) / 2, np.concatenate([-constants, constants]) / 2
    weights = np.zeros((vectors.shape[1], head.classes), np.float32)
    weights[:, model.classes_] = found
    # A class that nobody knows a text of is less likely than any other in any text.
    every = np.full(head.classes, float((vectors @ found + constants).min()), np.float32)
    every[model.classes_] = constants
    return weights, every


def _score(head: Asked, scores: Scores, labelled: NDArray[np.int64]) -> float:
    truth = head.labels[labelled]
    found = measured(truth, scores[labelled], majority_class(truth, head.classes), head.metric, is_ordered=head.is_ordered)
    return head_score(found.to_dict(), head.metric)


def _trust(scores: Scores, truth: Labels) -> float:
    """Return the factor on held-out scores that makes true classes most likely, classes weighing alike."""
    own = 1.0 / np.bincount(truth)[truth]

    def loss(factor: float) -> float:
        return -float((own * log_softmax(factor * scores, axis=1)[np.arange(len(truth)), truth]).sum())

    return float(minimize_scalar(loss, bounds=(0.0, _MOST_TRUST), method="bounded").x)
