"""The model card of a version: Markdown with a YAML head, as model hubs read it, with the figures of the report.

It knows the search's record and never texts. The head follows Hugging Face's model card metadata
(https://huggingface.co/docs/hub/model-cards), results the `model-index` of Papers with Code.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import yaml

from training.report.charts.numerals import count, duration, fraction, plural, setting, threshold
from training.report.summary import METRIC_NAMES, Summary, difference, verdict, wanted

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HUB_METRICS = {"macro_f1": "f1", "weighted_f1": "f1", "accuracy": "accuracy"}
USE = "## Use"
_WITH_TRANSFORMERS = """
import json

import torch
from transformers import AutoModel, AutoTokenizer

folder = "."
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
with open(f"{folder}/manifest.json", encoding="utf-8") as file:
    heads = json.load(file)["heads"]

batch = tokenizer(["a text", "another text"], padding=True, truncation=True, return_tensors="pt")
with torch.inference_mode():
    logits = model(batch["input_ids"], batch["attention_mask"]).logits
for head in heads:
    best = torch.softmax(logits[head["name"]] / head["temperature"], dim=1).max(dim=1)
    print(head["name"], [head["classes"][place] for place in best.indices], best.values.tolist())
"""
_WITH_ONNX = """
import json

import numpy as np
from onnxruntime import InferenceSession
from transformers import AutoTokenizer

folder = "."
tokenizer = AutoTokenizer.from_pretrained(folder)
session = InferenceSession(f"{folder}/model.onnx")
with open(f"{folder}/manifest.json", encoding="utf-8") as file:
    heads = json.load(file)["heads"]

batch = tokenizer(["a text", "another text"], padding=True, truncation=True, return_tensors="np")
inputs = {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
for head, logits in zip(heads, session.run([head["name"] for head in heads], inputs)):
    powers = np.exp((logits - logits.max(axis=1, keepdims=True)) / head["temperature"])
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    print(head["name"], [head["classes"][place] for place in probabilities.argmax(axis=1)], probabilities.max(axis=1).tolist())
"""
_SPECIAL = re.compile(r"([\\`*_\[\]|#~])")


def write_card(record: Mapping[str, Any]) -> str:
    """Write a search's record as a model card."""
    summary = Summary.of(record)
    head = yaml.safe_dump(_front_matter(summary), sort_keys=False, allow_unicode=True)
    sections = [
        f"# {_plain(summary.record['name'])}",
        *_opening(summary),
        *_results(summary),
        *_comparisons(summary),
        *_classes(summary),
        *_calibration(summary),
        *_data(summary),
        *_training(summary),
        how_to_use(),
    ]
    return f"---\n{head}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(summary: Summary) -> dict[str, Any]:
    record = summary.record
    encoder = str(record["encoder"].get("name", ""))
    base = {"base_model": encoder} if _HUB_NAME.fullmatch(encoder) else {}
    return {
        "library_name": "twohead",
        "pipeline_tag": "text-classification",
        "tags": ["text-classification", "multi-head", "twohead"],
        **base,
        "metrics": ["f1", "accuracy"],
        "model-index": [{"name": str(record["name"]), "results": [_hub_result(summary, head) for head in record["heads"]]}],
    }


def _hub_result(summary: Summary, head: str) -> dict[str, Any]:
    measured = summary.metrics.get(head, {})
    metrics = [
        {"type": kind, "name": METRIC_NAMES[metric], "value": round(float(measured[metric]), 4)}
        for metric, kind in _HUB_METRICS.items()
        if measured.get(metric) is not None
    ]
    return {
        "task": {"type": "text-classification", "name": head},
        "dataset": {"type": "table", "name": str(summary.record["name"]), "split": summary.split},
        "metrics": metrics,
    }


def _opening(summary: Summary) -> list[str]:
    record = summary.record
    rows = [
        [name, "ordered" if head.get("ordered") else "", head.get("loss", ""), len(head["classes"]), _listed(head["classes"])]
        for name, head in record["heads"].items()
    ]
    version = f"Version {record['version']}. " if record["version"] is not None else ""
    return [
        _plain(record["headline"]),
        f"{version}{summary.about_the_split()} Brackets hold 95 % intervals.",
        "One encoder reads a text once; each head answers one question about it with a class and the probabilities of all of its classes.",
        "## Heads",
        _table(["head", "", "loss", "classes", ""], rows, "lllrl"),
    ]


def _listed(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:6])
    return shown if len(classes) <= 6 else f"{shown}, …"


def _results(summary: Summary) -> list[str]:
    metrics = summary.shown_metrics
    rows: list[list[object]] = [[row.name, *(str(row.figures[metric]) for metric in metrics)] for row in summary.head_rows()]
    return [
        f"## Results on the {summary.split} texts",
        _table(["head", *(METRIC_NAMES[metric] for metric in metrics)], rows, "l" + "r" * len(metrics)),
        f"All heads right: {summary.joint}. Selection score: {summary.score}.",
    ]


