"""What the report and the model card both say, read from a search's record once.

It knows the record (`result.json`) and neither HTML nor Markdown, so that page and card cannot differ in a figure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.report.charts.numerals import MINUS, fraction, interval, plural

Record = Mapping[str, Any]

METRIC_NAMES = {
    "macro_f1": "macro-F1",
    "weighted_f1": "weighted F1",
    "accuracy": "accuracy",
    "quadratic_weighted_kappa": "weighted kappa",
    "log_loss": "log loss",
    "exp(-log_loss)": "exp(−log loss)",
    "score": "score",
    "joint_accuracy": "all heads right",
}
VERDICT_MARKS = {"better": "▲", "worse": "▼", "not distinguishable": "○"}
_FAILED = frozenset({"diverged", "died", "out of memory"})
_NOTHING_LISTED = ("confirmed", "front", "comparisons", "notes")
_NOTHING_NAMED = (
    *("heads", "tuning", "importance", "splits", "intervals", "confusion", "calibration", "abstention", "errors"),
    *("encoder", "settings", "libraries"),
)
_UNKNOWN = ("seconds", "cpu_seconds", "version", "published")
_UNSAID = ("created", "headline", "data_digest", "code_revision", "reviewed", "early")
_DEFAULTS: Record = {
    **dict.fromkeys(_NOTHING_LISTED, ()),
    **{key: {} for key in _NOTHING_NAMED},
    **dict.fromkeys(_UNKNOWN),
    **dict.fromkeys(_UNSAID, ""),
}


@dataclass(frozen=True)
class Figure:
    """One number of a table.

    Attributes:
        value: It, or none.
        ends: Of its 95 % interval, or none.
    """

    value: float | None
    ends: Sequence[float] | None = None

    def __str__(self) -> str:
        """Write it with its interval."""
        return interval(self.value, self.ends)


@dataclass(frozen=True)
class HeadRow:
    """A row of the main table.

    Attributes:
        name: Of the head, or of a figure over all heads.
        figures: By metric.
        comparisons: By what they are against.
    """

    name: str
    figures: Mapping[str, Figure]
    comparisons: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ClassRow:
    """How well one class is answered; fractions, or none where there is nothing to divide by."""

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    answered: int


@dataclass(frozen=True)
class Summary:
    """A record with every part in its place.

    Attributes:
        record: With an empty value for whatever it lacks.
        split: The one whose figures are reported.
    """

    record: Record
    split: str

    @classmethod
    def of(cls, record: Record) -> "Summary":
        """Fill what a record lacks; an early or small search has no comparisons, intervals, thresholds."""
        given = {key: value for key, value in record.items() if value is not None}
        return cls({**_DEFAULTS, **given}, "test" if record["metrics"].get("test") else "validation")

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Figures of the reported split: head → figures, with `joint_accuracy` and `score`."""
        return self.record["metrics"].get(self.split) or {}

    @property
    def confusion(self) -> Mapping[str, Sequence[Sequence[int]]]:
        """Head → counts, (true, answered), on the reported split."""
        return self.record["confusion"].get(self.split) or {}

    @property
    def count(self) -> int | None:
        """Texts in the reported split."""
        found: int | None = self.record["splits"].get(self.split)
        return found

    @property
    def shown_metrics(self) -> list[str]:
        """Metrics worth a column: macro-F1, accuracy, then what some head is chosen by."""
        own = [head.get("metric", "macro_f1") for head in self.record["heads"].values()]
        ordered = ["quadratic_weighted_kappa"] if any(self._has_kappa(head) for head in self.record["heads"]) else []
        return list(dict.fromkeys(["macro_f1", "accuracy", *own, *ordered]))

    def _has_kappa(self, head: str) -> bool:
        return self.metrics.get(head, {}).get("quadratic_weighted_kappa") is not None

    @property
    def against(self) -> list[str]:
        """What the model is compared with, in the record's order."""
        return list(dict.fromkeys(one["against"] for one in self.record["comparisons"]))

    def head_rows(self) -> list[HeadRow]:
        """Return the heads in order, with their intervals and comparisons."""
        return [self._head_row(head) for head in self.record["heads"]]

    def _head_row(self, head: str) -> HeadRow:
        measured, ends = self.metrics.get(head, {}), self.record["intervals"].get(head) or {}
        figures = {metric: Figure(measured.get(metric), ends.get(metric)) for metric in self.shown_metrics}
        return HeadRow(head, figures, self._comparisons(head))

    def _comparisons(self, head: str | None) -> dict[str, Mapping[str, Any]]:
        return {one["against"]: one for one in self.record["comparisons"] if one["head"] == head}

    @property
    def joint(self) -> Figure:
        """The share of texts all of whose heads are right."""
        return Figure(self.metrics.get("joint_accuracy"), self.record["intervals"].get("joint_accuracy"))

    @property
    def score(self) -> Figure:
        """The number that chose the model, on the reported split."""
        return Figure(self.metrics.get("score"), self.record["intervals"].get("score"))

    @property
    def score_comparisons(self) -> dict[str, Mapping[str, Any]]:
        """Comparisons of the selection score, by what they are against."""
        return self._comparisons(None)

    def class_rows(self, head: str) -> list[ClassRow]:
        """Return precision, recall and F1 class by class, from the confusion counts; empty where there are none."""
        counts = self.confusion.get(head)
        if not counts:
            return []
        names = self.record["heads"][head]["classes"]
        return [_class_row(name, number, counts) for number, name in enumerate(names)]

    def is_failed(self, trial: Mapping[str, Any]) -> bool:
        """Whether a trial ended by a fault."""
        return trial["state"] in _FAILED

    @property
    def searched(self) -> list[str]:
        """Paths of the searched dimensions: those of the fit, then head by head."""
        paths = dict.fromkeys(path for trial in self.record["trials"] for path in trial["point"])
        return sorted(paths, key=lambda path: "/" in path)

    def range_of(self, path: str) -> tuple[float, float, bool] | None:
        """Return the interval a dimension was searched over and whether by magnitudes; none where the settings do not say."""
        space = self.record["settings"].get("search_space") or {}
        parts = path.split("/")
        own = (space.get("heads") or {}).get(parts[1], {}) if len(parts) == 3 else {}
        found = own.get(parts[-1], space.get(parts[-1]))
        if not isinstance(found, Mapping) or not {"low", "high"} <= set(found):
            return None
        return float(found["low"]), float(found["high"]), bool(found.get("log", False))

    @property
    def ranked(self) -> list[Mapping[str, Any]]:
        """All trials, the highest score first, those without one last."""
        return sorted(self.record["trials"], key=lambda trial: (trial["score"] is None, -(trial["score"] or 0.0), trial["position"]))

    @property
    def named(self) -> dict[int, str]:
        """How to call each trial: by its number, and by its origin where the sampler did not propose it."""
        return {trial["position"]: _name_of(trial) for trial in self.record["trials"]}

    def about_the_split(self) -> str:
        """Say what the reported figures are measured on, and what that means for them."""
        texts = plural(self.count, f"{self.split} text") if self.count is not None else f"the {self.split} texts"
        if self.split == "test":
            return f"Figures are measured on {texts} that no choice has seen."
        why = "The search was stopped before its end, so its test texts are unseen" if self.record["early"] else "There is no test split"
        return f"{why}. Figures are measured on {texts}, which also chose the trial, so they flatter."


