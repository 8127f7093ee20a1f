"""Parses CSV, TSV, JSON Lines and Parquet into strings, and refuses what other readers guess at.

Every cell becomes a string: a missing cell of Parquet or a JSON null is "", an integer 1 is "1", true is "true", a float is
"1" when it is integral and its shortest form otherwise. The words NA, null and None stay words. Line ends inside
cells become line feeds. It does not know where the bytes come from, nor what a column is for.
"""

import csv
import datetime
import decimal
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from training.data.characters import decode, with_line_feeds
from training.data.findings import Findings
from training.errors import DataError

# A file without a header has texts in its place: names in messages are few and short.
_SHOWN_COLUMNS = 20
_SHOWN_COLUMN_CHARACTERS = 40
_DELIMITERS = (";", "\t", "|", ",")


@dataclass(frozen=True)
class Source:
    """One file's bytes and what is wanted from them.

    Attributes:
        name: The file as messages show it.
        content: All of it.
        encoding: Of CSV, TSV and JSON Lines.
        delimiter: Of CSV and TSV.
        required: Columns that must be there.
        optional: Columns that are read where they are there.
    """

    name: str
    content: bytes
    encoding: str
    delimiter: str
    required: Sequence[str]
    optional: Sequence[str]

    def wanted(self, header: Sequence[str]) -> list[str]:
        """List the required and optional columns that a header has.

        Raises:
            DataError: A column stands twice, or a required one is missing.
        """
        findings = Findings()
        for column in dict.fromkeys(header):
            if column and header.count(column) > 1:
                findings.add(f"{self.name}: duplicate column {shown_name(column)!r}", "rename or remove one of the two")
        for column in dict.fromkeys(self.required):
            if column not in header:
                found, hint = shown_header(header)
                findings.add(f"{self.name}: column {column!r} not found; {found}", hint)
        findings.raise_any()
        return [column for column in dict.fromkeys([*self.required, *self.optional]) if column in header]


@dataclass(frozen=True)
class Cells:
    """What a file holds.

    Attributes:
        header: All its columns.
        columns: The wanted ones, as strings.
        numbers: Per row the line it starts on, the first line being 1; in Parquet the row, from 1.
    """

    header: Sequence[str]
    columns: Mapping[str, list[str]]
    numbers: Sequence[int]


def shown_name(column: str) -> str:
    """Return a column's name as messages show it, shortened."""
    return column if len(column) <= _SHOWN_COLUMN_CHARACTERS else column[:_SHOWN_COLUMN_CHARACTERS] + "…"


def shown_header(header: Sequence[str]) -> tuple[str, str]:
    """Return the end of a message about a missing column, and its hint."""
    more = f" and {len(header) - _SHOWN_COLUMNS} more" if len(header) > _SHOWN_COLUMNS else ""
    found = f"header is {[shown_name(column) for column in header[:_SHOWN_COLUMNS]]}{more}"
    if len(header) == 1:
        for delimiter in _DELIMITERS:
            if delimiter in header[0]:
                return f"{found}; is the delimiter {delimiter!r}?", f"set training.data.delimiter to {json.dumps(delimiter)}"
    return found, "training.data.text, training.data.split.group_by and training.heads name the columns"


def read_separated(source: Source) -> Cells:
    """Read CSV or TSV.

    Raises:
        DataError: Not decodable, a row with too few or too many fields, a quote that is not closed.
    """
    text = decode(source.name, source.content, source.encoding)
    if source.delimiter in '"\n\r\0':
        raise DataError(f"training.data.delimiter is {source.delimiter!r}, but must be neither a quote nor a line end")
    # The reader's limit on a cell (128 KiB) is global: lift it to this file's size while reading, then put it back.
    limit = csv.field_size_limit()
    csv.field_size_limit(max(limit, len(text)))
    try:
        return _separate(source, text)
    finally:
        csv.field_size_limit(limit)


def _separate(source: Source, text: str) -> Cells:
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=source.delimiter, strict=True)
    findings = Findings()
    header: list[str] = []
    wanted: list[str] = []
    rows: list[list[str]] = []
    numbers: list[int] = []
    start = 1
    try:
        for row in reader:
            if row and not header:
                header, wanted = row, source.wanted(row)
            elif row and len(row) != len(header):
                _add_field_count(findings, f"{source.name}, line {start}", reader.line_num - start, len(row), len(header))
            elif row:
                rows.append(row)
                numbers.append(start)
            start = reader.line_num + 1
    except csv.Error:
        _add_quote(findings, source, "\n".join(text.split("\n")[start - 1 : reader.line_num]), start)
    findings.raise_any()
    places = {column: header.index(column) for column in wanted}
    return Cells(header, {column: [row[place] for row in rows] for column, place in places.items()}, numbers)


