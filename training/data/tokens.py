"""Turns texts into token ids, once, in flat arrays that Ray shares without copies.

It does not know labels or models. Truncation keeps the special tokens at both ends.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import EncoderError

_CORE_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
# Above this every tokenizer in use reports "no limit" (some as 1e30).
_NO_LIMIT = 1_000_000
# How vocabularies mark that a token goes on a word (WordPiece), or begins one (byte-level BPE, SentencePiece).
_GOES_ON, _BEGINS_WORD = "##", ("Ġ", "▁")
# Texts that are in memory as the tokenizer gives them, at once: 180 bytes a token.
_TOGETHER = 1_000


@dataclass(frozen=True)
class TokenTable:
    """The token ids of many texts, one after the other.

    Attributes:
        ids: Token ids of all texts, (tokens,), int32.
        offsets: Text i is `ids[offsets[i]:offsets[i + 1]]`, (texts + 1,), int64.
        full_lengths: Tokens of each text before it was cut, (texts,), int64.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    full_lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text as it is used, (texts,), int64."""
        return np.diff(self.offsets)

    @property
    def digest(self) -> str:
        """Of the token ids of all texts, in their order: SHA-256 in hexadecimal."""
        return hashlib.sha256(self.ids.tobytes() + self.offsets.tobytes()).hexdigest()

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """Whether each text was cut, (texts,), bool."""
        return self.lengths < self.full_lengths

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> "TokenTable":
        """Return a table of the chosen texts, in the order of `indices`."""
        return make_token_table([self[int(index)] for index in indices], self.full_lengths[indices])

    def parts(self, tokens: int) -> Iterator["TokenTable"]:
        """Divide into tables of about so many tokens each, one after the other and without copies; no text is divided."""
        ends = np.flatnonzero(np.diff(self.offsets[:-1] // tokens)) + 1
        for begin, end in pairwise([0, *ends.tolist(), len(self)]):
            offsets = self.offsets[begin : end + 1]
            yield TokenTable(self.ids[offsets[0] : offsets[-1]], offsets - offsets[0], self.full_lengths[begin:end])


def make_token_table(rows: Iterable[Sequence[int] | NDArray[np.int32]], full_lengths: Sequence[int] | NDArray[np.int64]) -> TokenTable:
    """Join token ids of single texts into one table."""
    arrays = [np.asarray(row, dtype=np.int32) for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in arrays], dtype=np.int64)]).astype(np.int64)
    ids = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
    return TokenTable(ids, offsets, np.asarray(full_lengths, dtype=np.int64))


def joined(first: TokenTable, second: TokenTable) -> TokenTable:
    """Put the texts of a second table after those of a first."""
    offsets = np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]])
    return TokenTable(np.concatenate([first.ids, second.ids]), offsets, np.concatenate([first.full_lengths, second.full_lengths]))


def hush_transformers() -> None:
    """Keep transformers' progress bars, load reports and hints out of our tables and JSON; its errors are still raised."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