def _class_row(name: str, number: int, counts: Sequence[Sequence[int]]) -> ClassRow:
    right, support, answered = counts[number][number], sum(counts[number]), sum(row[number] for row in counts)
    return ClassRow(
        name=name,
        precision=right / answered if answered else None,
        recall=right / support if support else None,
        f1=2 * right / (support + answered) if support + answered else None,
        support=support,
        answered=answered,
    )


def _name_of(trial: Mapping[str, Any]) -> str:
    origin = trial.get("origin", "sampler")
    return f"trial {trial['position']}" if origin == "sampler" else f"trial {trial['position']} ({origin})"


def difference(comparison: Mapping[str, Any]) -> str:
    """Write a comparison's difference with its sign and interval."""
    low, high = comparison.get("low"), comparison.get("high")
    return interval(comparison["difference"], None if low is None or high is None else (low, high), is_signed=True)


def verdict(comparison: Mapping[str, Any]) -> str:
    """Write a verdict with its mark, which needs no colour."""
    return f"{VERDICT_MARKS.get(comparison['verdict'], '○')} {comparison['verdict']}"


def short_difference(comparison: Mapping[str, Any]) -> str:
    """Write a comparison as mark and signed difference: `▲ +.031`."""
    mark = VERDICT_MARKS.get(comparison["verdict"], "○")
    return f"{mark} {fraction(comparison['difference'], is_signed=True).replace('-', MINUS)}"


def wanted(target: Mapping[str, float] | None) -> str:
    """Write what a head's threshold was chosen for: `precision ≥ .900`; a dash for nothing."""
    return ", ".join(f"{name} ≥ {fraction(value)}" for name, value in target.items()) if target else "–"
