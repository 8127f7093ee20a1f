"""training.data.dataset and training.data.rows: from tables to three splits, with everything left out noted."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from training.data.dataset import Dataset, load_dataset
from training.data.labels import MISSING
from training.data.rows import render
from training.errors import DataError
from training.settings import TrainingSettings
from training.template import is_blank

HEADS = {"category": {}, "education": {}}


def rows(count: int = 60) -> list[dict[str, str]]:
    """Make rows of two heads; every fifth has no education."""
    return [
        {
            "title": f"Title {number}",
            "text": f"Text of {number}",
            "category": ("care", "sales", "transport")[number % 3],
            "education": "" if number % 5 == 0 else ("none", "school")[number % 2],
        }
        for number in range(count)
    ]


def csv_text(rows: list[dict[str, str]], line_end: str = "\n") -> str:
    columns = list(rows[0])
    return line_end.join([",".join(columns), *(",".join(row[column] for column in columns) for row in rows), ""])


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write CSV files into the current folder and load them: the first is for training unless `data` says otherwise."""
    monkeypatch.chdir(tmp_path)

    def write_and_load(tables: dict[str, str] | list[dict[str, str]], heads: dict[str, object] = HEADS, /, **data: object) -> Dataset:
        given = tables if isinstance(tables, dict) else {"ads.csv": csv_text(tables)}
        for name, content in given.items():
            Path(name).write_text(content, encoding="utf-8", newline="")
        settings = {"data": {"files": [next(iter(given))]} | data, "heads": heads}
        return load_dataset(TrainingSettings.model_validate(settings))

    return write_and_load


@pytest.fixture
def refuse(load):
    """Load what must be refused; return message and hint."""

    def load_and_refuse(*arguments: object, **data: object) -> tuple[str, str]:
        with pytest.raises(DataError) as caught:
            load(*arguments, **data)
        return caught.value.message, caught.value.hint

    return load_and_refuse


def labelled(dataset: Dataset) -> dict[str, tuple[str | None, ...]]:
    """Map each text to its split and the names of its classes."""
    return {
        text: (split, *((*names, None)[examples.labels[head][place]] for head, names in dataset.classes.items()))
        for split, examples in dataset.splits().items()
        for place, text in enumerate(examples.texts)
    }


def test_rows_become_examples(load):
    dataset = load(rows(), text="{title}: {text}")
    assert dataset.classes == {"category": ("care", "sales", "transport"), "education": ("none", "school")}
    assert [len(examples) for examples in dataset.splits().values()] == [42, 9, 9]
    found = labelled(dataset)
    assert len(found) == 60
    assert found["Title 0: Text of 0"][1:] == ("care", None)
    assert found["Title 7: Text of 7"][1:] == ("sales", "school")
    examples = dataset.training
    place = examples.texts.index(next(text for text in examples.texts))
    assert examples.rows[place] == f"ads.csv, row {int(examples.texts[place].split()[-1]) + 2}"
    assert examples.groups is None
    assert examples.labels["education"].dtype == np.int64
    assert dataset.notes == ()


def test_examples_are_in_the_order_of_the_files(load):
    numbers = [int(row.split()[-1]) for row in load(rows()).training.rows]
    assert numbers == sorted(numbers)


def test_take_keeps_everything_aligned(load):
    examples = load(rows(), split={"group_by": "{category}-{title[:7]}"}).training
    taken = examples.take([3, 0])
    assert taken.texts == (examples.texts[3], examples.texts[0])
    assert taken.rows == (examples.rows[3], examples.rows[0])
    assert taken.groups is not None
    assert examples.groups is not None
    assert taken.groups == (examples.groups[3], examples.groups[0])
    assert taken.labels["category"].tolist() == examples.labels["category"][[3, 0]].tolist()
    assert len(taken) == 2


def test_given_classes_keep_their_order(load):
    heads = {"category": {}, "education": {"classes": ["school", "none", "phd"], "ordered": True}}
    dataset = load(rows(), heads)
    assert dataset.classes["education"] == ("school", "none", "phd")
    assert labelled(dataset)["Text of 7"][2] == "school"
    assert [note.message for note in dataset.notes] == ["head 'education': 1 class with no training example: 'phd'"]


def test_a_label_outside_the_given_classes_is_an_error_with_its_place(refuse):
    data = rows()
    data[4]["education"] = "PhD?"
    data[9]["education"] = "phd"
    message, hint = refuse(data, {"category": {}, "education": {"classes": ["none", "school"]}})
    assert message.split("\n")[0] == "ads.csv, row 6: column 'education' is 'PhD?', but head 'education' has the classes 'none', 'school'"
    assert message.split("\n")[1].strip().startswith("ads.csv, row 11: column 'education' is 'phd'")
    assert hint == "correct the cells, or add the class to training.heads.education.classes"


def test_a_head_can_have_another_column(load):
    dataset = load(rows(), {"wanted": {"column": "education"}})
    assert dataset.classes == {"wanted": ("none", "school")}


