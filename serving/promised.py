"""What a caller reads an answer by: the heads and classes of a version, or its number. A canary answers only where it keeps to that."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.messages import HeadFacts


class Head(Protocol):
    """A head of some version."""

    @property
    def name(self) -> str:
        """Key of its answers."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """In the order of its scores."""
        ...


@dataclass(frozen=True)
class Promised:
    """What was promised.

    Attributes:
        heads: With their classes, in their order.
        version: The only one that may answer; None: any with these heads.
    """

    heads: Sequence[HeadFacts]
    version: int | None = None

    def is_kept_by(self, version: int, heads: Sequence[Head]) -> bool:
        """Tell whether a version with these heads may answer."""
        return self.version in (None, version) and _named(heads) == _named(self.heads)


def _named(heads: Sequence[Head]) -> list[tuple[str, list[str]]]:
    return [(head.name, list(head.classes)) for head in heads]
