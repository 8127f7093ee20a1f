"""Finds what word pieces say by themselves: for each head a logistic regression over the TF-IDF weights of the training texts' pieces.

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
from scipy.sparse import csr_matrix, diags
from scipy.special import log_softmax

from training.data.labels import MISSING
from training.data.tokens import TokenTable
from training.judging.metrics import Labels, head_scores, majority_class, measure_head, probabilities
from training.network.word_pieces import WordPieces
from training.search_settings import Metric

Scores = NDArray[np.float32]
# What stands in one text only tells classes apart by chance.
_LEAST_TEXTS = 2
# scikit-learn's C; between them nothing was gained.
_INVERSE_PENALTIES = (1.0, 10.0)
_MOST_STEPS = 200
# With more texts the weights hardly change, but the time they take does.
_MOST_LEARNED = 16_384
# Scores that are trusted less than this are left out; more than this, held-out texts were few and easy.
_LEAST_TRUST, _MOST_TRUST = 0.05, 5.0


@dataclass(frozen=True)
class HeadWeights:
    """What was found for one head.

    Attributes:
        weights: What each occurrence of a piece adds, (pieces, classes).
        constants: (classes,).
        held_out: Scores of the training texts by regressions that had not learned from them, (texts, classes).
        score: Of these, by the head's metric.
    """

    weights: Scores
    constants: Scores
    held_out: Scores
    score: float


@dataclass(frozen=True)
class WordWeights:
    """What was found for all heads.

    Attributes:
        pieces: Token ids that have weights, (pieces,).
        rarities: Their IDF, (pieces,).
        heads: By name; a head is left out where its words say nothing.
    """

    pieces: NDArray[np.int64]
    rarities: Scores
    heads: Mapping[str, HeadWeights]

    def fill(self, module: WordPieces, places: Mapping[str, slice]) -> None:
        """Give a model its weights.

        Args:
            module: Changed in place.
            places: Head → its columns.
        """
        # Copies: what Ray's object store lends cannot be written to, and torch warns of it.
        pieces = torch.tensor(self.pieces)
        module.weights[pieces, -1] = torch.tensor(self.rarities) ** 2
        for head, place in places.items():
            module.weights[pieces, place] = torch.tensor(self.heads[head].weights)
            module.constants[place] = torch.tensor(self.heads[head].constants)


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


def find_word_weights(table: TokenTable, heads: list[Asked], folds: NDArray[np.int64], vocabulary: int, seed: int) -> WordWeights | None:
    """Learn the weights.

    Args:
        table: The training texts.
        heads: Those that want weights.
        folds: The fold of each text, (texts,).
        vocabulary: How many token ids the encoder has.
        seed: Draws the texts that are learned from, where there are very many.

    Returns:
        Nothing where no head's words say anything.
    """
    from threadpoolctl import threadpool_limits

    pieces, rarities, vectors = _vectors(table, vocabulary)
    # Steps are so short that more threads only wait for each other.
    with threadpool_limits(1):
        found = {head.name: _learned(head, vectors, rarities, folds, seed) for head in heads} if len(pieces) else {}
    kept = {name: one for name, one in found.items() if one is not None}
    return WordWeights(pieces, rarities, kept) if kept else None


def _vectors(table: TokenTable, vocabulary: int) -> tuple[NDArray[np.int64], Scores, csr_matrix]:
    """Return which pieces have weights, their rarities, and TF-IDF vectors of length 1, (texts, pieces).

    A piece that stands in every text, as the marks of beginning and end do, has the rarity 0. The length is that of a vector in which
    every occurrence has a place of its own, so that a model can sum it in one pass.
    """
    texts = len(table)
    places = np.repeat(np.arange(texts), table.lengths)
    counts = csr_matrix((np.ones(len(places), np.float32), (places, table.ids)), shape=(texts, vocabulary))
    counts.sum_duplicates()
    having = np.bincount(counts.indices, minlength=vocabulary)
    pieces = np.flatnonzero((having >= _LEAST_TEXTS) & (having < texts))
    rarities = np.log((1 + texts) / (1 + having[pieces])).astype(np.float32)
    counts = counts[:, pieces]
    lengths = np.sqrt(np.maximum(counts @ rarities**2, np.finfo(np.float32).tiny))
    return pieces, rarities, (diags(1.0 / lengths) @ counts @ diags(rarities)).tocsr()


def _learned(head: Asked, vectors: csr_matrix, rarities: Scores, folds: NDArray[np.int64], seed: int) -> HeadWeights | None:
    labelled = np.flatnonzero(head.labels != MISSING)
    if len(labelled) > _MOST_LEARNED:
        labelled = np.sort(np.random.default_rng(seed).choice(labelled, _MOST_LEARNED, replace=False))
    if len(np.unique(head.labels[labelled])) < 2:
        return None
    tried = [(penalty, _held_out(head, vectors, labelled, folds, penalty)) for penalty in _INVERSE_PENALTIES]
    scored = [(_score(head, scores, labelled), -penalty) for penalty, scores in tried]
    best = scored.index(max(scored))
    penalty, held_out = tried[best]
    trust = _trust(held_out[labelled], head.labels[labelled])
    if trust < _LEAST_TRUST:
        return None
    weights, constants = _regress(head, vectors, labelled, penalty)
    # Nobody learned from the others, so that the whole regression's scores of them are held out as well.
    others = np.setdiff1d(np.arange(len(folds)), labelled)
    held_out[others] = vectors[others] @ weights + constants
    return HeadWeights(trust * rarities[:, None] * weights, trust * constants, trust * held_out, scored[best][0])


def _held_out(head: Asked, vectors: csr_matrix, labelled: NDArray[np.int64], folds: NDArray[np.int64], penalty: float) -> Scores:
    scores = np.zeros((len(folds), head.classes), np.float32)
    for fold in np.unique(folds[labelled]):
        own, others = (labelled[folds[labelled] == fold], labelled[folds[labelled] != fold])
        if len(np.unique(head.labels[others])) > 1:
            weights, constants = _regress(head, vectors, others, penalty)
            scores[own] = vectors[own] @ weights + constants
    return scores


def _regress(head: Asked, vectors: csr_matrix, chosen: NDArray[np.int64], penalty: float) -> tuple[Scores, Scores]:
    """Return weights, (pieces, classes), and constants, (classes,)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=_MOST_STEPS)
    with warnings.catch_warnings():
        # Nearly converged is as good: a penalty is chosen from two.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(vectors[chosen], head.labels[chosen])
    found, constants = model.coef_.T, model.intercept_
    if len(model.classes_) == 2:
        # One column says it for both.
        found, constants = np.hstack([-found, found]) / 2, np.concatenate([-constants, constants]) / 2
    weights = np.zeros((vectors.shape[1], head.classes), np.float32)
    weights[:, model.classes_] = found
    # A class that nobody knows a text of is less likely than any other in any text.
    every = np.full(head.classes, float((vectors[chosen] @ found + constants).min()), np.float32)
    every[model.classes_] = constants
    return weights, every


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
