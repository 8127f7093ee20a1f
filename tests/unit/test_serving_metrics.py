import asyncio
import math
import ssl
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.messages import Answer, HeadAnswer
from serving.observing import metrics
from serving.observing.drift import LEAST
from serving.observing.metrics import Figures, Rate, gather, merge
from serving.observing.names import METRICS
from serving.observing.seen import Seen
from serving.scheduling.counted import Counters
from training.manifest import AnswerShares, HeadFacts

NURSE = Answer(heads={"job": HeadAnswer(class_="nurse", probability=0.95)}, tokens=3, truncated=True)

PAGE = """# HELP ray_node_cpu Not ours.
# TYPE ray_node_cpu gauge
ray_node_cpu{Component="raylet"} 3.0
# HELP ray_twohead_batches_total Batches computed.
# TYPE ray_twohead_batches_total counter
ray_twohead_batches_total{Component="core_worker",NodeAddress="10.0.0.1",Version="2.60.0",deployment="Replica",replica="a"} 4.0
# HELP ray_serve_latency_ms Latency.
# TYPE ray_serve_latency_ms histogram
ray_serve_latency_ms_bucket{WorkerId="ab",le="1.0"} 1.0
ray_serve_latency_ms_count{WorkerId="ab"} 1.0
"""
OTHER = PAGE.replace("10.0.0.1", "10.0.0.2").replace('replica="a"', 'replica="b"').replace("4.0", "6.0")


def test_figures_of_all_nodes_in_one_block_each() -> None:
    assert merge([PAGE, OTHER]).splitlines() == [
        "# HELP serve_latency_ms Latency.",
        "# TYPE serve_latency_ms histogram",
        'serve_latency_ms_bucket{le="1.0"} 1.0',
        "serve_latency_ms_count{} 1.0",
        'serve_latency_ms_bucket{le="1.0"} 1.0',
        "serve_latency_ms_count{} 1.0",
        "# HELP twohead_batches_total Batches computed.",
        "# TYPE twohead_batches_total counter",
        'twohead_batches_total{NodeAddress="10.0.0.1",deployment="Replica",replica="a"} 4.0',
        'twohead_batches_total{NodeAddress="10.0.0.2",deployment="Replica",replica="b"} 6.0',
    ]


def test_a_page_without_ours_is_empty() -> None:
    assert merge(["# HELP ray_node_cpu Not ours.\nray_node_cpu 1.0\n"]) == ""


async def test_exporters_are_asked_without_reading_any_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(PAGE)}\r\nconnection: close\r\n\r\n{PAGE}".encode())
        await writer.drain()
        writer.close()

    read: list[Any] = []
    make = ssl.create_default_context

    def noted(*args: Any, **options: Any) -> ssl.SSLContext:
        read.append(options)
        return make(*args, **options)

    monkeypatch.setattr(ssl, "create_default_context", noted)
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setattr(metrics, "_exporters", lambda: [f"http://127.0.0.1:{port}/metrics"])
        assert await gather() == merge([PAGE])
    assert read == []


