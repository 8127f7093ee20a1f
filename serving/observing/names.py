"""The figures a server publishes: their names, kinds, labels and meanings, in one place for whoever publishes, queries or draws them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

PREFIX = "twohead_"


@dataclass(frozen=True)
class Metric:
    """One figure.

    Attributes:
        name: Without what Prometheus puts behind it.
        kind: Its type there.
        text: What it says.
        labels: Beside those that tell the replica.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names that can be queried."""
        behind = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
        return tuple(self.name + suffix for suffix in behind[self.kind])


def _all(kind: Literal["counter", "gauge", "histogram"], texts: dict[str, str], *labels: str) -> Iterator[tuple[str, Metric]]:
    return ((name, Metric(PREFIX + name, kind, text, labels)) for name, text in texts.items())


# Named like the fields of `serving.scheduling.counted.Counters` they are read from.
COUNTED = dict(
    _all(
        "counter",
        {
            "batches": "Batches computed.",
            "texts": "Texts computed.",
            "tokens": "Tokens of the texts computed.",
            "padded_tokens": "Tokens computed, padding included.",
            "compute_s": "Seconds the engine was busy.",
            "refused": "Requests refused because too much work came before them.",
            "expired": "Requests whose deadline passed.",
            "cancelled": "Requests whose caller went away.",
            "failed": "Texts the engine failed on.",
            "remembered": "Texts answered from what was answered before.",
            "shared": "Texts answered with an equal one that was being computed.",
        },
    )
)
HISTOGRAMS = dict(
    _all(
        "histogram",
        {
            "queue_seconds": "Seconds that an answered request waited for the engine.",
            "batch_seconds": "Seconds the engine took for a batch.",
            "batch_tokens": "Tokens of a batch, without padding.",
            "batch_texts": "Texts of a batch.",
        },
    )
)
ANSWERED = dict(
    [
        *_all("counter", {"truncated": "Texts that were longer than the version reads."}),
        *_all("counter", {"abstained": "Answers in which a head named no class."}, "head"),
        *_all("counter", {"answers": "Answers that name a class; `other` are those beyond the first 200 classes."}, "head", "class"),
    ]
)
GAUGES = dict(
    [
        *_all("gauge", {"version": "The version that answers."}),
        *_all("gauge", {"precision": "1 for the precision that answers."}, "precision"),
        *_all("gauge", {"requests_per_second": "Requests computed a second, in the last half minute."}),
        *_all("gauge", {"queued_seconds": "Seconds of work that wait for a batch, by what batches took lately."}),
        *_all("gauge", {"queued_tokens": "Tokens that wait for a batch.", "queued_texts": "Texts that wait for a batch."}),
    ]
)
DRIFTS = dict(
    _all(
        "gauge",
        {
            "class_psi": "How far the classes of the last answers are from those of the validation texts; see serving.observing.drift.",
            "class_psi_by_chance": "What class_psi exceeds in one of twenty windows though nothing changed.",
            "confidence_psi": "How far the confidence of the last answers is from that on the validation texts.",
            "confidence_psi_by_chance": "What confidence_psi exceeds in one of twenty windows though nothing changed.",
        },
        "head",
    )
)
TRIED = dict(
    [
        *_all(
            "counter",
            {
                "candidate_answers": "Texts that a canary answered.",
                "candidate_errors": "Requests a canary or a shadow failed on, and the version beside it did not.",
                "candidate_left_out": "Requests that were not compared, because others waited.",
            },
            "candidate",
            "trial",
        ),
        *_all(
            "counter",
            {
                "compared": "Texts that the candidate and the version beside it answered.",
                "agreed": "Texts of these for which both name the same class, or none.",
            },
            "candidate",
            "trial",
            "beside",
            "head",
        ),
    ]
)
METRICS = TRIED | COUNTED | HISTOGRAMS | ANSWERED | GAUGES | DRIFTS
