"""The model card: a YAML head, the figures of the report, and nothing in names that acts as Markdown."""

import re
from collections.abc import Callable
from typing import Any

import yaml

from training.report.card import write_card
from training.report.page import write_report

MakeRecord = Callable[..., dict[str, Any]]


def parts(card: str) -> tuple[dict[str, Any], str]:
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_head_is_yaml_with_a_result_for_each_head(make_record: MakeRecord) -> None:
    record = make_record()
    head, _ = parts(write_card(record))
    assert head["pipeline_tag"] == "text-classification"
    assert head["base_model"] == "bert-base-uncased"
    results = head["model-index"][0]["results"]
    assert [one["task"]["name"] for one in results] == ["category", "education"]
    macro = next(one["value"] for one in results[0]["metrics"] if one["name"] == "macro-F1")
    assert macro == record["metrics"]["test"]["category"]["macro_f1"]
    assert {one["dataset"]["split"] for one in results} == {"test"}


def test_an_encoder_that_is_no_hub_name_is_no_base_model(make_record: MakeRecord) -> None:
    for name in ("package:tiny/model", "/models/tiny", "./tiny", ""):
        head, _ = parts(write_card(make_record(encoder={"name": name})))
        assert "base_model" not in head


def test_card_and_report_show_the_same_figures(make_record: MakeRecord) -> None:
    record = make_record()
    _, body = parts(write_card(record))
    page = re.sub(r"<[^>]*>", "", write_report(record))
    table = next(block for block in body.split("\n\n") if block.startswith("| head | macro-F1"))
    figures = re.findall(r"(\.\d{3}) \\\[(\.\d{3}), (\.\d{3})\\\]", table)
    assert len(figures) == 4
    for value, low, high in figures:
        assert f"{value} [{low}, {high}]" in page
    assert body.count("▲ better") == page.count("▲ better") - 1 > 0  # one more in the key


def test_names_from_the_data_do_not_act_as_markdown(make_record: MakeRecord) -> None:
    name = "a|b*c<img>\nd"
    _, body = parts(write_card(make_record(heads={"job": [name, "driver"]}, name="# ads")))
    assert "a\\|b\\*c&lt;img&gt; d" in body
    assert "<img>" not in body
    rows = [line for line in body.splitlines() if line.startswith("| a\\|b")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 6 for row in rows)
    assert rows


def test_a_bare_record_makes_a_card(make_record: MakeRecord) -> None:
    full = make_record()
    record = {key: full[key] for key in ("name", "best", "trials", "heads")} | {"metrics": {"validation": full["metrics"]["validation"]}}
    _, body = parts(write_card(record))
    assert "they flatter" in body
    assert "The record holds no comparisons." in body
    assert "None" not in body


def test_no_text_of_the_data_is_in_the_card(make_record: MakeRecord) -> None:
    record = make_record()
    record["errors"]["category"][0]["text"] = "Nurse wanted in a small clinic"
    assert "Nurse wanted" not in write_card(record)
