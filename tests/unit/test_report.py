"""The report of a search: what it shows, what it hides, and that it stands by itself whatever the record lacks."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from training.report.page import write_report
from training.report.summary import Summary

MakeRecord = Callable[..., dict[str, Any]]
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Nesting(HTMLParser):
    """Finds elements that are closed in the wrong order, and what refers to other files."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "data", "xlink:href", "srcset")]
        self.ids += [given["id"] or ""] if "id" in given else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def parsed(page: str) -> Nesting:
    nesting = Nesting()
    nesting.feed(page)
    return nesting


def only_validation(record: dict[str, Any]) -> dict[str, Any]:
    split = record["metrics"]["validation"]
    return record | {
        "metrics": {"validation": split},
        "splits": {"training": 50, "validation": 10},
        "confusion": {"validation": record["confusion"]["test"]},
    }


def bare(record: dict[str, Any]) -> dict[str, Any]:
    """The least a record may hold."""
    kept = {key: record[key] for key in ("name", "best", "trials", "metrics", "heads")}
    return kept | {"trials": [{**record["trials"][0], "epochs": []}], "best": 0}


def all_failed_but_one(record: dict[str, Any]) -> dict[str, Any]:
    lost = {"state": "died", "score": None, "metrics": {}, "epochs": [], "error": "RuntimeError: " + "x" * 90}
    trials = [record["trials"][0], *(trial | lost for trial in record["trials"][1:])]
    return record | {"trials": trials, "best": 0, "confirmed": [], "front": [], "importance": {}}


def without_thresholds(record: dict[str, Any]) -> dict[str, Any]:
    none = {"target": None, "threshold": None, "validation": None, "test": None, "curve": []}
    return record | {"abstention": dict.fromkeys(record["heads"], none), "calibration": {}, "errors": {}, "comparisons": []}


