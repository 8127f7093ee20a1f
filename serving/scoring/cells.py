"""Reads one block of a table: its rows with the wanted columns, and nothing else of the file.

Cells of CSV and JSON Lines are strings, as in training: a number of JSON is "1", true is "true", what is nested is JSON; null stays null.
Those of Parquet keep their types. It does not know what a column is for.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from serving.errors import ScoringError
from serving.scoring.files import PARQUET, SEPARATED, Block, cells_of_any_size, read_separated, suffix_of
from training.data.characters import with_line_feeds
from training.data.formats import as_string
from training.data.table import shown_path

# A column of a row group is read in pieces of so many bytes, and its rows so many at a time, not whole.
_BUFFER_BYTES = 1 << 20
_PIECE_ROWS = 4096


class BlockReader:
    """Reads blocks; those of one Parquet file are cheapest in their order, because its pages are read forwards.

    Args:
        columns: What is wanted, in this order.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = list(columns)
        self._parquet: _ParquetRows | None = None

    def read(self, block: Block) -> pa.Table:
        """Read one block.

        Raises:
            ScoringError: The file cannot be read, or is another one than before.
        """
        try:
            table = self._read_parquet(block) if suffix_of(block.path) == PARQUET else self._read_lines(block)
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ScoringError(f"{shown_path(block.path)}: cannot be read any more: {reason}") from None
        if table.num_rows != block.rows:
            raise ScoringError(f"{shown_path(block.path)}: was changed while it was scored", "begin again with --overwrite")
        return table

    def _read_parquet(self, block: Block) -> pa.Table:
        rows = self._parquet
        if rows is None or rows.path != block.path or rows.position > block.start:
            rows = self._parquet = _ParquetRows(block.path, self._columns, block.start)
        rows.skip(block.start - rows.position)
        return rows.take(block.rows)

    def _read_lines(self, block: Block) -> pa.Table:
        filesystem, path = fsspec.core.url_to_fs(block.path)
        content = filesystem.cat_file(path, start=block.start, end=block.start + block.size)
        text = with_line_feeds(content.decode("utf-8-sig" if block.start == 0 else "utf-8"))
        if suffix_of(block.path) in SEPARATED:
            places = {column: block.columns.index(column) for column in self._columns}
            with cells_of_any_size():
                rows = list(read_separated(io.StringIO(text, newline="\n"), block.delimiter))
            return _strings({column: [row[place] for row in rows] for column, place in places.items()})
        objects = [json.loads(line) for line in text.split("\n") if line.strip()]
        return _strings({column: [_cell(one.get(column)) for one in objects] for column in self._columns})


class _ParquetRows:
    """The rows of a file, forwards."""

    def __init__(self, path: str, columns: list[str], start: int) -> None:
        self.path = path
        filesystem, inside = fsspec.core.url_to_fs(path)
        # Else Arrow reads all wanted columns of a row group at once, before its first row, and heeds no buffer's size.
        file = pq.ParquetFile(inside, filesystem=filesystem, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        first, self.position = 0, 0
        while first < len(sizes) - 1 and self.position + sizes[first] <= start:
            self.position += sizes[first]
            first += 1
        self._empty = file.schema_arrow.remove_metadata().empty_table().select(columns)
        self._batches = file.iter_batches(_PIECE_ROWS, row_groups=list(range(first, len(sizes))), columns=columns)
        self._rest = self._empty

    def skip(self, count: int) -> None:
        """Pass the next rows over, holding none of them."""
        for _ in self._pieces(count):
            pass

    def take(self, count: int) -> pa.Table:
        """Return the next rows; fewer at the end of the file."""
        return pa.concat_tables([self._empty, *self._pieces(count)])

    def _pieces(self, count: int) -> Iterator[pa.Table]:
        while count and (self._rest.num_rows or self._advance()):
            piece = self._rest.slice(0, count)
            self._rest = self._rest.slice(piece.num_rows)
            self.position += piece.num_rows
            count -= piece.num_rows
            yield piece

    def _advance(self) -> bool:
        batch = next(self._batches, None)
        if batch is not None:
            # Columns come in the file's order; what pandas noted beside them does not count.
            self._rest = pa.Table.from_batches([batch]).replace_schema_metadata(None).select(self._empty.schema.names)
        return batch is not None


def _strings(columns: Mapping[str, Sequence[str | None]]) -> pa.Table:
    return pa.table({column: pa.array(cells, pa.string()) for column, cells in columns.items()})


def _cell(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    found = as_string(value)
    return json.dumps(value, ensure_ascii=False) if found is None else found
