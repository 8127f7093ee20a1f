"""Says which bytes and characters a table may hold: one given encoding, no NUL, no halves of surrogate pairs.

It does not know formats or columns beyond their names, and shows a wrong byte but never the text around it.
"""

import codecs
from collections.abc import Sequence
from typing import NoReturn

from training.data.findings import SHOWN_ROWS, Findings
from training.errors import DataError

# UTF-32 begins with the two bytes of UTF-16, so it is looked for first.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode(name: str, content: bytes, encoding: str) -> str:
    """Decode strictly; without byte order mark, and with every line end as a line feed.

    Raises:
        DataError: Another encoding than the given one, an unknown one, or NUL characters.
    """
    try:
        codec = codecs.lookup(encoding).name
        _check_byte_order_mark(name, content, codec)
        text = content.decode(codec)
    except LookupError:
        raise DataError(
            f"training.data.encoding is {encoding!r}, but must be a text encoding", "for example utf-8, latin-1 or cp1252"
        ) from None
    except UnicodeDecodeError as error:
        line = with_line_feeds(content[: error.start].decode("latin-1")).count("\n") + 1
        raise DataError(
            f"{name}: not {_shown_codec(codec)} at line {line}: byte 0x{content[error.start]:02x} at offset {error.start} of the file",
            "set training.data.encoding to the file's encoding, for example latin-1 or cp1252",
        ) from None
    text = with_line_feeds(text.removeprefix("\ufeff"))
    if "\0" in text:
        _refuse_nul(name, text)
    return text


def _check_byte_order_mark(name: str, content: bytes, codec: str) -> None:
    marked = next((marked for mark, marked in _BYTE_ORDER_MARKS if content.startswith(mark)), codec)
    if not codec.startswith(marked):
        raise DataError(
            f"{name}: not {_shown_codec(codec)}: it starts with the {marked.upper()} byte order mark",
            f"set training.data.encoding to {marked}",
        )


def with_line_feeds(text: str) -> str:
    """Return a text whose lines end in line feeds."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _shown_codec(codec: str) -> str:
    return codec.upper() if codec.startswith("utf") else codec


def _refuse_nul(name: str, text: str) -> NoReturn:
    lines = [number for number, line in enumerate(text.split("\n"), start=1) if "\0" in line]
    shown = ", ".join(map(str, lines[:SHOWN_ROWS])) + (", …" if len(lines) > SHOWN_ROWS else "")
    raise DataError(
        f"{name}: NUL characters: {text.count(chr(0))}, on {'line' if len(lines) == 1 else 'lines'} {shown}",
        "remove them; if the file is UTF-16, set training.data.encoding to utf-16-le or utf-16-be",
    )


def check_characters(name: str, column: str, values: Sequence[str], numbers: Sequence[int], findings: Findings) -> None:
    """Add the cells with NUL or lone surrogates, which escapes in JSON can bring in, to the findings."""
    joined = "".join(values)
    if "\0" not in joined and _is_encodable(joined):
        return
    for number, value in zip(numbers, values, strict=True):
        if "\0" in value:
            findings.add(f"{name}, row {number}: column {column!r} holds a NUL character", "remove it")
        elif not _is_encodable(value):
            findings.add(f"{name}, row {number}: column {column!r} holds half of a surrogate pair", "remove it")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
