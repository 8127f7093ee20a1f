"""Word counts: TF-IDF and a logistic regression per head, the floor a fine-tuned encoder has to beat.

Words and pairs of words stand beside pieces of two to five characters within words, which carry compounds and misspellings: on
short German titles words alone reach half the macro-F1. Classes weigh by the inverse of their frequency, or alike by their texts:
which is better depends on the table, also for accuracy and log loss. It knows texts and class indices only.

Source: scikit-learn's TfidfVectorizer and LogisticRegression, https://scikit-learn.org/stable/modules/feature_extraction.html
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.data.labels import MISSING
from training.errors import DataError
from training.judging.metrics import Labels, Probabilities

if TYPE_CHECKING:
    # A second to import, which a search has to spare only at its end.
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

# What stands in one text only is more than half of all features and tells classes apart by chance.
_LEAST_TEXTS = 2
# Each kind of feature as it should be, and where that leaves nothing: texts may be few, or of single letters and signs.
_KINDS: tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...] = (
    ({"ngram_range": (1, 2), "min_df": _LEAST_TEXTS}, {"ngram_range": (1, 2), "token_pattern": r"\S+"}),
    ({"ngram_range": (2, 5), "analyzer": "char_wb", "min_df": _LEAST_TEXTS}, {"ngram_range": (2, 5), "analyzer": "char_wb"}),
)
_INVERSE_PENALTY = 10.0
_MOST_STEPS = 300
# Of each kind, the commonest: a large table must not need more memory than the search itself.
_MOST_FEATURES = 200_000
# A regression needs 200 bytes for each of its weights, and so many numbers times classes take a quarter of an hour.
_MOST_WEIGHTS, _MOST_WORK = 10_000_000, 1_000_000_000


class WordCounts:
    """Features of texts, counted once for all heads.

    Args:
        training_texts: The vocabulary and how common each word is are theirs; with a label or not.
        texts: Several lists of texts to answer about: the splits.

    Attributes:
        notes: What was left out where classes are very many, in sentences.

    Raises:
        DataError: All training texts are blank.
    """

    def __init__(self, training_texts: Sequence[str], texts: Sequence[Sequence[str]]) -> None:
        from scipy.sparse import hstack

        self.notes: list[str] = []
        fitted = [_fitted(usual, other, training_texts) for usual, other in _KINDS]
        self._training: csr_matrix = hstack([counts for _, counts in fitted], format="csr")
        self._texts: list[csr_matrix] = [
            hstack([counter.transform(split) for counter, _ in fitted], format="csr") if len(split) else self._training[:0]
            for split in texts
        ]

    def probabilities(self, labels: Labels, classes: int, *, is_balanced: bool = True) -> list[Probabilities]:
        """Learn one head from the training texts that have a label, and answer about every list of texts.

        Args:
            labels: Class indices of the training texts; -1 has no label and does not count.
            classes: Number of classes of the head.
            is_balanced: Classes weigh by the inverse of their frequency.

        Returns:
            (texts, classes) for each list of texts, float32. A class without a training text has probability 0; where only one class has
            any it has 1, and where none has, all are alike.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits

        known, features = self._within_limits(np.flatnonzero(labels != MISSING), classes)
        present = np.unique(labels[known])
        if len(present) < 2:
            return [_constant(texts.shape[0], present, classes) for texts in self._texts]
        weights = "balanced" if is_balanced else None
        model = LogisticRegression(C=_INVERSE_PENALTY, class_weight=weights, max_iter=_MOST_STEPS)
        # Steps are so short that more threads only wait for each other.
        with warnings.catch_warnings(), threadpool_limits(1):
            # A floor that has not fully converged is still a floor.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(_columns(self._training[known], features), labels[known])
        # scikit-learn refuses to answer about no texts.
        return [
            _spread(model.predict_proba(_columns(texts, features)) if texts.shape[0] else np.zeros((0, len(present))), present, classes)
            for texts in self._texts
        ]

    def _within_limits(self, known: NDArray[np.int64], classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Choose texts to learn from and features to weigh: all (None), or where classes are very many some texts, and common features."""
        counts, features = self._training[known], None
        all_features = counts.shape[1]
        if all_features * classes > _MOST_WEIGHTS:
            common = np.argsort(-np.bincount(counts.indices, minlength=all_features), kind="stable")
            features = np.sort(common[: max(1, _MOST_WEIGHTS // classes)])
            counts = counts[:, features]
        texts = min(len(known), int(len(known) * _MOST_WORK / max(counts.nnz * classes, 1)))
        chosen = known if texts == len(known) else np.sort(np.random.default_rng(0).choice(known, max(texts, 1), replace=False))
        if features is not None or len(chosen) < len(known):
            self.notes.append(
                f"TF-IDF + logistic regression: for {classes} classes it learned {counts.shape[1]:,} of {all_features:,} features "
                f"from {len(chosen):,} of {len(known):,} texts, to stay within memory and time"
            )
        return chosen, features


def _columns(counts: "csr_matrix", features: NDArray[np.int64] | None) -> "csr_matrix":
    # Most often all of them: nothing is copied.
    return counts if features is None else counts[:, features]


def word_count_probabilities(
    training_texts: Sequence[str], labels: Labels, classes: int, texts: Sequence[Sequence[str]]
) -> list[Probabilities]:
    """Answer about texts with one head's floor; see `WordCounts`, which counts once for several heads."""
    return WordCounts(training_texts, texts).probabilities(labels, classes)


def _fitted(usual: Mapping[str, Any], other: Mapping[str, Any], texts: Sequence[str]) -> "tuple[TfidfVectorizer, csr_matrix]":
    """Learn a vocabulary and count with it."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    for options in (usual, other):
        counter = TfidfVectorizer(**options, sublinear_tf=True, dtype=np.float32, max_features=_MOST_FEATURES)
        try:
            return counter, counter.fit_transform(texts)
        except ValueError as error:
            reason = str(error)
    raise DataError(f"the training texts have no words: {reason}", "look at the columns of data.text")


def _constant(texts: int, present: NDArray[np.int64], classes: int) -> Probabilities:
    row = np.zeros(classes, dtype=np.float32)
    row[present if len(present) else slice(None)] = 1.0
    return np.tile(row / row.sum(), (texts, 1))


def _spread(found: NDArray[np.float64], present: NDArray[np.int64], classes: int) -> Probabilities:
    """Put the columns of the classes that were learnt where they belong among all."""
    spread = np.zeros((len(found), classes), dtype=np.float32)
    spread[:, present] = found
    return spread
