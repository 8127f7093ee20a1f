"""What was answered, counted by head and class. It is called for every request, so it only counts; it knows no Ray and no texts."""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from serving.messages import Answer
from serving.observing.drift import Drift, Stability
from training.manifest import Manifest

# Series of answers in Prometheus, over all versions that a replica ever answers with; rarer ones come together.
MOST_CLASSES = 200
OTHER = "other"


class Versioned(Protocol):
    """A version that answers; `serving.predictor.Predictor` is one."""

    @property
    def version(self) -> int:
        """Its number."""
        ...

    @property
    def manifest(self) -> Manifest:
        """Its facts."""
        ...


class Seen:
    """Answers since the start.

    Attributes:
        named: Head and class → answers that name it; beyond the first 200 classes, in the manifests' order, the class is `other`.
        truncated: Texts that were longer than the version reads.
    """

    def __init__(self) -> None:
        self.named: Counter[tuple[str, str]] = Counter()
        self.truncated = 0
        self._known: dict[tuple[str, str], tuple[str, str]] = {}
        self._drifts: dict[int, Drift] = {}

    def note(self, predictor: Versioned, answers: Sequence[Answer]) -> None:
        """Count the answers to a request, before scores are left out of them."""
        drift = self._drifts.get(predictor.version) or self._begin(predictor)
        for answer in answers:
            self.truncated += answer.truncated
            drift.note(answer.heads)
            for head, told in answer.heads.items():
                if told.class_ is not None:
                    key = (head, told.class_)
                    self.named[self._known.get(key) or (head, OTHER)] += 1

    def drift(self, version: int) -> dict[str, tuple[Stability, Stability]]:
        """Return, by head, how stable the classes and the confidence of a version's last answers are, and forget those of others."""
        self._drifts = {one: drift for one, drift in self._drifts.items() if one == version}
        return {head: found for drift in self._drifts.values() for head, found in drift.compare().items()}

    def _begin(self, predictor: Versioned) -> Drift:
        heads = predictor.manifest.heads
        keys = [(head.name, name) for head in heads for name in head.classes]
        free = MOST_CLASSES - len(self._known)
        self._known |= {key: key for key in [key for key in keys if key not in self._known][:free]}
        return self._drifts.setdefault(predictor.version, Drift(heads))