class SavedTokenizer:
    """A checkpoint's tokenizer with a token limit, read without transformers; `encode` gives ids, special tokens included.

    transformers takes seconds of a core and hundreds of megabytes only to be imported, and gives the same ids.

    Args:
        folder: A folder with `tokenizer.json` and `tokenizer_config.json`, as `Tokenizer.save` writes them.
        max_tokens: Longer texts are cut to this many tokens.
    """

    def __init__(self, folder: Path, max_tokens: int) -> None:
        from tokenizers import Tokenizer as Core

        config = json.loads((folder / _CONFIG_FILE).read_bytes())
        self._core: Any = _unlimited(Core.from_file(str(folder / _CORE_FILE)))
        pad_token = config.get("pad_token")
        # An older one writes a token with its properties.
        name = pad_token["content"] if isinstance(pad_token, dict) else pad_token
        self._take(max_tokens, None if name is None else self._core.token_to_id(name), config.get("truncation_side", "right"))

    def _take(self, max_tokens: int, pad_id: int | None, truncation_side: str) -> None:
        self.max_tokens = max_tokens
        #: Token id that fills a batch up to its longest text.
        self.pad_id = 0 if pad_id is None else pad_id
        self._cuts_left = truncation_side == "left"
        marks = self._marks()
        self._before, self._after = marks.index(0), marks[::-1].index(0)

    def _marks(self) -> list[int]:
        marks: list[int] = self._core.encode("a").special_tokens_mask
        return marks

    def encode(self, texts: Sequence[str]) -> TokenTable:
        """Tokenise texts, cutting each at `max_tokens`."""
        rows, lengths = [], []
        for first in range(0, len(texts), _TOGETHER):
            found = self._ids(texts[first : first + _TOGETHER])
            rows += [np.array(self._cut(row), np.int32) for row in found]
            lengths += [len(row) for row in found]
        return make_token_table(rows, lengths)

    def rows(self, texts: Sequence[str]) -> list[tuple[NDArray[np.int32], bool]]:
        """Tokenise a few texts one by one, where a table would cost more than it saves.

        Returns:
            Of each text its token ids, cut at `max_tokens`, (tokens,), int32; and whether they were cut.
        """
        return [(np.array(self._cut(row), np.int32), len(row) > self.max_tokens) for row in self._ids(texts)]

    def windows(self, text: str) -> list[NDArray[np.int32]]:
        """Tokenise all of a text, in pieces of at most `max_tokens` where it is longer.

        A piece begins with the last quarter of the one before, and the last one ends where the text does, so that none is short.

        Returns:
            Token ids of each piece, special tokens included, int32.
        """
        (row,) = self._ids([text])
        end = len(row) - self._after
        size = self.max_tokens - self._before - self._after
        last = max(end - size, self._before)
        begins = [*range(self._before, last, max(size - size // 4, 1)), last]
        return [np.array(row[: self._before] + row[begin : min(begin + size, end)] + row[end:], np.int32) for begin in begins]

    def reads(self, text: str) -> int:
        """Return how many characters of a text are read before it is cut; all, where the tokenizer cannot tell."""
        if self._core is None or self._cuts_left:
            return len(text)
        offsets = self._core.encode(text).offsets
        return len(text) if len(offsets) <= self.max_tokens else int(offsets[self.max_tokens - self._after - 1][1])

    def count(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text, uncut."""
        return [int(length) for length in self.encode(texts).full_lengths]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        # Its core is asked for nothing but ids: for a short text that is half the time.
        return [encoding.ids for encoding in self._core.encode_batch_fast(list(texts))]

    def _cut(self, row: list[int]) -> list[int]:
        over = len(row) - self.max_tokens
        if over <= 0:
            return row
        # The special tokens at both ends stay.
        begin = self._before if self._cuts_left else len(row) - self._after - over
        return row[:begin] + row[begin + over :]


class Tokenizer(SavedTokenizer):
    """A pretrained tokenizer of any kind, by transformers; see `SavedTokenizer`.

    Args:
        folder: A folder with the tokenizer's files: an encoder's or a checkpoint's.
        max_tokens: Longer texts are cut to this many tokens.

    Raises:
        EncoderError: It holds none.
    """

    def __init__(self, folder: Path, max_tokens: int) -> None:
        from transformers import AutoTokenizer

        hush_transformers()
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise EncoderError(f"tokenizer in {folder}: {str(error).splitlines()[0]}", "the folder must hold tokenizer.json") from None
        # We cut ourselves; the tokenizer's own limit only makes it warn about texts that will be cut.
        self._tokenizer.model_max_length = _NO_LIMIT
        # Those that are written in Python have no core.
        self._core = _unlimited(self._tokenizer.backend_tokenizer) if self._tokenizer.is_fast else None
        self._take(max_tokens, self._tokenizer.pad_token_id, self._tokenizer.truncation_side)

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self._tokenizer.save_pretrained(str(folder))

    def spelled(self, vocabulary: int) -> tuple[str, ...]:
        """Return the letters of every token, a blank first where it begins a word; a mark that is no text is a blank.

        Args:
            vocabulary: How many token ids there are.
        """
        known = dict(sorted((place, token) for token, place in self._tokenizer.get_vocab().items()))
        # Any vocabulary may have a run of hashes, or a bar, as a token like any other.
        going_on, beginning = (sum(token.startswith(mark) for token in known.values()) for mark in (_GOES_ON, _BEGINS_WORD))
        is_wordpiece = going_on > beginning
        letters = {place: _letters_of(token, is_wordpiece=is_wordpiece) for place, token in known.items()}
        letters |= dict.fromkeys(self._tokenizer.all_special_ids, " ")
        return tuple(letters.get(place, "") for place in range(vocabulary))

    def _marks(self) -> list[int]:
        marks: list[int] = self._tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
        return marks

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if self._core is not None:
            return super()._ids(texts)
        return [list(ids) for ids in self._tokenizer(list(texts), return_attention_mask=False)["input_ids"]]


def _letters_of(token: str, *, is_wordpiece: bool) -> str:
    if is_wordpiece:
        return token.removeprefix(_GOES_ON) if token.startswith(_GOES_ON) else f" {token}"
    return " " + token[1:] if token[:1] in _BEGINS_WORD else token


def load_saved(folder: Path, max_tokens: int) -> SavedTokenizer:
    """Load a checkpoint's tokenizer, without transformers where its files allow."""
    return (SavedTokenizer if (folder / _CORE_FILE).exists() else Tokenizer)(folder, max_tokens)


def _unlimited(core: Any) -> Any:
    # Its file can name limits of its own.
    core.no_truncation()
    core.no_padding()
    return core


def pad(rows: Sequence[NDArray[np.int32]], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Fill texts up to the longest one.

    Returns:
        Token ids and attention mask (1 = real token), each (texts, longest), int64.
    """
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return ids, mask
