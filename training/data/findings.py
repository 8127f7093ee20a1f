"""What is wrong with the data (`Findings`, an error) and what a user should know about it (`Note`).

Both count everything and show the first; they hold places, column names and classes, never texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from training.errors import DataError

SHOWN_FINDINGS = 20
SHOWN_ROWS = 5

NoteKind = Literal["unlabelled", "empty_text", "duplicate", "leak", "rare_class", "unlabelled_head", "empty_split"]


class Findings:
    """Collects what is wrong; shows the first ones and counts the rest."""

    def __init__(self) -> None:
        self.count = 0
        self.hint = ""
        self._shown: list[str] = []

    def add(self, finding: str, hint: str = "") -> None:
        """Note one finding; the first hint is kept."""
        self.count += 1
        self.hint = self.hint or hint
        if len(self._shown) < SHOWN_FINDINGS:
            self._shown.append(finding)

    def raise_any(self) -> None:
        """Raise what was collected, if anything.

        Raises:
            DataError: With a line for each of the first findings and the number of the others.
        """
        if self.count:
            more = [f"and {self.count - SHOWN_FINDINGS} more"] if self.count > SHOWN_FINDINGS else []
            raise DataError("\n       ".join(self._shown + more), self.hint)


@dataclass(frozen=True)
class Note:
    """Something a user should know about the data, though it can be used.

    Attributes:
        kind: What it is about.
        message: What there is, without the rows.
        count: How many rows or classes.
        rows: The first few of the rows, like "ads.csv, row 118".
    """

    kind: NoteKind
    message: str
    count: int
    rows: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.message}: {first_rows(self.rows, self.count)}" if self.rows else self.message


def first_rows(rows: Sequence[str], count: int) -> str:
    """Return the first few of `count` rows, like "ads.csv, rows 3, 9, …"."""
    numbers: dict[str, list[str]] = {}
    for row in rows[:SHOWN_ROWS]:
        file, _, number = row.rpartition(", row ")
        numbers.setdefault(file, []).append(number)
    shown = "; ".join(f"{file}, {'row' if len(found) == 1 else 'rows'} {', '.join(found)}" for file, found in numbers.items())
    return f"{shown}, …" if count > len(rows[:SHOWN_ROWS]) else shown


def counted(count: int, one: str, several: str) -> str:
    """Return "1 row" or "3 rows"."""
    return f"{count:,} {one if count == 1 else several}"
