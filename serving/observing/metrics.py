"""Figures for Prometheus: what a replica publishes, and what all replicas have published.

A request to `/metrics` reaches one replica, but the figures of all are wanted. Ray collects them on an exporter per node; this
asks every node's exporter and keeps what is ours and Serve's. Figures reach the exporter some seconds after they were made.

Ray's own histogram wants a call for every value, and its exporter knows only the middles of its buckets: for 10,000 times .2 s between
boundaries of .1 and 1 s it told a sum of 5,500 s. So histograms are counted here, their buckets and sums are published as gauges, and
`merge` names them what they are.
"""

import asyncio
import math
import re
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from serving.errors import NotReady
from serving.observing.names import ANSWERED, COUNTED, DRIFTS, GAUGES, HISTOGRAMS, TRIED, Metric

if TYPE_CHECKING:
    from serving.candidates.candidate import Candidate
    from serving.observing.histogram import Histogram
    from serving.observing.seen import Seen
    from serving.predictor import Predictor
    from serving.scheduling.scheduler import Scheduler

EXPORTER_TIMEOUT_S = 5.0
PUBLISH_EVERY_S = 1.0
_RATE_S = 30.0

_OURS = re.compile(r"^(# (?:HELP|TYPE) )?ray_((?:twohead|serve)_[a-zA-Z0-9_]+)(.*)$")
# Labels of Ray's recorder that say nothing about what was measured.
_NOISE = re.compile(r'(?:otel_scope_\w+|Component|SessionName|Version|WorkerId)="[^"]*",?')
_PARTS = {series: metric for metric in HISTOGRAMS.values() for series in metric.series}


class Rate:
    """How fast a count grows, over the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def of(self, count: float, now: float) -> float:
        """Take in a count, and return by how much it grew a second; 0 the first time."""
        self._seen.append((now, count))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _RATE_S:
            self._seen.popleft()
        began, before = self._seen[0]
        return (count - before) / (now - began) if now > began else 0.0


class Figures:
    """Publishes one replica's figures through Ray Serve, which adds the labels deployment and replica."""

    def __init__(self) -> None:
        from ray.serve.metrics import Counter, Gauge

        def make(kind: Any, metrics: Mapping[str, Metric]) -> dict[str, Any]:
            return {name: kind(one.name, description=one.text, tag_keys=one.labels) for name, one in metrics.items()}

        self._counters = make(Counter, COUNTED | ANSWERED | TRIED)
        self._gauges = make(Gauge, GAUGES | DRIFTS)
        self._histograms: dict[str, list[Any]] = {
            name: [
                Gauge(series, description=one.text, tag_keys=keys) for series, keys in zip(one.series, (("le",), None, None), strict=True)
            ]
            for name, one in HISTOGRAMS.items()
        }
        self._told: dict[tuple[str, ...], float] = {}
        self._rate = Rate()
        self._last_precision = ""
        self._drifting: set[str] = set()

    def publish(self, scheduler: "Scheduler", abstained: Mapping[str, int], seen: "Seen", predictor: "Predictor") -> None:
        """Add what was counted since the last call.

        Args:
            scheduler: Counts batches and texts.
            abstained: Head → abstentions since the start.
            seen: Counts answers.
            predictor: The one that answers.
        """
        for name in COUNTED:
            self._count(name, getattr(scheduler.counters, name))
        for name in HISTOGRAMS:
            self._show(name, getattr(scheduler.counters, name))
        for head, count in abstained.items():
            self._count("abstained", count, head=head)
        for (head, named), count in seen.named.items():
            self._count("answers", count, head=head, **{"class": named})
        self._count("truncated", seen.truncated)
        self._gauges["version"].set(predictor.version)
        if self._last_precision and self._last_precision != predictor.engine.dtype:
            self._gauges["precision"].set(0, tags={"precision": self._last_precision})
        self._last_precision = predictor.engine.dtype
        self._gauges["precision"].set(1, tags={"precision": self._last_precision})
        self._gauges["queued_tokens"].set(scheduler.queued_tokens)
        self._gauges["queued_texts"].set(scheduler.queued_texts)
        self._gauges["queued_seconds"].set(scheduler.queue_s)
        self._gauges["requests_per_second"].set(self._rate.of(scheduler.counters.queue_seconds.count, time.monotonic()))
        self._tell_drift(seen, predictor.version)

    def publish_candidate(self, candidate: "Candidate | None") -> None:
        """Add what a version on trial did since the last call, where there is one."""
        if candidate is None:
            return
        told = {"candidate": str(candidate.version), "trial": candidate.trial}
        self._count("candidate_answers", candidate.answered, **told)
        self._count("candidate_errors", candidate.errors, **told)
        self._count("candidate_left_out", candidate.left_out, **told)
        for (beside, head), count in candidate.compared.items():
            self._count("compared", count, **told, beside=str(beside), head=head)
            self._count("agreed", candidate.agreed[beside, head], **told, beside=str(beside), head=head)

    def _count(self, name: str, total: float, **labels: str) -> None:
        key = (name, *labels.values())
        if (added := total - self._told.get(key, 0)) > 0:
            self._counters[name].inc(added, tags=labels or None)
            self._told[key] = total

    def _show(self, name: str, histogram: "Histogram") -> None:
        bucket, total, count = self._histograms[name]
        for bound, below in histogram.cumulative():
            bucket.set(below, tags={"le": bound})
        total.set(histogram.total)
        count.set(histogram.count)

    def _tell_drift(self, seen: "Seen", version: int) -> None:
        found = seen.drift(version)
        for head in self._drifting - set(found):
            # Ray keeps a gauge's last value for ever, but drops one that is no number.
            for gauge in DRIFTS:
                self._gauges[gauge].set(math.nan, tags={"head": head})
        for head, (classes, confidence) in found.items():
            values = (classes.index, classes.by_chance, confidence.index, confidence.by_chance)
            for gauge, value in zip(DRIFTS, values, strict=True):
                self._gauges[gauge].set(value, tags={"head": head})
        self._drifting = set(found)


