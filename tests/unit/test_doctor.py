"""training.doctor: the report on the data."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from training.data.doctor import Examination, FactTable, examine, render
from training.settings import TrainingSettings


def count_words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) + 2 for text in texts]


def table_text(count: int = 40, extra: str = "") -> str:
    lines = [f"ad number {number},{'care' if number % 2 else 'sales'},{('none', 'school', '')[number % 3]}" for number in range(count)]
    return "\n".join(["text,category,education", *lines, extra, ""])


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write CSV files into the current folder and examine them; the first is for training."""
    monkeypatch.chdir(tmp_path)

    def write_and_examine(tables: dict[str, str], /, max_tokens: int | None = None, **data: object) -> Examination:
        for name, content in tables.items():
            Path(name).write_text(content, encoding="utf-8")
        settings = {"data": {"files": [next(iter(tables))]} | data, "heads": {"category": {}, "education": {}}}
        return examine(TrainingSettings.model_validate(settings), count_words, max_tokens)

    return write_and_examine


def fact(examination: Examination, title: str) -> FactTable:
    return next(fact for fact in examination.facts if fact.title.startswith(title))


def test_files_splits_and_classes_are_counted(check):
    examination = check({"ads.csv": table_text(), "t.csv": table_text(13).replace("ad", "test ad")}, test_files=["t.csv"])
    assert (examination.errors, examination.hint) == ((), "")
    # Rows 3, 6, … of the test file miss only their education.
    assert fact(examination, "Files").rows == (("ads.csv", 40, 40, "training"), ("t.csv", 13, 13, "test"))
    assert fact(examination, "Examples (53, digest ").rows == (
        ("training", 34, "64.2%"),
        ("validation", 6, "11.3%"),
        ("test", 13, "24.5%"),
    )
    assert fact(examination, "Head category (2 classes)").rows == (("care", 17, 3, 6), ("sales", 17, 3, 7), ("(no label)", 0, 0, 0))
    education = fact(examination, "Head education (2 classes)")
    assert education.header == ("class", "training", "validation", "test")
    assert education.rows[-1] == ("(no label)", 11, 2, 4)


def test_texts_over_the_token_limit_are_counted_and_named(check):
    examination = check({"ads.csv": table_text(extra="a b c d e f g h,care,none\na b c d e f g,care,none")}, max_tokens=8)
    assert fact(examination, "Tokens").rows == (("all texts", 5, 10, "8", 2, "4.8%"),)
    assert examination.warnings == ("2 texts (4.8%) longer than 8 tokens will be cut; longest: ads.csv, row 42 (10); ads.csv, row 43 (9)",)


def test_without_a_limit_or_a_count_no_text_is_too_long(check):
    assert fact(check({"ads.csv": table_text()}), "Tokens").rows == (("all texts", 5, 5, "none", 0, "0.0%"),)
    settings = TrainingSettings.model_validate({"data": {"files": ["ads.csv"]}, "heads": {"category": {}}})
    assert [fact.title.split(" ")[0] for fact in examine(settings).facts] == ["Files", "Examples", "Head"]


def test_conflicts_are_named_with_both_rows(check):
    examination = check({"ads.csv": table_text(extra="ad  number 0,care,none\nad number 1,care,none\nad number 2,care,")})
    assert examination.warnings == (
        "column 'category': 2 texts stand with different classes: ads.csv, row 2 ('sales') and ads.csv, row 42 ('care'); "
        "ads.csv, row 4 ('sales') and ads.csv, row 44 ('care')",
        "column 'education': 1 text stands with different classes: ads.csv, row 3 ('school') and ads.csv, row 43 ('none')",
    )


def test_unlabelled_empty_and_repeated_rows_are_warned_of(check):
    extra = "nothing,,\n ,care,none\nad number 3,care,none"
    assert check({"ads.csv": table_text(extra=extra)}, empty_texts="drop").warnings == (
        "1 row without a label on any head left out: ads.csv, row 42",
        "1 row with an empty text left out: ads.csv, row 43",
        "1 copy of an earlier training row (same text, same labels) kept: ads.csv, row 44",
    )