Told = dict[str, dict[tuple[str, ...], float]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What Ray has been told: figure → values of its labels → value."""
    found: Told = {}

    class Metric:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...] | None = None) -> None:
            self.name, self.tag_keys = name, tag_keys or ()
            assert description

        def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
            assert value > 0
            self.set(self.values().get(self.key(tags), 0) + value, tags)

        def set(self, value: float, tags: dict[str, str] | None = None) -> None:
            self.values()[self.key(tags)] = value

        def values(self) -> dict[tuple[str, ...], float]:
            return found.setdefault(self.name, {})

        def key(self, tags: dict[str, str] | None) -> tuple[str, ...]:
            assert set(tags or ()) == set(self.tag_keys)
            return tuple((tags or {}).values())

    monkeypatch.setitem(sys.modules, "ray.serve.metrics", SimpleNamespace(Counter=Metric, Gauge=Metric))
    return found


def predictor(version: int, *heads: HeadFacts) -> Any:
    return SimpleNamespace(version=version, engine=SimpleNamespace(dtype="float32"), manifest=SimpleNamespace(heads=heads))


def scheduler(counters: Counters) -> Any:
    return SimpleNamespace(counters=counters, queued_tokens=5, queued_texts=2, queue_s=0.1)


def test_histograms_are_put_together_again(told: Told) -> None:
    counters = Counters()
    for seconds in (0.003, 0.004, 0.7):
        counters.queue_seconds.note(seconds)
    Figures().publish(scheduler(counters), {}, Seen(), predictor(1))
    page = ""
    for name in METRICS["queue_seconds"].series:
        page += f"# HELP ray_{name} Seconds.\n# TYPE ray_{name} gauge\n"
        for key, value in told[name].items():
            labels = f',le="{key[0]}"' if key else ""
            page += f'ray_{name}{{Component="core_worker",replica="a"{labels}}} {value}\n'
    (family,) = text_string_to_metric_families(merge([page, page.replace('"a"', '"b"')]))
    assert (family.name, family.type, family.documentation) == ("twohead_queue_seconds", "histogram", "Seconds.")
    own = {(one.name, one.labels.get("le")): one.value for one in family.samples if one.labels["replica"] == "b"}
    assert [own["twohead_queue_seconds_bucket", bound] for bound in ("0.002", "0.005", "0.5", "1", "+Inf")] == [0, 2, 2, 3, 3]
    assert own["twohead_queue_seconds_count", None] == 3
    assert own["twohead_queue_seconds_sum", None] == pytest.approx(0.707)


def test_everything_named_is_published_and_nothing_else(told: Told) -> None:
    counters, seen = Counters(1, 1, 1, 1, 1.0, 1, 1, 1, 1, 1, 1), Seen()
    shares = AnswerShares(count=9, classes=(0.5, 0.5), confidence=(0.1,) * 10)
    version = predictor(1, HeadFacts(name="job", classes=("nurse", "sales"), validation_answers=shares))
    seen.note(version, [NURSE] * LEAST)
    figures = Figures()
    figures.publish(scheduler(counters), {"job": 1}, seen, version)
    tried: Any = SimpleNamespace(version=2, trial="ab", answered=1, errors=1, left_out=1, compared={(1, "job"): 4}, agreed={(1, "job"): 3})
    figures.publish_candidate(tried)
    assert told["twohead_agreed"] == {("2", "ab", "1", "job"): 3}
    assert set(told) == {series.removesuffix("_total") for metric in METRICS.values() for series in metric.series}
    assert told["twohead_answers"] == {("job", "nurse"): LEAST}


def test_counts_are_told_as_what_was_added(told: Told) -> None:
    figures, counters, seen = Figures(), Counters(), Seen()
    for batches in (1, 1, 4):
        counters.batches = seen.truncated = batches
        seen.named["job", "nurse"] = 2 * batches
        figures.publish(scheduler(counters), {}, seen, predictor(1))
    assert (told["twohead_batches"], told["twohead_truncated"], told["twohead_answers"]) == ({(): 4}, {(): 4}, {("job", "nurse"): 8})


def test_drift_that_is_not_known_any_more_is_no_number(told: Told) -> None:
    figures, seen = Figures(), Seen()
    shares = AnswerShares(count=100, classes=(0.0, 1.0), confidence=(0.0,) * 9 + (1.0,))
    version = predictor(1, HeadFacts(name="job", classes=("nurse", "sales"), validation_answers=shares))
    figures.publish(scheduler(Counters()), {}, seen, version)
    assert "twohead_class_psi" not in told
    seen.note(version, [NURSE] * LEAST)
    figures.publish(scheduler(Counters()), {}, seen, version)
    assert told["twohead_class_psi"]["job",] > 0.25
    assert told["twohead_confidence_psi"]["job",] < 0.1
    figures.publish(scheduler(Counters()), {}, seen, predictor(2))
    assert all(math.isnan(told[f"twohead_{name}"]["job",]) for name in ("class_psi", "confidence_psi_by_chance"))


def test_a_rate_is_that_of_the_last_half_minute() -> None:
    rate = Rate()
    assert rate.of(100.0, 1_000.0) == 0.0
    assert rate.of(110.0, 1_001.0) == 10.0
    for second in range(2, 60):
        found = rate.of(110.0 + 4 * second, 1_000.0 + second)
    assert found == pytest.approx(4.0)