async def gather() -> str:
    """Return the figures of all replicas and of Serve, as Prometheus reads them.

    Raises:
        NotReady: No exporter answers.
    """
    import httpx

    # Exporters speak plain HTTP. A client that could verify TLS would read all certificates first, 14 ms in which the loop answers nobody.
    async with httpx.AsyncClient(timeout=EXPORTER_TIMEOUT_S, trust_env=False, verify=False) as client:  # noqa: S501  # as said above
        addresses = await asyncio.to_thread(_exporters)
        answers = await asyncio.gather(*(client.get(address) for address in addresses), return_exceptions=True)
    pages = [answer.text for answer in answers if isinstance(answer, httpx.Response) and answer.is_success]
    if not pages:
        raise NotReady(f"none of the {len(addresses)} exporters answers")
    return merge(pages)


def merge(pages: Iterable[str]) -> str:
    """Keep our figures and Serve's from several exporters' pages, each metric in one block.

    Ray's prefix and the labels of its recorder are left out.
    """
    heads: dict[str, list[str]] = {}
    lines: dict[str, list[str]] = {}
    metric = ""
    for line in (line for page in pages for line in page.splitlines()):
        found = _OURS.match(line)
        if found is None:
            continue
        comment, name, rest = found.groups()
        if comment:
            metric = _PARTS[name].name if name in _PARTS else name
            if len(head := heads.setdefault(metric, [])) < 2:
                head.append(f"{comment}{metric}{' histogram' if name in _PARTS and 'TYPE' in comment else rest}")
        else:
            lines.setdefault(metric, []).append(name + _NOISE.sub("", rest).replace(",}", "}"))
    return "".join("\n".join([*heads[name], *values]) + "\n" for name, values in sorted(lines.items()))


def _exporters() -> list[str]:
    import ray

    return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in ray.nodes() if node["Alive"]]
