import asyncio
from typing import Any

import httpx
import pytest

from serving import load as module
from serving.load import Load, LoadReport, send


def through(handle: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> LoadReport:
    original = httpx.AsyncClient

    def client(**keywords: Any) -> httpx.AsyncClient:
        keywords.pop("limits")
        return original(transport=httpx.MockTransport(handle), **keywords)

    monkeypatch.setattr(module.httpx, "AsyncClient", client)
    return asyncio.run(send(Load("http://test", **options)))


@pytest.mark.parametrize("pace", [{"rate_per_s": 5000.0}, {"concurrency": 3}])
def test_every_request_is_accounted_for(pace: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    def handle(request: httpx.Request) -> httpx.Response:
        nonlocal count
        count += 1
        if count % 10 == 1:
            return httpx.Response(503)
        if count % 10 == 2:
            return httpx.Response(500)
        if count % 10 == 3:
            raise httpx.ReadError("")
        return httpx.Response(200, json={"version": 7}, headers={"server-timing": 'queue;dur=1.0, batch;desc="4"'})

    report = through(handle, monkeypatch, count=40, **pace)
    assert (report.answered, report.refused, dict(report.failed)) == (28, 4, {"HTTP 500": 4, "ReadError": 4})
    assert dict(report.versions) == {7: 28}
    assert report.mean_batch_texts == pytest.approx(4.0)


def test_mean_batch_is_texts_by_batches() -> None:
    # One batch of four texts and two of one: three batches, six texts.
    assert LoadReport(batch_texts=[4, 4, 4, 4, 1, 1]).mean_batch_texts == pytest.approx(2.0)
    assert LoadReport().mean_batch_texts == 0.0


def test_percentiles() -> None:
    report = LoadReport(latencies_s=[index / 1000 for index in range(100, 0, -1)])
    assert report.latency_ms(0.5) == pytest.approx(51.0)
    assert report.latency_ms(0.99) == pytest.approx(100.0)
    assert LoadReport().latency_ms(0.5) == 0.0
