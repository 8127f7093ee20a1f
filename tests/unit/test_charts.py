"""The report's drawings: scales, round ticks, and texts that neither touch each other nor leave the drawing."""

import math
import re
from collections.abc import Callable
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import pytest

from training.report.charts.axes import fitting_ticks
from training.report.charts.confusion import draw_confusion
from training.report.charts.curves import Curve, draw_curves
from training.report.charts.forest import Row, draw_forest
from training.report.charts.history import draw_history
from training.report.charts.numerals import duration, fraction, interval, setting
from training.report.charts.parallel import Range, draw_parallel
from training.report.charts.reliability import draw_reliability
from training.report.charts.risk_coverage import draw_risk_coverage
from training.report.charts.scales import Bands, Scale, fitted, for_values, round_ticks, tick_texts
from training.report.charts.svg import element, shortened, text_width, words
from training.report.page import write_report

MakeRecord = Callable[..., dict[str, Any]]
LONG = "a_head_with_a_very_long_name_that_never_seems_to_end"
CLASSES = ["Forschungs-, Entwicklungs- und Produktionssteuerungsberufe", "<b>&\"'", *(f"class {number}" for number in range(21))]


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.7424, ".742"), (-0.0125, "−.013"), (0.0, ".000"), (-0.0001, ".000"), (1.0, "1.000"), (None, "–"), (-2.5, "−2.500")],
)
def test_a_score_has_three_decimals_and_no_zero_before_the_point(value: float | None, written: str) -> None:
    assert fraction(value) == written


def test_intervals_settings_and_times_are_written_in_one_style() -> None:
    assert interval(0.742, [0.69, 0.788]) == ".742 [.690, .788]"
    assert interval(0.031, (-0.01, 0.072), is_signed=True) == "+.031 [−.010, +.072]"
    assert interval(None, (0, 1)) == "–"
    assert [setting(value) for value in (2e-5, 4.664e-4, 0.003, 2048, 2000000, -1.5)] == [
        "2e−5",
        "4.66e−4",
        "0.003",
        "2048",
        "2000000",
        "−1.5",
    ]
    assert [setting(value) for value in ("corn", None, True)] == ["corn", "–", "True"]
    assert [duration(value) for value in (3.14159, 31.2, 720, 12000, None)] == ["3.1 s", "31 s", "12 min", "3 h 20 min", "–"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.03, 0.31), (-0.07, 0.11), (1, 20), (1e-5, 3e-4), (1200, 98000)])
