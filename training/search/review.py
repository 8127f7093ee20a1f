"""Judges a published version again: its figures are computed anew from its own checkpoint and data.

What only the search can know, its trials and comparisons, is taken from the record in the version. It does not know Ray.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from training.checkpoint import RECORD_FILE, code_revision, load_model, load_tokenizer
from training.data.dataset import Dataset, load_dataset
from training.errors import RegistryError
from training.fitting.predict import predict_logits
from training.judging.comparison import headline
from training.judging.judge import HeadCalibration, account, reported_split
from training.judging.metrics import Logits
from training.manifest import Manifest, read_manifest
from training.network.inputs import TokenInputs
from training.registry import Registry
from training.search.deciding.contest import REFIT_GROUP
from training.settings import TrainingSettings


def review(registry: Registry, version: int, *, with_texts: bool = False) -> dict[str, Any]:
    """Return a version's record with the figures of its model computed anew.

    Args:
        registry: Where it is.
        version: Its number.
        with_texts: Show the texts of the most confident errors, not only their rows.

    Raises:
        RegistryError: There is no such version, it has no record, or its data is not what it was made from.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = registry.fetch(version, Path(scratch) / "version")
        manifest = read_manifest(folder)
        if RECORD_FILE not in manifest.files:
            raise RegistryError(f"version {version} has no {RECORD_FILE}", "only versions made by `tune` can be reported")
        found = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        settings = _settings(found, version)
        dataset = load_dataset(settings)
        if dataset.digest != manifest.data_digest:
            raise RegistryError(
                f"version {version}: its data changed since it was made (digest {dataset.digest[:12]}, then {manifest.data_digest[:12]})",
                "put the old tables back",
            )
        if found.get("early"):
            # Its search may go on, and look at the test texts then.
            dataset = replace(dataset, test=dataset.test.take([]))
        logits = _answer(folder, manifest, dataset, settings)
    calibrations = {head.name: HeadCalibration(head.temperature, head.threshold) for head in manifest.heads}
    now = {"version": version, "code_revision": code_revision(), "reviewed": datetime.now(UTC).isoformat(timespec="seconds")}
    record: dict[str, Any] = found | renewed(found, dataset, account(settings, dataset, logits, calibrations, with_texts=with_texts)) | now
    return record | {"headline": headline(record, reported_split(dataset))}


def renewed(found: Mapping[str, Any], dataset: Dataset, figures: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is to be told anew: of a model that learned the validation texts, what it says of them flatters, and stays as it was.

    Args:
        found: The record so far.
        dataset: All examples.
        figures: Of `account`.
    """
    if not str(found["published"]["name"]).startswith(REFIT_GROUP):
        return figures
    if not len(dataset.test):
        return {}
    whole = {part: {**figures[part], "validation": found[part]["validation"]} for part in ("metrics", "confusion")}
    by_head = {
        part: {head: {**own, "validation": found[part][head]["validation"]} for head, own in figures[part].items()}
        for part in ("calibration", "abstention")
    }
    return {**figures, **whole, **by_head}


def _settings(record: dict[str, Any], version: int) -> TrainingSettings:
    try:
        return TrainingSettings.model_validate(record["settings"])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        found = f"version {version}: its setting {key} cannot be read: {first['msg']}"
        raise RegistryError(found, "it was made by another version of twohead") from None


def _answer(folder: Path, manifest: Manifest, dataset: Dataset, settings: TrainingSettings) -> dict[str, Logits]:
    model, tokenizer = load_model(folder), load_tokenizer(folder, manifest)
    splits = {"validation": dataset.validation, "test": dataset.test}
    return {
        split: predict_logits(model, TokenInputs(tokenizer.encode(examples.texts), tokenizer.pad_id), settings.fit.batch_tokens)
        for split, examples in splits.items()
        if len(examples)
    }
