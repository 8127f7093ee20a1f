"""What holds for any table, template and list of classes: no row is lost, doubled or given another one's label."""

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from training.data.dataset import Dataset, load_dataset
from training.data.labels import MISSING
from training.data.rows import render, text_key
from training.errors import DataError
from training.settings import TrainingSettings
from training.template import is_blank, template_columns, template_parts

FORMATS = ("csv", "tsv", "jsonl", "parquet")
# Line feeds, quotes, commas, tabs, marks of other scripts; carriage returns become line feeds in some formats, NUL is refused.
CELLS = st.sampled_from(["", " ", "a,b", '"', "\t", "NA", "1.0"]) | st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12
)
LABELS = st.sampled_from(["care", "sales", " care", "Käse", "", "0", "None"]) | CELLS
# So many that whatever else is drawn, every head has classes and every split has rows.
PLAIN = [
    {"title": f"{letter} plain", "text": f"text {n}", "one": ("care", "sales")[n % 2], "two": ("low", "high")[n // 2 % 2]}
    for n, letter in enumerate("abcdefghijklmnopqrstuvwx")
]
ROWS = st.lists(st.fixed_dictionaries({"title": CELLS, "text": CELLS, "one": LABELS, "two": LABELS}), max_size=25).flatmap(
    lambda drawn: st.permutations([*drawn, *PLAIN])
)
FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, rows: list[dict[str, str]], suffix: str) -> Path:
    """Write a table in one of the formats, with another library than reads it where there is one."""
    file = folder / f"table.{suffix}"
    if suffix == "parquet":
        pd.DataFrame(rows, dtype="str").to_parquet(file)
    elif suffix == "jsonl":
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]), delimiter="," if suffix == "csv" else "\t", lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
        file.write_text(out.getvalue(), encoding="utf-8", newline="")
    return file


def load(file: Path, **data: Any) -> Dataset:
    given = {"files": [str(file)], "text": "{title}: {text}", "empty_texts": "drop", "leaks": "warn", **data}
    return load_dataset(TrainingSettings.model_validate({"data": given, "heads": {"one": {}, "two": {}}}))


def usable(rows: list[dict[str, str]]) -> Counter[tuple[str, str, str]]:
    """Say by itself which rows make an example: text and both labels, "" being none."""
    found: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        text, labels = f"{row['title']}: {row['text']}", (row["one"].strip(), row["two"].strip())
        if any(labels) and not (is_blank(row["title"]) and is_blank(row["text"])):
            found[text, *labels] += 1
    return found


def examples(dataset: Dataset) -> Counter[tuple[str, str, str]]:
    found: Counter[tuple[str, str, str]] = Counter()
    for part in dataset.splits().values():
        for position, text in enumerate(part.texts):
            numbers = {head: int(part.labels[head][position]) for head in ("one", "two")}
            labels = ["" if number == MISSING else dataset.classes[head][number] for head, number in numbers.items()]
            found[text, labels[0], labels[1]] += 1
    return found


@FAST
@given(rows=ROWS, suffix=st.sampled_from(FORMATS))
def test_every_row_that_can_be_used_is_one_example_with_its_own_labels(tmp_path: Path, rows: list[dict[str, str]], suffix: str) -> None:
    assert examples(load(write(tmp_path, rows, suffix))) == usable(rows)


@FAST
@given(rows=ROWS)
def test_a_table_is_the_same_whatever_it_is_written_in(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    assert len({load(write(tmp_path, rows, suffix)).digest for suffix in FORMATS}) == 1


@FAST
@given(rows=ROWS, drop=st.booleans())
def test_no_text_stands_in_two_splits_and_no_group_is_divided(tmp_path: Path, rows: list[dict[str, str]], drop: bool) -> None:
    more = {"duplicates": "drop" if drop else "keep", "split": {"group_by": "{title[:1]}"}}
    dataset = load(write(tmp_path, rows, "csv"), **more)
    parts = list(dataset.splits().values())
    for position, part in enumerate(parts):
        for other in parts[position + 1 :]:
            assert {text_key(text) for text in part.texts}.isdisjoint(map(text_key, other.texts))
            assert ({*(part.groups or ())} - {""}).isdisjoint(other.groups or ())
    if drop:
        assert max(examples(dataset).values(), default=1) == 1
    assert set(examples(dataset)) <= set(usable(rows))


@settings(max_examples=300, deadline=None)
@given(literals=st.lists(CELLS, min_size=2, max_size=4), data=st.data())
def test_a_template_puts_each_cell_where_it_stands(literals: list[str], data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(["title", "a b", "Ort", "x.y"]), min_size=len(literals) - 1, max_size=len(literals) - 1))
    cells = {name: data.draw(CELLS, label=name) for name in dict.fromkeys(names)}
    written = [literal.replace("{", "{{").replace("}", "}}") for literal in literals]
    template = written[0] + "".join(f"{{{name}}}{literal}" for name, literal in zip(names, written[1:], strict=True))
    assert template_columns(template) == list(cells)
    expected = literals[0] + "".join(cells[name] + literal for name, literal in zip(names, literals[1:], strict=True))
    assert render(template, {name: [cell] for name, cell in cells.items()}) == ["" if all(map(is_blank, cells.values())) else expected]


@settings(max_examples=500, deadline=None)
@given(template=st.text(st.sampled_from("{}[]:!.a1 "), max_size=12) | CELLS)
def test_a_template_is_taken_or_refused_as_no_template(template: str) -> None:
    try:
        template_parts(template)
    except ValueError:
        with pytest.raises(ValidationError, match="text"):
            TrainingSettings.model_validate({"data": {"text": template}})


@FAST
@given(classes=st.lists(LABELS, max_size=6).map(lambda drawn: [*drawn, "care", "sales"]), rows=ROWS)
def test_given_classes_keep_their_order_or_are_refused(tmp_path: Path, classes: list[str], rows: list[dict[str, str]]) -> None:
    given = {"data": {"files": [str(write(tmp_path, rows, "csv"))], "empty_texts": "drop"}, "heads": {"one": {"classes": classes}}}
    if len(set(classes)) < max(len(classes), 2) or any(not one or one != one.strip() for one in classes):
        with pytest.raises(ValidationError, match="classes"):
            TrainingSettings.model_validate(given)
        return
    cells = {row["one"].strip() for row in rows if row["one"].strip() and not (is_blank(row["text"]))}
    if not cells <= set(classes):
        with pytest.raises(DataError, match="has the classes"):
            load_dataset(TrainingSettings.model_validate(given))
        return
    dataset = load_dataset(TrainingSettings.model_validate(given))
    assert dataset.classes["one"] == tuple(classes)
    named = {classes[int(number)] for part in dataset.splits().values() for number in part.labels["one"] if number != MISSING}
    assert named == cells
