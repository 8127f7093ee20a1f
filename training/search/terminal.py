"""What `tune` prints when a search has ended: the record in a screenful.

It knows the record and nothing of how it was made.
"""

from collections.abc import Mapping
from typing import Any

from cluster.console import table


def describe_record(record: Mapping[str, Any]) -> str:
    """Render a search's record: headline, heads, comparisons, confirmed configurations."""
    split = "test" if "test" in record["metrics"] else "validation"
    parts = [record["headline"], _heads(record, split), _comparisons(record), _confirmed(record), _cost(record)]
    return "\n\n".join(part for part in parts if part)


def _heads(record: Mapping[str, Any], split: str) -> str:
    figures, intervals = record["metrics"][split], record["intervals"]
    rows = [
        [
            head,
            _with_interval(figures[head]["macro_f1"], intervals[head]["macro_f1"]),
            figures[head]["majority_macro_f1"],
            _with_interval(figures[head]["accuracy"], intervals[head]["accuracy"]),
            figures[head]["majority_accuracy"],
            record["calibration"][head][split]["ece_after"],
        ]
        for head in record["heads"]
        # A head without a label in this split has no figures.
        if figures[head]["count"]
    ]
    shown = table(["head", "macro-F1 [95 %]", "majority", "accuracy [95 %]", "majority", "calibration error"], rows, right=(1, 2, 3, 4, 5))
    joint = "" if figures["joint_accuracy"] is None else f"\nall heads right: {figures['joint_accuracy']:.3f}"
    return f"on the {split} split:\n{shown}{joint}"


def _comparisons(record: Mapping[str, Any]) -> str:
    rows = [
        [
            one["against"],
            one["head"] or "all",
            one["ours"],
            one["theirs"],
            f"{one['difference']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]",
            one["verdict"],
        ]
        for one in record["comparisons"]
    ]
    return table(["against", "head", "ours", "theirs", "difference [95 %]", "so it is"], rows, right=(2, 3, 4)) if rows else ""


def _confirmed(record: Mapping[str, Any]) -> str:
    rows = [
        [f"trial {one['position']}", one["mean"], ", ".join(f"{again['score']:.3f}" for again in one["scores"])]
        for one in record["confirmed"]
    ]
    shown = table(["configuration", "mean", "with other seeds"], rows, right=(1,)) if rows else ""
    return f"on the validation split, trained again:\n{shown}" if shown else ""


def _cost(record: Mapping[str, Any]) -> str:
    if not record.get("worker_bytes"):
        return ""
    return (
        f"took {record['seconds'] / 60:.1f} minutes, {record['cpu_seconds'] / 60:.1f} CPU minutes in trials and encoding, "
        f"at most {record['worker_bytes'] / 1e9:.1f} GB in one worker at the end of an epoch"
    )


def _with_interval(value: float, ends: tuple[float, float]) -> str:
    return f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"
