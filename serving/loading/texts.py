"""What is sent: texts of a file, or made-up ones of log-normal length, and the bodies they are put in.

The made-up texts are frequent English words in no order, each of which is one token to an English BERT; to other encoders lengths are
about right, and the report tells how many tokens the server counted. No error quotes a text.
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cluster.errors import SettingsError

_FREQUENT = """
time year people way day thing life child world school state family student group country problem hand part place case week company system
program question work government number night point home water room mother area money story fact month right study book eye job word
business issue side kind head house service friend father power hour game line end member law car city community name president team minute
idea body information back parent face level office door health person art history party result change morning reason research moment air
teacher education
"""
WORDS = tuple(_FREQUENT.split())
# What a BERT tokenizer adds to a text.
_SPECIAL_TOKENS = 2
_MADE_TEXTS = 2_000
_JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Lengths:
    """A log-normal mix of lengths, in tokens.

    Attributes:
        median: Half of the texts are longer.
        sigma: Standard deviation of the logarithm.
        most: Longer ones are cut to this.
    """

    median: float = 50.0
    sigma: float = 0.8
    most: int = 512


def make_texts(lengths: Lengths, seed: int, count: int = _MADE_TEXTS) -> list[str]:
    """Make up texts; the same seed gives the same ones."""
    chance = random.Random(seed)  # noqa: S311  # no secret
    tokens = [min(round(chance.lognormvariate(math.log(lengths.median), lengths.sigma)), lengths.most) for _ in range(count)]
    return [" ".join(chance.choices(WORDS, k=max(length - _SPECIAL_TOKENS, 1))) for length in tokens]


def read_texts(path: Path) -> list[str]:
    """Read texts, one a line: plain ones from `.txt`, objects with a `text` from `.jsonl` and `.ndjson`; empty lines are left out.

    Raises:
        SettingsError: The file is missing, has another ending, is not UTF-8, holds no text, or a line is not what it should be.
    """
    if path.suffix not in (".txt", *_JSON_LINES):
        raise SettingsError(f"{path}: ends in {path.suffix or 'nothing'!r}, but must end in .txt, .jsonl or .ndjson")
    try:
        # Not splitlines(): a text may hold other line ends of Unicode.
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: byte {error.start} is not UTF-8") from None
    texts = [_text(path, number, line) for number, line in enumerate(lines, start=1) if line]
    if not texts:
        raise SettingsError(f"{path}: holds no text, but must hold one a line")
    return texts


def _text(path: Path, number: int, line: str) -> str:
    if path.suffix not in _JSON_LINES:
        return line
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        raise SettingsError(f"{path}, line {number}: must be a JSON object with a string 'text'")
    return str(found["text"])


class Bodies:
    """Bodies for `/v1/predict`, texts taken in turn.

    Args:
        texts: At least one.
        together: Texts in a body.
    """

    def __init__(self, texts: Sequence[str], together: int = 1) -> None:
        self.together = together
        self._written = [json.dumps(text).encode() for text in texts]

    def __getitem__(self, number: int) -> bytes:
        """Return the body of a request, numbered from 0 without end."""
        start = number * self.together % len(self._written)
        turn = self._written[start:] + self._written[:start] if start + self.together > len(self._written) else self._written[start:]
        rounds, rest = divmod(self.together, len(self._written))
        return b'{"texts":[' + b",".join([*(turn * rounds), *islice(turn, rest)]) + b"]}"