def test_linear_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = round_ticks(low, high, 5)
    assert 2 <= len(ticks) <= 11
    step = ticks[1] - ticks[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert round(mantissa, 6) in (1, 2, 5)
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


def test_values_over_more_than_a_factor_of_thirty_lie_on_a_logarithmic_axis() -> None:
    scale = for_values([1e-5, 1e-2], 0, 300)
    assert scale.is_log
    assert scale(1e-4) == pytest.approx(100)
    assert scale.texts(scale.ticks(4)) == ["1e−5", "1e−4", "1e−3", "1e−2"]
    assert not for_values([1e-3, 1e-2], 0, 300).is_log
    assert not for_values([0.0, 100.0], 0, 300).is_log
    assert not for_values([0.01, 0.9], 0, 300, may_be_log=False).is_log


def test_each_tick_of_a_logarithmic_axis_has_the_decimals_it_needs() -> None:
    assert Scale(0.001, 0.4, 0, 400, is_log=True).texts([0.001, 0.01, 0.1]) == [".001", ".01", ".1"]


def test_ticks_of_a_linear_axis_are_written_alike() -> None:
    assert tick_texts([0.0, 0.25, 0.5, 1.0]) == ["0", ".25", ".50", "1"]
    assert tick_texts([-0.1, 0.0, 0.1]) == ["−.1", "0", ".1"]
    assert tick_texts([1000.0, 2000.0]) == ["1,000", "2,000"]
    assert tick_texts([1e-5, 2e-5]) == ["1e−5", "2e−5"]


def test_a_scale_of_one_value_has_a_width_and_ticks() -> None:
    assert for_values([0.5], 0, 100)(0.5) == 50
    assert fitted([0.7], 0, 100)(0.7) == pytest.approx(50, abs=15)
    assert fitted([], 0, 100).ticks(3)
    assert fitting_ticks(Scale(1, 2, 0, 300), whole=True) == [1, 2]


def test_a_scale_ends_at_round_numbers_but_not_beyond_its_bounds() -> None:
    scale = fitted([0.13, 0.88], 0, 100)
    assert (scale.low, scale.high) == (0.0, 1.0)
    assert fitted([0.01, 0.99], 0, 100, floor=0.0, ceiling=1.0).high == 1.0


def test_categories_share_an_axis_evenly() -> None:
    bands = Bands(("corn", "softmax"), 0, 100)
    assert (bands("corn"), bands("softmax")) == (25, 75)


def test_everything_written_is_escaped_and_a_cut_text_keeps_its_whole_wording() -> None:
    assert element("text", "<b>&", class_='"') == '<text class="&#34;">&lt;b&gt;&amp;</text>'
    cut = words(0, 0, "a long & winding name", limit=60)
    assert "…" in cut
    assert "<title>a long &amp; winding name</title>" in cut
    assert text_width(shortened("x" * 100, 80)) <= 80
    assert shortened("heads/a_very_long_name/dropout", 120).endswith("…/dropout")
    assert text_width(shortened("heads/a_very_long_name/dropout", 120)) <= 120
    assert text_width("职位类别") > text_width("abcd")


def record_of(make_record: MakeRecord, kind: str) -> dict[str, Any]:
    if kind == "typical":
        return make_record()
    if kind == "large":
        heads = {"category": CLASSES, "education": [f"grade {number}" for number in range(23)], LONG: CLASSES, "d": CLASSES}
        return make_record(heads=heads, trials=64, epochs=20)
    record = make_record(heads={"job": ["<b>nurse</b>", "driver"]}, trials=4)
    for trial in record["trials"][1:]:
        trial.update(state="died", score=None, metrics={}, epochs=[], error="RuntimeError")
    return record | {"best": 0, "confirmed": [], "front": [], "comparisons": record["comparisons"][:1]}


@pytest.mark.parametrize("kind", ["typical", "large", "failed"])
def test_no_two_texts_of_a_drawing_touch_and_none_leaves_it(make_record: MakeRecord, kind: str) -> None:
    page = write_report(record_of(make_record, kind))
    drawings = [ElementTree.fromstring(found) for found in re.findall(r"<svg [^>]*viewBox.*?</svg>", page, re.DOTALL)]
    assert len(drawings) >= 8
    for svg in drawings:
        boxes = list(boxes_of(svg))
        width, height = (float(side) for side in svg.attrib["viewBox"].split()[2:])
        for text, left, top, right, bottom in boxes:
            assert left >= -1 and right <= width + 1, (svg.attrib["aria-label"], text)  # noqa: PT018
            assert top >= -1 and bottom <= height + 3, (svg.attrib["aria-label"], text)  # noqa: PT018
        for one, other in combinations(boxes, 2):
            assert not touch(one, other), (svg.attrib["aria-label"], one, other)


Box = tuple[str, float, float, float, float]


def boxes_of(node: ElementTree.Element, dx: float = 0.0, dy: float = 0.0) -> list[Box]:
    """Where each text is, by an estimate a tenth narrower than the drawing's own generous one."""
    if found := re.fullmatch(r"translate\((\S+) (\S+)\)", node.attrib.get("transform", "")):
        dx, dy = dx + float(found[1]), dy + float(found[2])
    boxes = [box for child in node for box in boxes_of(child, dx, dy)]
    if node.tag == "text":
        x, y, size = float(node.attrib["x"]) + dx, float(node.attrib["y"]) + dy, float(node.attrib["font-size"])
        wide = text_width(node.text or "", size) * 0.9
        left = x - wide * {"end": 1.0, "middle": 0.5}.get(node.attrib.get("text-anchor", "start"), 0.0)
        boxes.append((node.text or "", left, y - size * 0.75, left + wide, y + size * 0.2))
    return boxes


def touch(one: Box, other: Box) -> bool:
    return one[1] < other[3] and other[1] < one[3] and one[2] < other[4] and other[2] < one[4]


def test_texts_that_touch_are_noticed() -> None:
    svg = ElementTree.fromstring('<svg><text x="0" y="10" font-size="12">one</text><text x="8" y="12" font-size="12">two</text></svg>')
    assert touch(*boxes_of(svg))


def test_a_forest_tells_verdicts_by_shape() -> None:
    rows = [Row("default", head, gap, gap - 0.02, gap + 0.02, verdict) for head, gap, verdict in
            (("a", 0.05, "better"), ("b", -0.05, "worse"), ("c", 0.0, "not distinguishable"))]  # fmt: skip
    for width in (352, 960):
        drawn = draw_forest(rows, width)
        assert drawn.count("<path") == 2
        assert drawn.count("<circle") == 1
        assert "better: +.050 [+.030, +.070]" in drawn
        assert "a against default" in drawn


def test_a_confusion_matrix_shades_by_row_and_names_each_cell() -> None:
    drawn = draw_confusion("job", ["nurse", "driver"], [[9, 1], [0, 4]])
    assert "nurse answered as driver: 1 of 10 (.100)" in drawn
    assert 'fill-opacity="0.90"' in drawn
    assert "driver answered as nurse" not in drawn
    assert "13 of 14 answers on the diagonal" in drawn


def test_of_many_classes_a_matrix_has_those_that_are_most_often_confused() -> None:
    counts = [[5 * (row == column) for column in range(40)] for row in range(40)]
    counts[39][2] = counts[1][38] = 3
    drawn = draw_confusion("job", [f"class {number:02}" for number in range(40)], counts)
    assert "class 39 answered as class 02: 3 of 8 (.375)" in drawn
    assert "class 01 answered as class 38: 3 of 8 (.375)" in drawn
    assert drawn.count('class="cell right"') == 30
    assert "200 of 206 answers on the diagonal; drawn are the 30 of 40 classes that are most often confused" in drawn
    # Under the number that it has in the page's table.
    assert ">40</text>" in drawn


def test_a_class_that_never_occurs_has_an_empty_row() -> None:
    assert "0 of 0 answers" in draw_confusion("job", ["nurse", "driver"], [[0, 0], [0, 0]])


def test_reliability_leaves_empty_bins_out_and_does_without_any() -> None:
    empty = {"low": 0.8, "high": 0.9, "count": 0, "confidence": 0.0, "accuracy": 0.0}
    bins = [empty, {"low": 0.9, "high": 1.0, "count": 5, "confidence": 0.95, "accuracy": 1.0}]
    drawn = draw_reliability("job", {"temperature": 1.5, "test": {"ece_before": 0.1, "ece_after": 0.04}, "bins_after": bins}, "test")
    assert "ECE .100 → .040, temperature 1.5" in drawn
    assert drawn.count("<circle") == 1
    assert "ECE – → –" in draw_reliability("job", {}, "test")


def test_risk_and_coverage_mark_the_threshold_and_what_was_wanted() -> None:
    curve = [{"coverage": n / 10, "risk": n / 50, "threshold": 1 - n / 20} for n in range(1, 11)]
    reached = {"coverage": 0.6, "precision": 0.88, "answered": 60}
    drawn = draw_risk_coverage("job", {"target": {"precision": 0.9}, "threshold": 0.7, "test": reached, "curve": curve}, "test")
    assert "threshold .700: coverage .600, precision .880" in drawn
    assert 'class="wanted"' in drawn
    without = draw_risk_coverage("job", {"target": None, "threshold": None, "curve": curve}, "test")
    assert "every text is answered" in without
    assert 'class="wanted"' not in without
    assert "</svg>" in draw_risk_coverage("job", {}, "test")


def test_learning_curves_put_the_best_in_front_and_ring_its_kept_epoch() -> None:
    curves = [Curve(0, [(1, 0.3), (2, 0.5), (3, 0.4)]), Curve(1, [(1, 0.2)]), Curve(2, [(1, 0.1), (2, 0.2)], has_failed=True)]
    drawn = draw_curves("score", curves, best=0, kept=2)
    assert "trial 0: .500 after epoch 2 of 3" in drawn
    assert drawn.index("failed-line") < drawn.index("ours-line")
    assert "no epoch was measured" in draw_curves("score", [], best=0, kept=0)


def test_history_shows_trials_without_a_score_in_their_own_strip() -> None:
    trials = [
        {"position": 0, "score": 0.5, "state": "finished", "origin": "default"},
        {"position": 1, "score": None, "state": "out of memory", "origin": "sampler"},
        {"position": 2, "score": 0.6, "state": "stopped", "origin": "sampler"},
    ]
    drawn = draw_history(trials, 2, 352)
    assert "trial 1: out of memory" in drawn
    assert "2 trials with a score, 1 without; trial 2 has .600" in drawn
    assert "</svg>" in draw_history(trials[1:2], 0, 960)


def test_parallel_coordinates_have_an_axis_for_each_kind_of_dimension() -> None:
    points = [{"rate": 10.0**-n, "size": 128 * (n % 2), "loss": ("corn", "softmax")[n % 2], "drop": n / 10} for n in range(1, 5)]
    trials = [{"position": n, "score": n / 10, "point": point} for n, point in enumerate(points)]
    drawn = draw_parallel(trials, {"rate": None, "size": None, "loss": None, "drop": Range(0.0, 0.5)}, 3, 960)
    for tick in (">1e−4<", ">128<", ">corn<", ">.5<", "4 trials over 4 dimensions"):
        assert tick in drawn
    assert drawn.rindex("ours-line") > drawn.rindex("other-line")
