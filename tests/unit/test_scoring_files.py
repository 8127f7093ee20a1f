import hashlib
import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.errors import ScoringError
from serving.scoring.cells import BlockReader
from serving.scoring.files import find_files, make_blocks, survey

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    {"id": "1", "title": "nurse", "text": "plain"},
    {"id": "2", "title": 'a "quoted", one', "text": "two\nlines"},
    {"id": "3", "title": "Ärztin", "text": ""},
    {"id": "4", "title": "x" * 200_000, "text": "more than the reader's own limit on a cell"},
    {"id": "5", "title": "last", "text": "no line end"},
]


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"ads{suffix}"
    frame = pd.DataFrame(ROWS)
    if suffix == ".parquet":
        frame.to_parquet(path, row_group_size=2)
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) + ("\n" if row["id"] == "2" else "") for row in ROWS), "utf-8")
    else:
        path.write_bytes(b"\xef\xbb\xbf" + frame.to_csv(index=False, sep="\t" if suffix == ".tsv" else ",", lineterminator="\r\n").encode())
    return path


def read(path: Path, block_rows: int, columns: list[str], **options: Any) -> list[list[dict[str, Any]]]:
    blocks = make_blocks([survey(str(path), block_rows, **options)], **options)
    reader = BlockReader(columns)
    return [reader.read(block).to_pylist() for block in blocks]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("block_rows", [1, 2, 3, 5, 100])
