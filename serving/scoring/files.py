"""Which files a table is made of, what each holds, and where its blocks of rows begin.

Each file is read once from beginning to end, in pieces, before anything is computed: its digest tells whether it is still the same when
scoring goes on later, and CSV and JSON Lines have to be read to be divided at all. What cannot be read is found then. It does not know what
is done with the rows.
"""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.uris import source_fault
from serving.errors import ScoringError
from training.data.characters import with_line_feeds
from training.data.formats import json_object, shown_name
from training.data.table import shown_path

SEPARATED = (".csv", ".tsv")
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
SUFFIXES = (*SEPARATED, *JSON_LINES, PARQUET)

_PIECE_BYTES = 1 << 20
_MOST_CELL = 2**31 - 1


@dataclass(frozen=True)
class Block:
    """Some rows of one file, one after the other.

    Attributes:
        number: Among all blocks of the table, from 0.
        path: Of the file.
        columns: All of a CSV or TSV, whose header is not in the block; else none.
        delimiter: Of a CSV or TSV.
        start: Where it begins: a byte, in Parquet a row, from 0.
        size: Bytes; in Parquet rows.
        rows: How many.
    """

    number: int
    path: str
    columns: tuple[str, ...]
    delimiter: str
    start: int
    size: int
    rows: int


@dataclass(frozen=True)
class File:
    """What one file holds.

    Attributes:
        name: As messages show it.
        size_bytes: Of the file.
        sha256: Of all of it.
        rows: How many.
        schema: Its columns; those of CSV and JSON Lines are strings.
        spans: Of its blocks: start, size and rows of each.
    """

    path: str
    name: str
    size_bytes: int
    sha256: str
    rows: int
    schema: pa.Schema
    spans: tuple[tuple[int, int, int], ...]


def suffix_of(path: str) -> str:
    """Return the suffix that names a file's format."""
    return PurePosixPath(path).suffix.lower()


def delimiter_of(path: str, delimiter: str | None) -> str:
    """Return what stands between the cells of a CSV or TSV."""
    return delimiter or ("\t" if suffix_of(path) == ".tsv" else ",")


def find_files(table: str) -> list[str]:
    """List the files of a table, in the order of their names.

    Args:
        table: A file, a folder or a pattern; local or any fsspec URI.

    Raises:
        ScoringError: There are none, one is no table, or no data is read from there.
    """
    name = shown_path(table)
    if fault := source_fault(table):
        raise ScoringError(f"{name}: {fault}", "copy the table to where the cluster keeps its files")
    try:
        filesystem, path = fsspec.core.url_to_fs(table)
        if "*" in table or "?" in table or "[" in table:
            paths = filesystem.glob(path)
        elif filesystem.isdir(path):
            paths = [entry["name"] for entry in filesystem.ls(path, detail=True) if entry["type"] == "file"]
        else:
            paths = [path] if filesystem.exists(path) else []
    except (OSError, ValueError, ImportError) as error:
        raise ScoringError(f"{name}: cannot be read: {_reason(error)}", "name a file, a folder or a pattern") from None
    # Readers of folders of tables leave these out: marks and manifests of whoever wrote them.
    kept = sorted(str(path) for path in paths if not PurePosixPath(path).name.startswith(("_", ".")))
    if not kept:
        raise ScoringError(f"{name}: no such file, or no file in it", "name a file, a folder or a pattern like 'ads/*.parquet'")
    for path in kept:
        if suffix_of(path) not in SUFFIXES:
            shown = PurePosixPath(path).name
            raise ScoringError(
                f"{shown}: the suffix is {suffix_of(path)!r}, but must be one of {', '.join(SUFFIXES)}", "name it by a pattern"
            )
    return [filesystem.unstrip_protocol(path) if "://" in table else path for path in kept]


def survey(path: str, block_rows: int, delimiter: str | None = None) -> File:
    """Read a file once: its rows, columns and digest, and where its blocks begin.

    Args:
        path: Of the file.
        block_rows: Most rows of a block.
        delimiter: Of CSV and TSV; by default a comma and a tab.

    Raises:
        ScoringError: It cannot be read, is not what its suffix says, or not in UTF-8.
    """
    name = shown_path(path)
    try:
        with fsspec.open(path, "rb") as file:
            if suffix_of(path) == PARQUET:
                return _survey_parquet(path, name, file, block_rows)
            lines = _Lines(file, name)
            columns: dict[str, None] = {}
            is_separated = suffix_of(path) in SEPARATED
            with cells_of_any_size():
                ends = _separated_ends(lines, columns, delimiter_of(path, delimiter)) if is_separated else _object_ends(lines, columns)
                spans = tuple(_divided(ends, block_rows))
            schema = pa.schema([(column, pa.string()) for column in columns])
            return File(path, name, lines.offset, lines.digest.hexdigest(), sum(rows for *_, rows in spans), schema, spans)
    except (OSError, ValueError, ImportError) as error:
        raise ScoringError(f"{name}: cannot be read: {_reason(error)}") from None