def test_white_space_around_labels_is_no_part_of_them(load):
    data = rows()
    data[1]["category"] = " sales "
    data[2]["education"] = "  "
    dataset = load(data)
    assert dataset.classes["category"] == ("care", "sales", "transport")
    assert labelled(dataset)["Text of 2"][2] is None


def test_missing_labels_can_be_words(load):
    data = rows()
    for row in data:
        row["education"] = row["education"] or "?"
    assert load(data, missing_labels=["?"]).classes["education"] == ("none", "school")


def test_files_may_carry_the_column_of_one_head(load):
    files = {
        "category.csv": csv_text([{"text": f"c{n}", "category": "ab"[n % 2]} for n in range(20)]),
        "education.csv": csv_text([{"text": f"e{n}", "education": "xy"[n % 2]} for n in range(20)]),
    }
    dataset = load(files, files=list(files))
    found = labelled(dataset)
    assert found["c1"][1:] == ("b", None)
    assert found["e1"][1:] == (None, "y")


def test_a_file_without_any_heads_column_is_refused(refuse):
    message, _ = refuse({"ads.csv": "text,mood\na,good\n"})
    assert message == "ads.csv: no head's column ('category', 'education') found; header is ['text', 'mood']"


def test_a_head_whose_column_is_nowhere_is_refused(refuse):
    message, hint = refuse([{"text": "a", "category": "x"}])
    assert message == "column 'education' of head 'education' is in no file of training.data.files"
    assert hint == "set training.heads.education.column, or remove the head"


def test_a_text_that_holds_the_answer_is_refused(refuse):
    message, hint = refuse(rows(), text="{title} {category}")
    assert message == "training.data.text holds column 'category', the answer of head 'category'"
    assert hint == "leave it out of the text"


def test_findings_of_all_files_are_listed(refuse):
    files = {"a.csv": "text,category\na\n", "b.csv": "text,category\n,x\n", "c.csv": "text\n"}
    message, _ = refuse(files, files=["a.csv", "b.csv"], test_files=["c.csv", "d.csv"])
    assert [line.strip() for line in message.split("\n")] == [
        "a.csv, line 2: 1 field, but the header has 2",
        "b.csv, row 2: the text is empty",
        "c.csv: no rows",
        "d.csv: no such file",
    ]


def test_given_files_replace_the_split(load):
    data = rows()
    files = {"ads.csv": csv_text(data[:30]), "v.csv": csv_text(data[30:40]), "t.csv": csv_text(data[40:])}
    dataset = load(files, validation_files=["v.csv"], test_files=["t.csv"])
    assert [len(examples) for examples in dataset.splits().values()] == [30, 10, 20]
    assert set(dataset.test.texts) == {row["text"] for row in data[40:]}
    dataset = load(files, test_files=["t.csv"])
    assert [len(examples) for examples in dataset.splits().values()] == [25, 5, 20]


def test_by_stray_white_space_nobody_is_another_group(load):
    data = [row | {"company": ("Ward & Co", "Ward & Co ", " Ward  & Co")[place % 3]} for place, row in enumerate(rows(30))]
    data += [row | {"company": f"shop {place % 9}", "text": f"Shop text {place}"} for place, row in enumerate(rows(60))]
    dataset = load(data, split={"group_by": "{company[:6]}-{company}"})
    holders = [name for name, examples in dataset.splits().items() if "Ward &-Ward & Co" in (examples.groups or ())]
    assert len(holders) == 1
    assert {group for examples in dataset.splits().values() for group in examples.groups or () if "Ward" in group} == {"Ward &-Ward & Co"}


def test_groups_stay_together_by_a_prefix(load):
    data = [row | {"code": f"{number // 6:02d}{number % 6}"} for number, row in enumerate(rows())]
    dataset = load(data, split={"group_by": "{code[:2]}"})
    groups = [set(examples.groups or ()) for examples in dataset.splits().values()]
    assert all(len(group) == 2 for found in groups for group in found)
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert all(groups)


def test_rows_without_a_group_are_divided_one_by_one(load):
    data = [row | {"code": ""} for row in rows()]
    dataset = load(data, split={"group_by": "{code}"})
    assert [len(examples) for examples in dataset.splits().values()] == [42, 9, 9]


def test_equal_texts_are_in_one_split(load):
    data = rows(40)
    copies = [row | {"text": row["text"].replace(" ", "  "), "category": "care"} for row in data]
    dataset = load(data + copies)
    splits = [{" ".join(text.split()) for text in examples.texts} for examples in dataset.splits().values()]
    assert sum(map(len, splits)) == len(set.union(*splits))


@pytest.mark.parametrize("group_by", [None, "{title[:8]}"])
def test_max_rows_keeps_shares_classes_and_groups(load, group_by: str | None):
    data = rows(300)
    data[299]["category"] = "rare"
    dataset = load(data, max_rows=100, split={"group_by": group_by})
    chosen = [text for examples in dataset.splits().values() for text in examples.texts]
    assert 90 <= len(chosen) <= 100
    assert "Text of 299" in chosen
    again = load(data[::-1], max_rows=100, split={"group_by": group_by})
    assert {text for examples in again.splits().values() for text in examples.texts} == set(chosen)
    if group_by:
        groups = {text.replace("Text of ", "")[:2] for text in chosen}
        assert len(chosen) == sum(str(number)[:2] in groups for number in range(300))


