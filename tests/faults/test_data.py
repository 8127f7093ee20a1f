"""Rows A of the fault list: tables that people really have. Each test's name carries the row's id."""

import json
from pathlib import Path

import numpy as np
import pytest

from training.data.dataset import Dataset, load_dataset
from training.errors import DataError
from training.settings import TrainingSettings


def lines(count: int = 40, first: int = 0) -> list[str]:
    """Make CSV rows of text, category (2 classes) and education (2 classes)."""
    return [f"ad {first + n},{'care' if n % 2 else 'sales'},{'school' if n % 3 else 'none'}" for n in range(count)]


def table(*more: str, count: int = 40) -> str:
    return "\n".join(["text,category,education", *lines(count), *more, ""])


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a table, and one for tests if given, into the current folder and load them."""
    monkeypatch.chdir(tmp_path)

    def write_and_load(content: str | bytes, /, name: str = "ads.csv", test: str = "", **data: object) -> Dataset:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        if test:
            Path("test.csv").write_text(test, encoding="utf-8")
            data = data | {"test_files": ["test.csv"]}
        heads = {"category": {}, "education": {}}
        return load_dataset(TrainingSettings.model_validate({"data": {"files": [name]} | data, "heads": heads}))

    return write_and_load


@pytest.fixture
def refuse(load):
    """Load what must be refused; return message and hint."""

    def load_and_refuse(content: str | bytes, /, **options: object) -> tuple[str, str]:
        with pytest.raises(DataError) as caught:
            load(content, **options)
        assert caught.value.exit_code == 2
        return caught.value.message, caught.value.hint

    return load_and_refuse


def texts(dataset: Dataset) -> set[str]:
    return {text for examples in dataset.splits().values() for text in examples.texts}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a1_utf8_byte_order_mark(load, suffix: str):
    plain = {
        "csv": table(),
        "tsv": table().replace(",", "\t"),
        "jsonl": "\n".join(json.dumps(dict(zip(("text", "category", "education"), line.split(","), strict=True))) for line in lines()),
    }[suffix]
    assert load("\ufeff" + plain, name=f"ads.{suffix}").digest == load(table()).digest


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_a2_line_ends(load, line_end: str):
    content = table('"two\nlines",care,none')
    dataset = load(content.replace("\n", line_end))
    assert sum(map(len, dataset.splits().values())) == 41
    assert dataset.digest == load(content).digest
    assert "two\nlines" in texts(dataset)


def test_a2_mixed_line_ends_and_no_last_one(load):
    assert load(table().replace("\n", "\r\n", 7).rstrip()).digest == load(table()).digest


def test_a2_line_numbers_hold_for_any_line_end(refuse):
    for line_end in ("\n", "\r\n", "\r"):
        message, _ = refuse(table('"two\nlines",care,none', "short").replace("\n", line_end))
        assert message == "ads.csv, line 44: 1 field, but the header has 3"


def test_a3_latin_1(refuse, load):
    content = table("Müller,care,none").encode("latin-1")
    message, hint = refuse(content)
    assert message == f"ads.csv: not UTF-8 at line 42: byte 0xfc at offset {content.index(0xFC)} of the file"
    assert hint == "set training.data.encoding to the file's encoding, for example latin-1 or cp1252"
    assert "Müller" in texts(load(content, encoding="latin-1"))


@pytest.mark.parametrize(("encoding", "name"), [("utf-16", "UTF-16"), ("utf-32", "UTF-32")])
def test_a4_utf_16(refuse, load, encoding: str, name: str):
    content = table().encode(encoding)
    message, hint = refuse(content)
    assert message == f"ads.csv: not UTF-8: it starts with the {name} byte order mark"
    assert hint == f"set training.data.encoding to {encoding}"
    assert load(content, encoding=encoding).digest == load(table()).digest


def test_a4_utf_16_without_a_mark(refuse):
    message, hint = refuse(table().encode("utf-16-le"))
    assert "NUL characters" in message
    assert "utf-16-le" in hint


@pytest.mark.parametrize("column", ["text", "category", "other"])
def test_a5_duplicate_column_names(refuse, column: str):
    message, hint = refuse(f"text,category,education,other,{column}\na,care,none,b,c\n")
    assert message == f"ads.csv: duplicate column '{column}'"
    assert hint == "rename or remove one of the two"


def test_a5_duplicate_keys_in_json(refuse):
    message, _ = refuse('{"text": "a", "category": "care", "category": "sales"}', name="ads.jsonl")
    assert message == "ads.jsonl, line 1: duplicate column 'category'"


@pytest.mark.parametrize("word", ["NA", "null", "None", "n/a", "nan", "NaN", "N/A", "NULL", "-", "1e5", "007"])
def test_a6_words_stay_words(load, word: str):
    dataset = load(table(*[f"{word} {n},{word},none" for n in range(5)], f"{word},care,none"))
    assert word in dataset.classes["category"]
    assert word in texts(dataset)
    label = dataset.classes["category"].index(word)
    assert sum(int(np.sum(examples.labels["category"] == label)) for examples in dataset.splits().values()) == 5


def test_a7_rows_without_any_label(load):
    dataset = load(table(*[f"unknown {n},," for n in range(7)], "half,,none"))
    assert [str(note) for note in dataset.notes] == ["7 rows without a label on any head left out: ads.csv, rows 42, 43, 44, 45, 46, …"]
    assert dataset.notes[0].count == 7
    assert not any(text.startswith("unknown") for text in texts(dataset))
    assert "half" in texts(dataset)


def test_a8_label_missing_on_one_head(load):
    import torch

    from training.fitting.loss import head_loss

    dataset = load(table(*[f"half {n},care," for n in range(10)]))
    education = dataset.training.labels["education"]
    assert set(education.tolist()) == {-1, 0, 1}
    assert np.all(dataset.training.labels["category"] >= 0)
    logits = torch.zeros(len(education), 2, requires_grad=True)
    head_loss(logits, torch.from_numpy(education)).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(1) > 0, torch.from_numpy(education >= 0))
    nothing = head_loss(logits[:3], torch.full((3,), -1))
    assert nothing.item() == 0.0


@pytest.mark.parametrize(("row", "fields"), [("ad", "1 field"), ("ad,care", "2 fields"), ("ad,care,none,more", "4 fields")])
def test_a10_rows_with_other_fields(refuse, row: str, fields: str):
    message, hint = refuse(table(row, "fine,care,none", row))
    assert message.split("\n       ") == [
        f"ads.csv, line 42: {fields}, but the header has 3",
        f"ads.csv, line 44: {fields}, but the header has 3",
    ]
    assert hint == "a cell that holds the delimiter or a line end must stand in double quotes"


def test_a11_unclosed_quote(refuse):
    content = "\n".join(["text,category,education", *lines(3), '"open,care,none', *lines(30, 3), ""])
    message, hint = refuse(content)
    assert message == "ads.csv, line 5: the quote opened here is never closed"
    assert hint.startswith("close the quote")


def test_a11_unclosed_quote_that_a_later_one_closes(refuse):
    message, _ = refuse(table('"open,care,none', '"fine, really",care,none'))
    assert message == "ads.csv, line 42: the quote opened here is closed on line 43 in the middle of a cell"


def test_a12_nul_in_csv(refuse):
    message, hint = refuse(table("a\0b\0,care,none", "c,ca\0re,none"))
    assert message == "ads.csv: NUL characters: 3, on lines 42, 43"
    assert hint.startswith("remove them")


def test_a12_nul_by_escape_in_json(refuse):
    message, _ = refuse('{"text": "a\\u0000b", "category": "care", "education": "none"}', name="ads.jsonl")
    assert message == "ads.jsonl, row 1: column 'text' holds a NUL character"


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"text,category,education\n", b"\xef\xbb\xbftext,category,education"])
def test_a15_no_rows(refuse, content: bytes):
    assert refuse(content)[0] == "ads.csv: no rows"


def test_a15_no_rows_in_other_formats(refuse):
    import io

    import pyarrow
    import pyarrow.parquet

    assert refuse(b"\n", name="ads.jsonl")[0] == "ads.jsonl: no rows"
    empty = io.BytesIO()
    schema = pyarrow.schema([(column, pyarrow.string()) for column in ("text", "category", "education")])
    pyarrow.parquet.write_table(schema.empty_table(), empty)
    assert refuse(empty.getvalue(), name="ads.parquet")[0] == "ads.parquet: no rows"


def test_a15_no_usable_rows(refuse):
    message, hint = refuse("text,category,education\na,,\nb,,\n")
    assert message == "no row of training.data.files has a text and a label"
    assert hint == "2 rows without a label on any head left out: ads.csv, rows 2, 3"


def test_a16_classes_with_one_example(load):
    dataset = load(table("once,rare,none", "twice 1,scarce,none", "twice 2,scarce,school"))
    labels = dataset.training.labels["category"].tolist()
    assert {dataset.classes["category"][label] for label in labels} == {"care", "rare", "sales", "scarce"}
    assert "head 'category': 1 class with one training example: 'rare'" in [note.message for note in dataset.notes]


def test_a16_every_class_once(refuse):
    content = "\n".join(["text,category,education", *(f"ad {n},class {n},level {n}" for n in range(12)), ""])
    message, _ = refuse(content)
    assert message == "no examples are left for validation: 12 training rows in 12 groups of rows that stay together"


def test_a17_one_class(refuse):
    message, hint = refuse(table().replace("sales", "care"))
    assert message == "head 'category' has one class, 'care'; nothing to learn"
    assert hint == "remove training.heads.category, or check its column"


def test_a17_no_class(refuse):
    content = "\n".join(["text,category,education", *(f"ad {n},{'care' if n % 2 else 'sales'}," for n in range(20)), ""])
    assert refuse(content)[0] == "head 'education' has no labelled training row; nothing to learn"


def test_a18_unseen_label_in_given_files(refuse):
    test = "text,category,education\nx,nursing,none\ny,care,phd\nz,nursing,none\n"
    message, hint = refuse(table(), test=test)
    assert message.split("\n       ") == [
        "head 'category': class 'nursing' is in the test files but in no training row (2 rows: test.csv, rows 2, 4)",
        "head 'education': class 'phd' is in the test files but in no training row (1 row: test.csv, row 3)",
    ]
    assert hint == "correct the labels, or add training rows of that class"


def test_a19_same_text_in_two_splits(load, refuse):
    test = "text,category,education\n" + "\n".join(lines(3)) + "\nnew,care,none\n"
    dropped = load(table(), test=test)
    assert not set(dropped.test.texts) & (set(dropped.training.texts) | set(dropped.validation.texts))
    assert len(dropped.test) == 4
    assert [str(note) for note in dropped.notes] == ["3 rows for training with a text of a later split left out: ads.csv, rows 2, 3, 4"]
    warned = load(table(), test=test, leaks="warn")
    assert [str(note) for note in warned.notes] == ["3 rows for training with a text of a later split kept: ads.csv, rows 2, 3, 4"]
    assert len(warned.training) + len(warned.validation) == 40
    message, hint = refuse(table(), test=test, leaks="error")
    assert message.split("\n       ")[0] == "ads.csv, row 2 (training): the same text as test.csv, row 2"
    assert hint == "set training.data.leaks to drop to leave such rows out of the earlier split"


def test_a19_our_own_split_cannot_leak(load):
    dataset = load(table(*lines(40), *(line.replace("ad ", "ad  ") for line in lines(40))))
    splits = [{" ".join(text.split()) for text in examples.texts} for examples in dataset.splits().values()]
    assert sum(map(len, splits)) == len(set.union(*splits))


@pytest.mark.parametrize("text", ["", "  ", "\t", "\u200b", "\u00a0", '"\n"'])
def test_a21_empty_texts(load, refuse, text: str):
    message, hint = refuse(table(f"{text},care,none"))
    assert message == "ads.csv, row 42: the text is empty"
    assert hint == "set training.data.empty_texts to drop to leave such rows out"
    dataset = load(table(f"{text},care,none"), empty_texts="drop")
    assert sum(map(len, dataset.splits().values())) == 40
    assert [str(note) for note in dataset.notes] == ["1 row with an empty text left out: ads.csv, row 42"]


def test_a21_a_template_around_empty_cells_is_empty(refuse):
    content = "title,text,category,education\n ,,care,none\n"
    assert refuse(content, text="{title}: {text}.")[0] == "ads.csv, row 2: the text is empty"


@pytest.mark.parametrize("sequence", [b"\xed\xa0\x80", b"\xc0\xaf", b"\xf8\x88\x80\x80\x80", b"\xe2\x82"])
def test_a22_invalid_utf8(refuse, sequence: bytes):
    content = table("odd TEXT,care,none").encode().replace(b"TEXT", sequence)
    message, _ = refuse(content)
    assert message == f"ads.csv: not UTF-8 at line 42: byte 0x{sequence[0]:02x} at offset {content.index(sequence)} of the file"


def test_a22_lone_surrogate_by_escape_in_json(refuse):
    message, _ = refuse('{"text": "a\\ud800", "category": "care", "education": "none"}', name="ads.jsonl")
    assert message == "ads.jsonl, row 1: column 'text' holds half of a surrogate pair"


def test_a22_a_surrogate_pair_by_escape_is_one_character(load):
    rows = [json.dumps(dict(zip(("text", "category", "education"), line.split(","), strict=True))) for line in lines()]
    rows.append('{"text": "\\ud83d\\ude42", "category": "care", "education": "none"}')
    assert "🙂" in texts(load("\n".join(rows), name="ads.jsonl"))


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a24_wrong_delimiter(refuse, load, delimiter: str):
    content = table('"ad, with a comma",care,none').replace(",", delimiter).replace(f"ad{delimiter} with", "ad, with")
    message, hint = refuse(content)
    header = f"text{delimiter}category{delimiter}education"
    question = f"header is {[header]}; is the delimiter {delimiter!r}?"
    assert message == f"ads.csv: column 'text' not found; {question}"
    assert hint == f"set training.data.delimiter to {json.dumps(delimiter)}"
    assert "ad, with a comma" in texts(load(content, delimiter=delimiter))


def test_a24_comma_in_a_tsv(refuse):
    message, _ = refuse(table(), name="ads.tsv")
    assert message == "ads.tsv: column 'text' not found; header is ['text,category,education']; is the delimiter ','?"