def make_blocks(files: Sequence[File], delimiter: str | None = None) -> list[Block]:
    """Number the blocks of all files, in the order of the table."""
    blocks: list[Block] = []
    for file in files:
        columns = tuple(file.schema.names) if suffix_of(file.path) in SEPARATED else ()
        separator = delimiter_of(file.path, delimiter)
        for start, size, rows in file.spans:
            blocks.append(Block(len(blocks), file.path, columns, separator, start, size, rows))
    return blocks


def read_separated(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Read the rows of a CSV or TSV that are not empty."""
    return (row for row in csv.reader(lines, delimiter=delimiter, strict=True) if row)


@contextmanager
def cells_of_any_size() -> Iterator[None]:
    """Lift the CSV reader's limit on a cell (128 KiB), which is global, for the length of the block."""
    limit = csv.field_size_limit(_MOST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


class _Lines:
    """The lines of a file, counted and digested as they are read."""

    def __init__(self, file: Any, name: str) -> None:
        self._file = file
        self.name = name
        self.offset = 0
        self.number = 0
        self.digest = hashlib.sha256()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        self.offset += len(line)
        self.number += 1
        self.digest.update(line)
        try:
            text = line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise ScoringError(f"{self.name}, line {self.number}: is not UTF-8", "convert it, or write it as Parquet") from None
        if "\0" in text:
            raise ScoringError(f"{self.name}, line {self.number}: holds a NUL character", "is it UTF-16? convert it to UTF-8")
        return str(with_line_feeds(text))


def _separated_ends(lines: _Lines, columns: dict[str, None], delimiter: str) -> Iterator[int]:
    """Give where the first row of a CSV or TSV begins, then where each ends; the columns are noted first."""
    rows = read_separated(lines, delimiter)
    try:
        header = next(rows, [])
        _note_header(lines.name, header, columns)
        yield lines.offset
        for row in rows:
            if len(row) != len(header):
                found = f"{len(row)} fields, but the header has {len(header)}"
                hint = "a cell that holds the delimiter or a line end must stand in double quotes"
                raise ScoringError(f"{lines.name}, line {lines.number}: {found}", hint)
            yield lines.offset
    except csv.Error as error:
        raise ScoringError(f"{lines.name}, line {lines.number}: {error}", "a quote inside a quoted cell is doubled") from None


def _note_header(name: str, header: Sequence[str], columns: dict[str, None]) -> None:
    if not header:
        raise ScoringError(f"{name}: has no header", "the first line names the columns")
    columns |= dict.fromkeys(header)
    if len(columns) < len(header):
        twice = next(column for column in header if header.count(column) > 1)
        raise ScoringError(f"{name}: duplicate column {shown_name(twice)!r}", "rename or remove one of the two")


def _object_ends(lines: _Lines, columns: dict[str, None]) -> Iterator[int]:
    """Give where the first row of JSON Lines begins, then where each ends; the columns are noted as they come."""
    yield 0
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json_object(line)
            json.dumps(row, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            raise ScoringError(f"{lines.name}, line {lines.number}: not valid JSON at character {error.pos + 1}: {error.msg}") from None
        except UnicodeEncodeError:
            raise ScoringError(f"{lines.name}, line {lines.number}: holds half of a surrogate pair", "remove it") from None
        except ValueError as error:
            raise ScoringError(f"{lines.name}, line {lines.number}: {error}", "each line is one JSON object") from None
        columns |= dict.fromkeys(row)
        yield lines.offset


def _divided(ends: Iterator[int], most: int) -> Iterator[tuple[int, int, int]]:
    """Divide rows into blocks: start, size and rows of each."""
    rows, begin = 0, next(ends)
    end = begin
    for end in ends:
        rows += 1
        if rows == most:
            yield begin, end - begin, rows
            begin, rows = end, 0
    if rows:
        yield begin, end - begin, rows


def _survey_parquet(path: str, name: str, file: Any, block_rows: int) -> File:
    digest, size = hashlib.sha256(), 0
    while piece := file.read(_PIECE_BYTES):
        digest.update(piece)
        size += len(piece)
    file.seek(0)
    try:
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow.remove_metadata()
    except (pa.ArrowException, OSError) as error:
        raise ScoringError(f"{name}: not a readable Parquet file: {error}") from None
    rows = parquet.metadata.num_rows
    spans = tuple((start, min(block_rows, rows - start), min(block_rows, rows - start)) for start in range(0, rows, block_rows))
    return File(path, name, size, digest.hexdigest(), rows, schema, spans)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