def test_max_rows_below_every_group_is_refused(refuse):
    message, hint = refuse([row | {"code": row["education"][:1] or "x"} for row in rows(100)], max_rows=10, split={"group_by": "{code}"})
    assert message == "training.data.max_rows is 10, but the smallest group of rows that stay together has 20"
    assert hint == "raise max_rows, or give split.group_by finer groups"


def test_max_rows_leaves_given_files_alone(load):
    data = rows(100)
    dataset = load({"ads.csv": csv_text(data[:50]), "t.csv": csv_text(data[50:])}, max_rows=20, test_files=["t.csv"])
    assert len(dataset.test) == 50
    assert len(dataset.training) + len(dataset.validation) == 20


def test_duplicates_are_counted_or_dropped(load):
    data = rows()
    copies = [data[3], data[3], data[8]]
    kept = load(data + copies)
    assert sum(map(len, kept.splits().values())) == 63
    assert [str(note) for note in kept.notes] == [
        "3 copies of an earlier training row (same text, same labels) kept: ads.csv, rows 62, 63, 64"
    ]
    dropped = load(data + copies, duplicates="drop")
    assert sum(map(len, dropped.splits().values())) == 60
    assert dropped.notes[0].message.endswith("left out")
    assert dropped.digest == load(data).digest


def test_validation_files_that_share_texts_with_test_files_lose_them(load):
    data = rows()
    files = {"ads.csv": csv_text(data[:30]), "v.csv": csv_text(data[28:45]), "t.csv": csv_text(data[40:])}
    dataset = load(files, validation_files=["v.csv"], test_files=["t.csv"])
    assert [len(examples) for examples in dataset.splits().values()] == [28, 12, 20]
    assert [(note.kind, note.count) for note in dataset.notes] == [("leak", 2), ("leak", 5)]


def test_no_validation_at_all_is_refused(refuse):
    message, hint = refuse(rows(), split={"validation_fraction": 0})
    assert (
        message == "training.data.split.validation_fraction is 0 and training.data.validation_files is empty, so nothing can be chosen by"
    )
    assert hint == "give one of the two"


def test_a_missing_test_split_is_noted(load):
    dataset = load(rows(), split={"test_fraction": 0})
    assert len(dataset.test) == 0
    assert dataset.test.labels["category"].shape == (0,)
    assert [note.kind for note in dataset.notes] == ["empty_split"]


def test_too_few_rows_to_divide_are_refused(refuse):
    message, hint = refuse(rows(4), {"category": {}})
    assert message == "no examples are left for validation: 4 training rows in 4 groups of rows that stay together"
    assert hint == "give more rows, or files for each split"


def test_a_head_without_labels_in_a_split_is_noted(load):
    data = rows()
    files = {"ads.csv": csv_text(data[:40]), "t.csv": csv_text([row | {"education": ""} for row in data[40:]])}
    dataset = load(files, test_files=["t.csv"])
    assert [note.message for note in dataset.notes] == ["head 'education' has no labelled test example"]


def test_the_digest_depends_on_content_only(load, tmp_path: Path):
    data = rows()
    digest = load(data).digest
    assert load({"other.csv": csv_text(data, "\r\n")}).digest == digest
    assert load(data[::-1]).digest == digest
    lines = "\n".join(json.dumps({key: value or None for key, value in row.items()}) for row in data)
    assert load({"ads.jsonl": lines}).digest == digest
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(data), "ads.parquet")
    assert load_dataset(TrainingSettings.model_validate({"data": {"files": ["ads.parquet"]}, "heads": HEADS})).digest == digest


@pytest.mark.parametrize("change", ["text", "label", "class", "split"])
def test_the_digest_changes_with_content(load, change: str):
    data = rows()
    digest = load(data).digest
    if change == "text":
        data[5]["text"] += "!"
    if change == "label":
        data[5]["education"] = "school"
    if change == "class":
        data = [row | {"category": row["category"].replace("care", "caring")} for row in data]
    assert load(data, split={"seed": 8 if change == "split" else 7}).digest != digest


def test_the_digest_of_these_rows_is_the_same_on_every_machine(load):
    assert load(rows()).digest.startswith("e82a8f31b79771a0")


def test_missing_is_below_every_class(load):
    assert MISSING == -1
    labels = load(rows()).training.labels["education"]
    assert set(labels.tolist()) == {-1, 0, 1}


def test_render_gives_nothing_where_all_columns_are_blank():
    columns = {"a": ["x", "", " \u200b"], "b": ["1234", "5", ""]}
    assert render("{a}: {b[:2]}!", columns) == ["x: 12!", ": 5!", ""]


@pytest.mark.parametrize(
    ("text", "blank"),
    [("", True), (" \t\n\u00a0\u3000", True), ("\u200b\ufeff\u00ad", True), ("a", False), ("🙂", False)],
)
def test_is_blank(text: str, blank: bool):
    assert is_blank(text) is blank