def _add_field_count(findings: Findings, where: str, more_lines: int, found: int, expected: int) -> None:
    span = f" (a quoted cell goes on for {more_lines} more lines: is a quote not closed?)" if more_lines else ""
    fields = "1 field" if found == 1 else f"{found} fields"
    hint = "a cell that holds the delimiter or a line end must stand in double quotes"
    findings.add(f"{where}: {fields}, but the header has {expected}{span}", hint)


def _add_quote(findings: Findings, source: Source, record: str, start: int) -> None:
    """Note the first quoted cell of a record that is never closed, or closed in its middle."""
    for cell in re.finditer(rf'(?:^|{re.escape(source.delimiter)})"[^"]*(?:""[^"]*)*', record):
        if record[cell.end() + 1 : cell.end() + 2] in ("", source.delimiter) and cell.end() < len(record):
            continue
        opened = start + record.count("\n", 0, cell.start())
        closed = start + record.count("\n", 0, cell.end())
        fault = "never closed" if cell.end() == len(record) else f"closed on line {closed} in the middle of a cell"
        findings.add(
            f"{source.name}, line {opened}: the quote opened here is {fault}",
            "close the quote where the cell ends; a quote inside a quoted cell is doubled",
        )
        return
    findings.add(f"{source.name}, line {start}: not valid CSV")


def read_json_lines(source: Source) -> Cells:
    """Read one JSON object a line; a column that an object lacks is "".

    Raises:
        DataError: Not decodable, not JSON, not an object, or a cell that is no plain value.
    """
    findings = Findings()
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    for number, line in enumerate(decode(source.name, source.content, source.encoding).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json_object(line))
            numbers.append(number)
        except json.JSONDecodeError as error:
            findings.add(f"{source.name}, line {number}: not valid JSON at character {error.pos + 1}: {error.msg}", _JSON_HINT)
        except ValueError as error:
            findings.add(f"{source.name}, line {number}: {error}", _JSON_HINT)
    findings.raise_any()
    header = list(dict.fromkeys(column for row in rows for column in row))
    wanted = source.wanted(header) if rows else []
    columns = {column: _strings(source.name, column, [row.get(column) for row in rows], numbers, findings) for column in wanted}
    findings.raise_any()
    return Cells(header, columns, numbers)


_JSON_HINT = "each line is one JSON object"


def json_object(line: str) -> dict[str, Any]:
    """Parse one line of JSON Lines.

    Raises:
        ValueError: Not JSON, not an object, or a name that stands twice.
    """
    try:
        row = json.loads(line, object_pairs_hook=_without_doubles, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}, but must be an object")
    return row


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"duplicate column {shown_name(name)!r}")
    return dict(pairs)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def read_parquet(source: Source) -> Cells:
    """Read the wanted columns of a Parquet file.

    Raises:
        DataError: Not a Parquet file, or a cell that is no plain value.
    """
    import pyarrow.lib
    import pyarrow.parquet

    findings = Findings()
    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(source.content))
        header: list[str] = list(file.schema_arrow.names)
        wanted = source.wanted(header)
        table = file.read(columns=wanted)
    except (pyarrow.lib.ArrowException, OSError) as error:
        raise DataError(f"{source.name}: not a readable Parquet file: {error}") from None
    numbers = range(1, table.num_rows + 1)
    columns: dict[str, list[str]] = {}
    for column in wanted:
        try:
            columns[column] = _strings(source.name, column, table.column(column).to_pylist(), numbers, findings)
        except UnicodeDecodeError:
            findings.add(f"{source.name}: column {column!r} is not UTF-8")
    findings.raise_any()
    return Cells(header, columns, numbers)


def _strings(name: str, column: str, values: Sequence[Any], numbers: Sequence[int], findings: Findings) -> list[str]:
    strings: list[str] = []
    for number, value in zip(numbers, values, strict=True):
        string = as_string(value)
        if string is None:
            hint = "a cell must be a string, a number, true, false or null"
            findings.add(f"{name}, row {number}: column {column!r} holds a {type(value).__name__}", hint)
        strings.append(string or "")
    return strings


def as_string(value: Any) -> str | None:
    """Return a cell as a string, or None for what is no plain value."""
    if isinstance(value, str):
        return with_line_feeds(value)
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float | decimal.Decimal | datetime.date | datetime.time):
        return str(value)
    return None


Reader = Callable[[Source], Cells]
READERS: Mapping[str, Reader] = {
    ".csv": read_separated,
    ".tsv": read_separated,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".parquet": read_parquet,
}
