"""Golden texts: a sample of the validation texts as token ids, and what the model answered about them when it was made.

Whoever loads a version computes them again: answers in fewer bits, on another machine or by other libraries must still be those answers.
Who can read a version can read these texts back from their tokens; `training.tuning.golden_texts: 0` keeps them out. It knows files and
numbers, not models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import CheckpointError

GOLDEN_FILE = "golden.safetensors"
# With all of them every replica that starts has seconds of work.
MOST_TOKENS = 16_384
_IDS, _OFFSETS, _LOGITS = "ids", "offsets", "logits/"


@dataclass(frozen=True)
class Golden:
    """Texts and their answers.

    Attributes:
        rows: Token ids of each text, int32.
        logits: Head → (texts, classes of that head), float32.
    """

    rows: Sequence[NDArray[np.int32]]
    logits: Mapping[str, NDArray[np.float32]]

    def divide(self, tokens: int) -> tuple["Golden", "Golden"]:
        """Return the first texts with so many tokens together, at least one text, and the others."""
        ends = np.cumsum([len(row) for row in self.rows])
        count = max(1, int(np.searchsorted(ends, tokens, side="right")))
        first = Golden(self.rows[:count], {head: values[:count] for head, values in self.logits.items()})
        return first, Golden(self.rows[count:], {head: values[count:] for head, values in self.logits.items()})

    @property
    def labels(self) -> int:
        """How many labels the answers give, over texts and heads."""
        return len(self.rows) * len(self.logits)


def choose_golden(lengths: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Draw texts, in the order they were drawn.

    Args:
        lengths: Tokens of each text, (texts,).
        most: Texts at most; together they have at most `MOST_TOKENS` tokens, but there is at least one where any is wanted.
        seed: Of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(lengths))[:most]
    within = int(np.searchsorted(np.cumsum(lengths[order]), MOST_TOKENS, side="right"))
    return order[: max(within, min(len(order), 1))]


def write_golden(folder: Path, golden: Golden) -> None:
    """Write golden texts into a checkpoint's folder."""
    from safetensors.numpy import save_file

    offsets = np.cumsum([0, *(len(row) for row in golden.rows)]).astype(np.int64)
    tensors: dict[str, NDArray[Any]] = {_IDS: np.concatenate([*golden.rows]).astype(np.int32), _OFFSETS: offsets}
    tensors |= {f"{_LOGITS}{head}": np.ascontiguousarray(values) for head, values in golden.logits.items()}
    save_file(tensors, folder / GOLDEN_FILE)


def read_golden(folder: Path) -> Golden | None:
    """Read a verified checkpoint's golden texts; nothing where it has none.

    Raises:
        CheckpointError: The file does not hold what it should.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / GOLDEN_FILE
    if not path.exists():
        return None
    try:
        tensors = load_file(path)
        ids, offsets = tensors[_IDS], tensors[_OFFSETS]
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(f"{path}: {error}", "publish it again") from None
    logits = {name.removeprefix(_LOGITS): values for name, values in tensors.items() if name.startswith(_LOGITS)}
    rows = [ids[begin:end] for begin, end in pairwise(offsets)]
    if not rows or any(len(values) != len(rows) for values in logits.values()):
        raise CheckpointError(f"{path}: texts and answers are not equally many", "publish it again")
    return Golden(rows, logits)
