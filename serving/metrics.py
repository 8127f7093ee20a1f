"""Figures for Prometheus: what a replica publishes, and what all replicas have published.

A request to `/metrics` reaches one replica, but the figures of all are wanted. Ray collects them on an exporter per node; this
asks every node's exporter and keeps what is ours and Serve's. Figures reach the exporter some seconds after they were made.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from serving.counted import Counters
from serving.errors import NotReady

if TYPE_CHECKING:
    from serving.predictor import Predictor
    from serving.scheduler import Scheduler

EXPORTER_TIMEOUT_S = 5.0
PUBLISH_EVERY_S = 1.0

_COUNTERS = {
    "batches": "Batches computed.",
    "texts": "Texts computed.",
    "tokens": "Tokens of the texts computed.",
    "padded_tokens": "Tokens computed, padding included.",
    "compute_s": "Seconds the engine was busy.",
    "refused": "Requests refused because the queue was full.",
    "expired": "Requests whose deadline passed.",
    "cancelled": "Requests whose caller went away.",
    "failed": "Texts the engine failed on.",
    "remembered": "Texts answered from what was answered before.",
    "shared": "Texts answered with an equal one that was being computed.",
}
_OURS = re.compile(r"^(# (?:HELP|TYPE) )?ray_((?:twohead|serve)_[a-zA-Z0-9_]+)(.*)$")
# Labels of Ray's recorder that say nothing about what was measured.
_NOISE = re.compile(r'(?:otel_scope_\w+|Component|SessionName|Version|WorkerId)="[^"]*",?')


class Figures:
    """Publishes one replica's figures through Ray Serve, which adds the labels deployment and replica."""

    def __init__(self) -> None:
        from ray.serve.metrics import Counter, Gauge

        self._last = Counters()
        self._counters: dict[str, Any] = {name: Counter(f"twohead_{name}", description=text) for name, text in _COUNTERS.items()}
        self._last_abstained: dict[str, int] = {}
        self._abstained: Any = Counter("twohead_abstained", description="Answers in which a head named no class.", tag_keys=("head",))
        self._version: Any = Gauge("twohead_version", description="The version that answers.")
        self._precision: Any = Gauge("twohead_precision", description="1 for the precision that answers.", tag_keys=("precision",))
        self._last_precision = ""
        self._queued_tokens: Any = Gauge("twohead_queued_tokens", description="Tokens that wait for a batch.")
        self._queued_texts: Any = Gauge("twohead_queued_texts", description="Texts that wait for a batch.")

    def publish(self, scheduler: "Scheduler", abstained: Mapping[str, int], predictor: "Predictor") -> None:
        """Add what was counted since the last call.

        Args:
            scheduler: Counts batches and texts.
            abstained: Head → abstentions since the start.
            predictor: The one that answers.
        """
        for name, counter in self._counters.items():
            added = getattr(scheduler.counters, name) - getattr(self._last, name)
            if added > 0:
                counter.inc(added)
                setattr(self._last, name, getattr(self._last, name) + added)
        for head, count in abstained.items():
            if added := count - self._last_abstained.get(head, 0):
                self._abstained.inc(added, tags={"head": head})
                self._last_abstained[head] = count
        self._version.set(predictor.version)
        if self._last_precision and self._last_precision != predictor.engine.dtype:
            self._precision.set(0, tags={"precision": self._last_precision})
        self._last_precision = predictor.engine.dtype
        self._precision.set(1, tags={"precision": self._last_precision})
        self._queued_tokens.set(scheduler.queued_tokens)
        self._queued_texts.set(scheduler.queued_texts)


async def gather() -> str:
    """Return the figures of all replicas and of Serve, as Prometheus reads them.

    Raises:
        NotReady: No exporter answers.
    """
    import httpx

    async with httpx.AsyncClient(timeout=EXPORTER_TIMEOUT_S, trust_env=False) as client:
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
            metric = name
            if len(head := heads.setdefault(name, [])) < 2:
                head.append(f"{comment}{name}{rest}")
        else:
            lines.setdefault(metric, []).append(name + _NOISE.sub("", rest).replace(",}", "}"))
    return "".join("\n".join([*heads[name], *values]) + "\n" for name, values in sorted(lines.items()))


def _exporters() -> list[str]:
    import ray

    return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in ray.nodes() if node["Alive"]]
