"""The table of faults names every row once, and only tests that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "tests" / "faults" / "README.md"
# How many rows each part of the list has, and its numbers.
ROWS = {
    "A": "1 2 3 4 5 6 7 8 10 11 12 15 16 17 18 19 21 22 24",
    "B": "1 2 3 4 5 6 8 9 11 12 13 15 16 17 18 20 21 23",
    "C": "1 2 4 6 7 9 10 11 12 14 15 17 18",
    "D": "1 3 4 5 6 7 8 9 11 12 13 15 17",
    "E": "1 2 3 4 5 6 7 8 10 11 14 15 16 17 18 20 21 22 23 26",
    "F": "1 2 3 4 6 7 8 10",
    "G": "1 2 4 5 6 7 8 9 10 11 13 15 17 18 19",
}


def test_every_row_is_named_once() -> None:
    tested, _, left = TABLE.read_text().partition("## Not to be tested here")
    cells = [line.split("|")[1] for line in tested.splitlines() if line.startswith("| ")]
    named = re.findall(r"\b[A-G]\d+\b", " ".join(cells) + left)
    assert sorted(named) == sorted(f"{part}{number}" for part, numbers in ROWS.items() for number in numbers.split())


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TABLE.read_text())
    assert len(named) > 20
    for path, test in named:
        assert f"def {test or 'test_'}" in (ROOT / path).read_text(), (path, test)


def test_a_row_tested_in_this_folder_is_in_the_name_of_a_test() -> None:
    tests = "\n".join(file.read_text() for file in TABLE.parent.glob("test_*.py"))
    for line in TABLE.read_text().splitlines():
        if line.startswith("| ") and "`tests/faults/" in line:
            for row in re.findall(r"\b[A-G]\d+\b", line.split("|")[1]):
                assert re.search(rf"def test_(\w+_)?{row.lower()}_", tests), row