def _comparisons(summary: Summary) -> list[str]:
    rows: list[list[object]] = [
        [one["against"], one["head"] or "all heads (score)", METRIC_NAMES.get(one["metric"], one["metric"]), fraction(one["ours"]),
         fraction(one["theirs"]), difference(one), verdict(one), "/".join(map(str, one.get("runs") or ()))]
        for one in summary.record["comparisons"]
    ]  # fmt: skip
    if not rows:
        return ["## Is it real?", "The record holds no comparisons."]
    return [
        "## Is it real?",
        "Each side is the mean over its trainings with other seeds (their numbers stand last) or, where it has none, the search's own "
        "training. The published checkpoint, whose figures stand above, is one training: the winner's with the best validation score, or "
        "the one on all texts where that was wanted.",
        _table(["against", "head", "metric", "ours", "theirs", "difference", "verdict", "trainings"], rows, "lllrrrlr"),
    ]


def _classes(summary: Summary) -> list[str]:
    parts = ["## Class by class"] if summary.confusion else []
    for head in summary.record["heads"]:
        rows: list[list[object]] = [
            [row.name, fraction(row.precision), fraction(row.recall), fraction(row.f1), count(row.support)]
            for row in summary.class_rows(head)
        ]
        if rows:
            parts += [f"### {_plain(head)}", _table(["class", "precision", "recall", "F1", "true texts"], rows, "lrrrr")]
    return parts


def _calibration(summary: Summary) -> list[str]:
    calibration, abstention = summary.record["calibration"], summary.record["abstention"]
    rows: list[list[object]] = []
    for head in summary.record["heads"]:
        errors = (calibration.get(head) or {}).get(summary.split) or {}
        abstains = abstention.get(head) or {}
        reached = abstains.get(summary.split) or {}
        figures = (errors.get("ece_before"), errors.get("ece_after"))
        kept = (reached.get("coverage"), reached.get("precision"))
        temperature = setting((calibration.get(head) or {}).get("temperature"))
        chosen = (wanted(abstains.get("target")), threshold(abstains.get("threshold")))
        rows.append([head, temperature, *map(fraction, figures), *chosen, *map(fraction, kept)])
    if not calibration and not abstention:
        return []
    names = ["head", "temperature", "ECE before", "ECE after", "wanted", "threshold", "coverage", "precision"]
    return [
        "## Calibration and abstention",
        "ECE is the expected calibration error: the mean distance between confidence and the share of right answers. "
        "Below its threshold a head answers with no class (`abstained`); coverage is the share of texts it answers.",
        _table(names, rows, "lrrrlrrr"),
    ]


def _data(summary: Summary) -> list[str]:
    record = summary.record
    splits = ", ".join(f"{count(number)} {split}" for split, number in record["splits"].items())
    notes = "\n".join(f"- {_plain(note)}" for note in record["notes"]) or "- The data doctor found nothing to say."
    return [
        "## Data",
        f"Texts: {splits or 'not recorded'}. Digest of the data: `{record['data_digest'][:16] or 'not recorded'}`.",
        notes,
        "The figures hold for texts like these. Another language, another source or another time needs a measurement of its own; "
        "classes with few true texts above have wide uncertainty.",
    ]


def _training(summary: Summary) -> list[str]:
    record = summary.record
    encoder, tuning = record["encoder"], record["tuning"]
    best = next((trial for trial in record["trials"] if trial["position"] == record["best"]), None)
    point = [[path, setting(value)] for path, value in (best or {"point": {}})["point"].items()]
    libraries = ", ".join(f"{_plain(name)} {_plain(version)}" for name, version in record["libraries"].items())
    made = f"{_plain(encoder.get('model_type', '–'))}, pooled by {_plain(encoder.get('pooling', '–'))}"
    ways = ", ".join(f"{word} {_plain(tuning.get(word, '–'))}" for word in ("sampler", "scheduler", "seed"))
    facts = [
        f"- Encoder: {_plain(encoder.get('name', 'not recorded'))} ({made}), weights SHA-256 `{str(encoder.get('sha256', '–'))[:16]}`",
        f"- Search: {plural(len(record['trials']), 'trial')}, {ways}",
        f"- Cost: {duration(record['seconds'])} wall time, {duration(record['cpu_seconds'])} CPU time over all trials",
        f"- Code: `{record['code_revision'] or 'not recorded'}`; libraries: {libraries or 'not recorded'}",
    ]
    chosen = [f"Configuration {record['best']} won:", _table(["setting", "value"], point, "lr")] if point else []
    return ["## Training", "\n".join(facts), *chosen]


def how_to_use() -> str:
    """Say how an export of any version is loaded and called."""
    return "\n\n".join(
        [
            USE,
            "In a folder that `python -m training export` wrote: with `--hub-layout`, whose two Python files `trust_remote_code` runs,",
            f"```python\n{_WITH_TRANSFORMERS.strip()}\n```",
            "and with `--onnx`",
            f"```python\n{_WITH_ONNX.strip()}\n```",
            "`truncation=True` cuts a text at as many tokens as this version was trained to read. Texts are made of columns as "
            "`text_template` in `manifest.json` says; below a head's `threshold` there, if it has one, serving answers with no class.",
        ]
    )


def _table(names: Sequence[str], rows: Iterable[Sequence[object]], sides: str) -> str:
    lines = [[_plain(name) for name in names], ["---:" if side == "r" else "---" for side in sides]]
    lines += [[_plain(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(value: object) -> str:
    # Class names are data: neither HTML nor Markdown in them may act, and a line break would end a table.
    return _SPECIAL.sub(r"\\\1", escape(" ".join(str(value).split()), quote=False))