def test_blocks_are_the_rows_in_their_order(suffix: str, block_rows: int, tmp_path: Path) -> None:
    blocks = read(write(tmp_path, suffix), block_rows, ["text", "title", "id"])
    assert [row for block in blocks for row in block] == ROWS
    assert [len(block) for block in blocks[:-1]] == [block_rows] * (len(blocks) - 1)
    assert list(blocks[0][0]) == ["text", "title", "id"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_any_block_can_be_read_by_itself(suffix: str, tmp_path: Path) -> None:
    file = survey(str(write(tmp_path, suffix)), 2)
    reader = BlockReader(["id"])
    for number in (2, 0, 1, 1):
        found = reader.read(make_blocks([file])[number]).column("id").to_pylist()
        assert found == [row["id"] for row in ROWS[2 * number : 2 * number + 2]]


PEAK = """
import sys
import pyarrow as pa
from serving.scoring.cells import BlockReader
from serving.scoring.files import make_blocks, survey

path, rows, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
block = make_blocks([survey(path, rows)])[number]
found = BlockReader(["text"]).read(block)
print(found.num_rows, found.column("text")[-1].as_py()[:8], pa.default_memory_pool().max_memory())
"""


@pytest.mark.parametrize("number", [0, 9])
def test_of_a_large_row_group_little_more_than_a_block_is_held(number: int, tmp_path: Path) -> None:
    rows, block_rows, text_bytes = 80_000, 8_000, 1_000
    path = tmp_path / "large.parquet"
    # No two texts are alike, so that no dictionary holds them.
    texts = [f"{row:08d}".ljust(text_bytes, "x") for row in range(rows)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=rows, compression="none", use_dictionary=False)
    # A process of its own: the peak is that of its whole life.
    command = [sys.executable, "-c", PEAK, str(path), str(block_rows), str(number)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert told[:2] == [str(block_rows), f"{(number + 1) * block_rows - 1:08d}"]
    assert int(told[2]) < 2 * block_rows * text_bytes


def test_a_file_is_known_by_all_of_its_bytes(tmp_path: Path) -> None:
    for suffix in (".csv", ".jsonl", ".parquet"):
        path = write(tmp_path, suffix)
        file = survey(str(path), 2)
        assert (file.rows, file.size_bytes) == (len(ROWS), path.stat().st_size)
        assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_parquet_keeps_its_types_and_json_gives_strings(tmp_path: Path) -> None:
    table = pa.table({"n": [1, None], "when": [date(2026, 1, 2), None], "many": [["a"], []]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert survey(str(tmp_path / "t.parquet"), 9).schema.equals(table.schema)
    assert read(tmp_path / "t.parquet", 1, ["n", "when", "many"])[0] == [{"n": 1, "when": date(2026, 1, 2), "many": ["a"]}]
    (tmp_path / "t.jsonl").write_text('{"n": 1, "x": true}\n{"n": null, "x": {"y": [1]}}\n{"later": 1.0}\n')
    found = read(tmp_path / "t.jsonl", 9, ["n", "x", "later"])[0]
    assert [list(row.values()) for row in found] == [["1", "true", None], [None, '{"y": [1]}', None], [None, None, "1"]]


def test_another_delimiter(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a;b\n1;2,3\n")
    assert read(tmp_path / "t.csv", 9, ["b"], delimiter=";") == [[{"b": "2,3"}]]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.csv", b"", "t.csv: has no header"),
        ("t.csv", b"a,b\n1,2\n3\n", "t.csv, line 3: 1 fields, but the header has 2"),
        ("t.csv", b'a,b\n1,"2\n3\n', "t.csv, line 3: unexpected end of data"),
        ("t.csv", b"a,a\n", "t.csv: duplicate column 'a'"),
        ("t.csv", b"a,b\n1,\xe4\n", "t.csv, line 2: is not UTF-8"),
        ("t.csv", "a,b\n".encode("utf-16-le"), "t.csv, line 1: holds a NUL character"),
        ("t.jsonl", b'{"a": 1}\n{"a": \n', "t.jsonl, line 2: not valid JSON at character"),
        ("t.jsonl", b"[1]\n", "t.jsonl, line 1: a list, but must be an object"),
        ("t.jsonl", b'{"a": "\\ud800"}\n', "t.jsonl, line 1: holds half of a surrogate pair"),
        ("t.parquet", b"PAR1", "t.parquet: not a readable Parquet file"),
    ],
)
def test_what_cannot_be_read_is_found_before_anything_starts(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ScoringError) as caught:
        survey(str(tmp_path / name), 9)
    assert reason in caught.value.message


def test_a_file_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, ".csv")
    (block,) = make_blocks([survey(str(path), 9)])
    path.write_text("id,title,text\n1,2,3\n")
    with pytest.raises(ScoringError, match="was changed while it was scored"):
        BlockReader(["id"]).read(block)
    path.unlink()
    with pytest.raises(ScoringError, match="cannot be read any more: No such file"):
        BlockReader(["id"]).read(block)


def test_files_of_a_folder_a_pattern_and_a_uri(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c.parquet", "_manifest.json", ".hidden"):
        (tmp_path / name).write_text("x\n")
    assert [Path(path).name for path in find_files(str(tmp_path))] == ["a.csv", "b.csv", "c.parquet"]
    assert [Path(path).name for path in find_files(f"{tmp_path}/*.csv")] == ["a.csv", "b.csv"]
    assert find_files(f"file://{tmp_path}/a.csv") == [f"file://{tmp_path}/a.csv"]
    with pytest.raises(ScoringError, match="no such file"):
        find_files(str(tmp_path / "z.csv"))
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ScoringError, match=r"notes.md: the suffix is '.md', but must be one of .csv, .tsv"):
        find_files(str(tmp_path))
    with pytest.raises(ScoringError, match="nowhere://a: nowhere:// is not read from"):
        find_files("nowhere://secret@a")


def test_a_table_behind_a_uri(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for suffix in (".csv", ".parquet"):
        memory.pipe(f"/scoring/ads{suffix}", write(tmp_path, suffix).read_bytes())
    blocks = make_blocks([survey(path, 2) for path in find_files("memory://scoring")])
    reader = BlockReader(["id"])
    assert [cell for block in blocks for cell in reader.read(block).column("id").to_pylist()] == ["1", "2", "3", "4", "5"] * 2
