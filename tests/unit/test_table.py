"""training.table, training.formats and training.characters: one file to strings, or to findings."""

import csv
import re
from datetime import date
from decimal import Decimal
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from training.data.table import Table, read_table, shown_path
from training.data_settings import DataSettings
from training.errors import DataError

COLUMNS = ("text", "label")


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a file into the current folder and read its columns `text` and `label`."""
    monkeypatch.chdir(tmp_path)

    def write_and_read(content: str | bytes, name: str = "ads.csv", columns: tuple[str, ...] = COLUMNS, **settings: object) -> Table:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_table(name, DataSettings.model_validate(settings), columns)

    return write_and_read


@pytest.fixture
def refuse(read):
    """Do the same where it must be refused; return message and hint."""

    def write_and_refuse(content: str | bytes, name: str = "ads.csv", **settings: object) -> tuple[str, str]:
        with pytest.raises(DataError) as caught:
            read(content, name, **settings)
        return caught.value.message, caught.value.hint

    return write_and_refuse


def cells(table: Table) -> list[tuple[str, ...]]:
    return list(table.frame.itertuples(index=False, name=None))


def test_csv_gives_strings_and_the_lines_rows_start_on(read):
    table = read('text,other,label\na,1,x\n\n"b, ""c""\nd",2,y\ne,3,\n')
    assert cells(table) == [("a", "x"), ('b, "c"\nd', "y"), ("e", "")]
    assert table.numbers == (2, 4, 6)
    assert table.header == ("text", "other", "label")
    assert table.name == "ads.csv"
    assert all(dtype == "str" for dtype in table.frame.dtypes)


def test_tsv_splits_at_tabs(read):
    assert cells(read("text\tlabel\na, b\tx\n", "ads.TSV")) == [("a, b", "x")]


def test_a_given_delimiter_is_used(read):
    assert cells(read("text;label\na, b;x\n", delimiter=";")) == [("a, b", "x")]


def test_optional_columns_are_read_where_they_are_there(read, tmp_path: Path):
    read("text,label\na,x\n")
    table = read_table("ads.csv", DataSettings(), ["text"], ["label", "mood"])
    assert list(table.frame.columns) == ["text", "label"]


def test_other_line_separators_of_unicode_are_characters(read):
    assert cells(read("text,label\na\u2028b\x0bc\x85d,x\n")) == [("a\u2028b\x0bc\x85d", "x")]


def test_cells_can_be_large_and_the_readers_limit_is_put_back(read):
    limit = csv.field_size_limit()
    text = "word " * 100_000
    assert cells(read(f'text,label\n"{text}",x\n')) == [(text, "x")]
    assert csv.field_size_limit() == limit


def test_unnamed_columns_may_repeat(read):
    assert cells(read("text,label,,\na,x,,\n")) == [("a", "x")]


def test_other_encodings(read):
    assert cells(read("text,label\nMüller,x\n".encode("cp1252"), encoding="cp1252")) == [("Müller", "x")]
    assert cells(read("text,label\nMüller,x\n".encode("utf-16"), encoding="utf-16")) == [("Müller", "x")]
    assert cells(read("\ufefftext,label\nMüller,x\n".encode("utf-16-le"), encoding="utf-16-le")) == [("Müller", "x")]


def test_json_lines_gives_strings(read):
    lines = [
        '{"text": "a\\r\\nb", "label": 1, "other": [1]}',
        "",
        '{"label": true, "text": "null"}',
        '{"text": null, "label": 1.0}',
        '{"text": "c", "label": 0.1}',
        '{"text": "d"}',
        '{"text": "e", "label": 12345678901234567890}',
    ]
    table = read("\n".join(lines), "ads.jsonl")
    assert cells(table) == [("a\nb", "1"), ("null", "true"), ("", "1"), ("c", "0.1"), ("d", ""), ("e", "12345678901234567890")]
    assert table.numbers == (1, 3, 4, 5, 6, 7)
    assert table.header == ("text", "label", "other")


def write_parquet(columns: dict[str, object], name: str = "ads.parquet") -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), name)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, None], ["1", ""]),
        ([1.0, 0.5], ["1", "0.5"]),
        ([float("nan"), 2.0], ["", "2"]),
        ([True, False], ["true", "false"]),
        (["NA", None], ["NA", ""]),
        ([Decimal("1.50"), None], ["1.50", ""]),
        ([date(2024, 5, 1), None], ["2024-05-01", ""]),
    ],
)
def test_parquet_gives_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[object], expected: list[str]):
    monkeypatch.chdir(tmp_path)
    write_parquet({"text": ["a", "b"], "label": values, "vector": [[1.0], [2.0]]})
    table = read_table("ads.parquet", DataSettings(), COLUMNS)
    assert table.frame["label"].tolist() == expected
    assert table.numbers == (1, 2)


def test_parquet_of_several_row_groups_and_categories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    columns = {"text": [str(n) for n in range(10)], "label": pyarrow.array(["x", "y"] * 5).dictionary_encode()}
    pyarrow.parquet.write_table(pyarrow.table(columns), "ads.parquet", row_group_size=3)
    table = read_table("ads.parquet", DataSettings(), COLUMNS)
    assert table.frame["label"].tolist() == ["x", "y"] * 5


def test_any_fsspec_uri_can_be_read():
    with fsspec.open("memory://tables/ads.csv", "wb") as file:
        file.write(b"text,label\na,x\n")
    table = read_table("memory://tables/ads.csv", DataSettings(), COLUMNS)
    assert cells(table) == [("a", "x")]
    assert table.name == "memory://tables/ads.csv"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("data/ads.csv", "data/ads.csv"),
        ("https://me:secret@host/ads.csv?token=secret", "https://host/ads.csv"),
        ("s3://bucket/a", "s3://bucket/a"),
    ],
)
def test_messages_show_no_credentials(path: str, shown: str):
    assert shown_path(path) == shown


def test_formats_agree(read, tmp_path: Path):
    rows = [("a\nb", "1"), ("c", "")]
    write_parquet({"text": [text for text, _ in rows], "label": [1, None]})
    assert cells(read_table("ads.parquet", DataSettings(), COLUMNS)) == rows
    assert cells(read('{"text": "a\\nb", "label": 1}\n{"text": "c", "label": null}', "ads.ndjson")) == rows
    assert cells(read('text,label\n"a\nb",1\nc,\n')) == rows


def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^ads\.csv: no such file$"):
        read_table("ads.csv", DataSettings(), COLUMNS)


def test_a_folder_is_refused(tmp_path: Path):
    (tmp_path / "ads.csv").mkdir()
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_table(str(tmp_path / "ads.csv"), DataSettings(), COLUMNS)


def test_an_unknown_protocol_is_refused():
    with pytest.raises(DataError, match="nope:// is not read from; data comes from local files or one of abfs, "):
        read_table("nope://host/ads.csv", DataSettings(), COLUMNS)


def test_an_unknown_suffix_is_refused(refuse):
    message, hint = refuse("text,label\na,x\n", "ads.xlsx")
    assert message == "ads.xlsx: the suffix is '.xlsx', but must be one of .csv, .tsv, .jsonl, .ndjson, .parquet"
    assert hint


def test_a_missing_column_lists_the_header_shortened(refuse):
    header = ",".join(["x" * 60, *(f"column{n}" for n in range(30))])
    message, hint = refuse(f"{header}\n")
    assert message.startswith(f"ads.csv: column 'text' not found; header is ['{'x' * 40}…', 'column0', ")
    assert "'column18'] and 11 more\n" in message
    assert "column19" not in message
    assert hint == "training.data.text, training.data.split.group_by and training.heads name the columns"


@pytest.mark.parametrize("delimiter", ['"', "\n"])
def test_a_delimiter_that_cannot_separate_is_refused(refuse, delimiter: str):
    message, _ = refuse("text,label\na,x\n", delimiter=delimiter)
    assert message == f"training.data.delimiter is {delimiter!r}, but must be neither a quote nor a line end"


@pytest.mark.parametrize("encoding", ["utf-9", "hex"])
def test_an_unknown_encoding_is_refused(refuse, encoding: str):
    message, hint = refuse("text,label\na,x\n", encoding=encoding)
    assert message == f"training.data.encoding is '{encoding}', but must be a text encoding"
    assert hint == "for example utf-8, latin-1 or cp1252"


def test_a_byte_order_mark_contradicts_another_encoding(refuse):
    message, hint = refuse("\ufefftext,label\na,x\n", encoding="latin-1")
    assert message == "ads.csv: not iso8859-1: it starts with the UTF-8 byte order mark"
    assert hint == "set training.data.encoding to utf-8"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ('"b,y\nc,z\n', "line 3: the quote opened here is never closed"),
        ('"b\nb",y,"c\nd\n', "line 4: the quote opened here is never closed"),
        ('"b,y\n"c",z\n', "line 3: the quote opened here is closed on line 4 in the middle of a cell"),
        ('"b"b,"y"\n', "line 3: the quote opened here is closed on line 3 in the middle of a cell"),
        ('"b""b"b,y\n', "line 3: the quote opened here is closed on line 3 in the middle of a cell"),
    ],
)
def test_a_bad_quote_is_found_where_it_opens(refuse, record: str, expected: str):
    message, hint = refuse(f"text,label\na,x\n{record}")
    assert message == f"ads.csv, {expected}"
    assert hint == "close the quote where the cell ends; a quote inside a quoted cell is doubled"


def test_a_quote_inside_an_unquoted_cell_is_a_character(read):
    assert cells(read('text,label\na 5" disk,x\n')) == [('a 5" disk', "x")]


def test_a_row_that_swallowed_others_says_so(refuse):
    message, _ = refuse('text,label\n"a,x\nb,y\nc,",z,\n')
    assert message == "ads.csv, line 2: 3 fields, but the header has 2 (a quoted cell goes on for 2 more lines: is a quote not closed?)"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "not valid JSON at character 2: Expecting property name enclosed in double quotes"),
        ('{"text": NaN}', "NaN is not JSON"),
        ("[1]", "a list, but must be an object"),
        ('"a"', "a str, but must be an object"),
        ('{"text": "a", "text": "b"}', "duplicate column 'text'"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_json_is_found_by_line(refuse, line: str, expected: str):
    message, _ = refuse(f'{{"text": "a", "label": "x"}}\n{line}\n', "ads.jsonl")
    assert message == f"ads.jsonl, line 2: {expected}"


def test_cells_that_are_no_plain_values_are_refused(refuse, tmp_path: Path):
    message, hint = refuse('{"text": {"de": "a"}, "label": ["x"]}', "ads.jsonl")
    assert message.split("\n")[0] == "ads.jsonl, row 1: column 'text' holds a dict"
    assert message.split("\n")[1].strip() == "ads.jsonl, row 1: column 'label' holds a list"
    assert hint == "a cell must be a string, a number, true, false or null"
    write_parquet({"text": [b"a"], "label": ["x"]})
    with pytest.raises(DataError, match=r"ads\.parquet, row 1: column 'text' holds a bytes"):
        read_table("ads.parquet", DataSettings(), COLUMNS)


def test_a_broken_parquet_file_is_refused(refuse):
    message, _ = refuse(b"PAR1 not really", "ads.parquet")
    assert message.startswith("ads.parquet: not a readable Parquet file: ")


def test_parquet_strings_that_are_not_utf8_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    broken = pyarrow.array([b"M\xfcller"]).view(pyarrow.string())
    write_parquet({"text": broken, "label": ["x"]})
    with pytest.raises(DataError, match=r"^ads\.parquet: column 'text' is not UTF-8$"):
        read_table("ads.parquet", DataSettings(), COLUMNS)


def test_the_first_findings_are_shown_and_all_are_counted(refuse):
    message, _ = refuse("text,label\n" + "a\n" * 25)
    lines = message.split("\n")
    assert lines[0] == "ads.csv, line 2: 1 field, but the header has 2"
    assert len(lines) == 21
    assert lines[-1].strip() == "and 5 more"


def test_no_message_shows_a_text(refuse):
    secret = "confidential"
    for name, content in {
        "ads.csv": f'text,label\n{secret}\n{secret},x,y\n"{secret}"{secret},x\n',
        "bytes.csv": f"text,label\n{secret}\n".encode() + b"\xff",
        "nul.csv": f"text,label\n{secret}\0,x\n",
        "ads.jsonl": f'{{"text": "{secret}",, "label": 1}}\n"{secret}"\n',
        "cells.jsonl": f'{{"text": ["{secret}"], "label": "{secret}\\u0000"}}\n',
    }.items():
        message, hint = refuse(content, name)
        assert not re.search(secret, message + hint)
