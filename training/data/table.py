"""Reads one table, from this machine or any fsspec URI, into a DataFrame of strings.

It does not know heads or classes, nor how a format is parsed (`formats`). Messages name files, rows and columns and
show nothing of a cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import fsspec
import pandas as pd

from cluster.uris import source_fault
from training.data.characters import check_characters
from training.data.findings import Findings
from training.data.formats import READERS, Source
from training.data_settings import DataSettings
from training.errors import DataError


@dataclass(frozen=True)
class Table:
    """The wanted columns of one file.

    Attributes:
        name: The file as messages show it.
        header: All its columns.
        frame: Strings; the wanted columns that the file has.
        numbers: Per row the line it starts on (the header is line 1); in Parquet the row, from 1.
    """

    name: str
    header: tuple[str, ...]
    frame: pd.DataFrame
    numbers: tuple[int, ...]


def read_table(path: str, settings: DataSettings, required: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Read the wanted columns of a table.

    Args:
        path: Local path or fsspec URI; its suffix gives the format.
        settings: For `encoding` and `delimiter`.
        required: Columns that must be there.
        optional: Columns that are read where they are there.

    Raises:
        DataError: With every finding in the file, or the first 20 and how many more there are; or no data is read from there.
    """
    name = shown_path(path)
    if fault := source_fault(path):
        raise DataError(f"{name}: {fault}", "copy the table to where the cluster keeps its files; fsspec knows where secrets are")
    suffix = PurePosixPath(urlsplit(path).path if "://" in path else path).suffix.lower()
    if suffix not in READERS:
        raise DataError(f"{name}: the suffix is {suffix!r}, but must be one of {', '.join(READERS)}", "the suffix names the format")
    content = _read_bytes(path, name)
    delimiter = settings.delimiter or ("\t" if suffix == ".tsv" else ",")
    # A file of a byte order mark alone is as empty as one of white space.
    is_empty = not content.removeprefix(b"\xef\xbb\xbf").strip()
    cells = None if is_empty else READERS[suffix](Source(name, content, settings.encoding, delimiter, required, optional))
    if cells is None or not cells.numbers:
        raise DataError(f"{name}: no rows", "the file is empty or holds only a header")
    findings = Findings()
    for column, values in cells.columns.items():
        check_characters(name, column, values, cells.numbers, findings)
    findings.raise_any()
    frame = pd.DataFrame({column: pd.Series(values, dtype="str") for column, values in cells.columns.items()})
    return Table(name, tuple(cells.header), frame, tuple(cells.numbers))


def shown_path(path: str) -> str:
    """Return a path as messages show it: a URI without user, password and query, and of several that stand in one the last."""
    if "://" not in path:
        return path
    parts = urlsplit(path.rpartition("::")[2])
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _read_bytes(path: str, name: str) -> bytes:
    try:
        with fsspec.open(path, "rb") as file:
            content: bytes = file.read()
    except FileNotFoundError:
        raise DataError(f"{name}: no such file", "training.data names the files") from None
    except (OSError, ValueError, ImportError) as error:
        reason = getattr(error, "strerror", None) or str(error).replace(path, name)
        raise DataError(f"{name}: cannot be read: {reason}", "use a readable file or an installed fsspec protocol") from None
    return content