@pytest.mark.parametrize("change", [dict, only_validation, bare, all_failed_but_one, without_thresholds])
def test_any_record_makes_a_whole_page_that_needs_nothing_from_elsewhere(
    make_record: MakeRecord, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    page = write_report(change(make_record(trials=4)))
    nesting = parsed(page)
    assert not nesting.wrong
    assert not nesting.open
    assert len(nesting.ids) == len(set(nesting.ids))
    assert all(reference.startswith("#") and reference[1:] in nesting.ids for reference in nesting.references)
    assert "<script" not in page
    assert "http" not in page
    assert "url(" not in page
    assert "None" not in re.sub(r"<[^>]*>", "", page)
    assert not re.search(r"\bnan\b", page)


def test_the_page_says_how_good_each_head_is_and_against_what(make_record: MakeRecord) -> None:
    record = make_record()
    figures = record["metrics"]["test"]["category"]
    page = write_report(record)
    shown = (record["headline"], "900 test texts that no choice has seen", f"{figures['macro_f1']:.3f}"[1:], "[.660, .790]", "[.671, .733]")
    for expected in (*shown, "against TF-IDF + logistic regression", "1 h 10 min" if record["seconds"] > 5940 else "70 min", "20320f2"):
        assert expected in page


@pytest.mark.parametrize(("word", "mark"), [("better", "▲"), ("worse", "▼"), ("not distinguishable", "○")])
def test_a_verdict_is_read_without_colour(make_record: MakeRecord, word: str, mark: str) -> None:
    one = {"against": "default", "head": "category", "metric": "macro_f1", "ours": 0.7, "theirs": 0.65}
    interval = {"difference": 0.05, "low": 0.01, "high": 0.09, "runs": [3, 1], "verdict": word}
    page = write_report(make_record(comparisons=[one | interval]))
    assert f"{mark} {word}" in page
    assert f"{mark} +.050" in page
    assert "+.050 [+.010, +.090]" in page
    assert "3/1" in page


def test_without_a_test_split_it_says_that_the_figures_flatter(make_record: MakeRecord) -> None:
    page = write_report(only_validation(make_record()))
    assert "There is no test split" in page
    assert "they flatter" in page
    assert "10 validation texts" in page
    stopped = write_report(only_validation(make_record()) | {"early": "stopped before its end"})
    assert "The search was stopped before its end, so its test texts are unseen" in stopped


def test_texts_are_shown_only_where_the_record_holds_them(make_record: MakeRecord) -> None:
    record = make_record()
    assert ">text</th>" not in write_report(record)
    record["errors"]["category"][0]["text"] = "Nurse wanted <script>"
    page = write_report(record)
    assert "Nurse wanted &lt;script&gt;" in page
    assert ">text</th>" in page
    assert "ads.csv, row 118" in page


def test_names_from_the_data_are_escaped_everywhere(make_record: MakeRecord) -> None:
    name = "<b>&\"'"
    record = make_record(heads={"job": [name, "driver"]}, notes=["column '<i>' is empty"], name="<u>ads")
    record["trials"][3]["error"] = "<s>bad"
    page = write_report(record)
    assert "<b>" not in page
    assert "<u>" not in page
    assert "<s>" not in page
    assert "column '<i>'" not in page
    assert "&lt;b&gt;&amp;" in page


def test_every_drawing_says_what_it_shows(make_record: MakeRecord) -> None:
    page = write_report(make_record())
    drawings = re.findall(r"<svg ([^>]*viewBox[^>]*)>(.*?)</svg>", page, re.DOTALL)
    assert len(drawings) >= 15
    for attributes, inside in drawings:
        assert 'role="img"' in attributes
        assert re.search(r'aria-label="[^"]{10,}"', attributes)
        assert inside.startswith("<title>")
        assert "<desc>" in inside


def test_failed_trials_are_listed_with_what_they_died_of(make_record: MakeRecord) -> None:
    page = write_report(make_record())
    assert "out of memory: CUDA out of memory" in page
    assert "diverged" in page


def test_a_large_search_stays_small(make_record: MakeRecord) -> None:
    names = [f"class number {number}" for number in range(23)]
    page = write_report(make_record(heads=dict.fromkeys(("one", "two", "three", "four"), names), trials=64, epochs=20))
    assert len(page.encode()) < 3_000_000


def test_precision_and_recall_come_from_the_confusion_counts(make_record: MakeRecord) -> None:
    record = make_record(heads={"job": ["nurse", "driver", "pilot"]}, confusion={"test": {"job": [[8, 2, 0], [0, 0, 0], [4, 0, 6]]}})
    nurse, driver, pilot = Summary.of(record).class_rows("job")
    assert nurse.precision == pytest.approx(8 / 12)
    assert (nurse.recall, nurse.support, nurse.answered) == (0.8, 10, 12)
    assert nurse.f1 == pytest.approx(16 / 22)
    assert (driver.precision, driver.recall, driver.f1) == (0.0, None, 0.0)
    assert (pilot.precision, pilot.recall) == (1.0, 0.6)


def test_the_searched_interval_comes_from_the_settings_of_the_head_or_of_all(make_record: MakeRecord) -> None:
    space = {
        "dropout": {"low": 0.0, "high": 0.4},
        "head_learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
        "loss": {"choices": ["a"]},
    }
    summary = Summary.of(make_record(settings={"search_space": space | {"heads": {"education": {"dropout": {"low": 0.1, "high": 0.2}}}}}))
    assert summary.range_of("heads/category/dropout") == (0.0, 0.4, False)
    assert summary.range_of("heads/education/dropout") == (0.1, 0.2, False)
    assert summary.range_of("head_learning_rate") == (1e-3, 1e-2, True)
    assert summary.range_of("heads/category/loss") is None
    assert summary.range_of("batch_tokens") is None


def test_the_page_says_how_the_classes_of_each_head_weigh(make_record: MakeRecord) -> None:
    record = make_record()
    table = write_report(record).partition("Settings of the heads")[2].partition("</table>")[0]
    names, *rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("<tr>")[1:]]
    place = names.index("class weighting")
    assert [row[place] for row in rows] == [one["class_weighting"] for one in record["heads"].values()]


def test_a_metric_that_chooses_a_head_has_a_column(make_record: MakeRecord) -> None:
    record = make_record()
    record["heads"]["category"]["metric"] = "weighted_f1"
    record["metrics"]["test"]["education"]["quadratic_weighted_kappa"] = 0.812
    page = write_report(record)
    assert "weighted F1" in page
    assert "weighted kappa" in page
    assert ".812" in page