def test_only_the_first_rows_are_named(check):
    extra = "\n".join(f"nothing {number},," for number in range(7))
    assert check({"ads.csv": table_text(extra=extra)}).warnings == (
        "7 rows without a label on any head left out: ads.csv, rows 42, 43, 44, 45, 46, …",
    )


def test_leaks_are_warned_of(check):
    tables = {"ads.csv": table_text(), "t.csv": table_text(3)}
    assert check(tables, test_files=["t.csv"]).warnings == (
        "3 rows for training with a text of a later split left out: ads.csv, rows 2, 3, 4",
    )


def test_classes_that_look_alike_are_warned_of(check):
    examination = check({"ads.csv": table_text(extra="a,Care,\nb,Care,\nc,Care,")})
    assert "head 'category': the classes 'Care', 'care' look alike; are they one?" in examination.warnings


def test_groups_that_given_files_divide_are_warned_of(check):
    header = "text,category,education,code"
    rows = [f"ad {number},{'care' if number % 2 else 'sales'},{'none' if number % 3 else 'school'},{number // 2}" for number in range(50)]
    tables = {"ads.csv": "\n".join([header, *rows[:40]]), "t.csv": "\n".join([header, *rows[39:]])}
    assert check(tables, test_files=["t.csv"], leaks="warn", split={"group_by": "{code}"}).warnings[1:] == (
        "1 group of split.group_by in training and in test, by the given files",
    )


def test_all_errors_are_listed_with_what_could_be_read(check):
    tables = {"ads.csv": table_text(extra=" ,care,none\n,sales,none"), "t.csv": "text,category\na\n"}
    examination = check(tables, test_files=["t.csv"])
    assert examination.errors == (
        "ads.csv, row 42: the text is empty",
        "ads.csv, row 43: the text is empty",
        "t.csv, line 2: 1 field, but the header has 2",
    )
    assert examination.hint == "set training.data.empty_texts to drop to leave such rows out"
    assert fact(examination, "Files").rows == (("ads.csv", 42, 40, "training"),)
    assert fact(examination, "Head category").rows[0] == ("care", 20, 0, 0)


def test_errors_about_classes_and_leaks_come_together(check):
    tables = {"ads.csv": table_text(), "t.csv": table_text(2, extra="new,other,none")}
    examination = check(tables, test_files=["t.csv"], leaks="error")
    assert examination.errors == (
        "head 'category': class 'other' is in the test files but in no training row (1 row: t.csv, row 4)",
        "ads.csv, row 2 (training): the same text as t.csv, row 2",
        "ads.csv, row 3 (training): the same text as t.csv, row 3",
    )


def test_an_unreadable_only_file_leaves_no_facts(check):
    examination = check({"ads.csv": ""})
    assert examination.errors == ("ads.csv: no rows",)
    assert render(examination) == "error: ads.csv: no rows\nhint:  the file is empty or holds only a header\n\n1 error, 0 warnings"


def test_the_report_shows_everything_and_no_text(check):
    tables = {"ads.csv": table_text(1200, extra="ad number 0,care,none\nthe very secret text,care,")}
    shown = render(check(tables, max_tokens=5))
    for expected in (
        "Files\n  file      rows   used  for\n  ads.csv  1,202  1,202  training",
        "Head education (2 classes)",
        "(no label)",
        "warning: column 'category': 1 text stands with different classes: ads.csv, row 2 ('sales') and ads.csv, row 1202 ('care')",
        "warning: 1 text (0.1%) longer than 5 tokens will be cut; longest: ads.csv, row 1203 (6)",
    ):
        assert expected in shown
    assert shown.endswith("0 errors, 2 warnings")
    assert "secret" not in shown
