"""How answers are spread: counted on validation texts, kept in the manifest, absent from older ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from training.errors import CheckpointError
from training.fit_settings import HeadSettings
from training.judging.judge import calibrate
from training.judging.metrics import probabilities
from training.judging.shares import answer_shares, confidence_bins
from training.manifest import AnswerShares, HeadFacts, parse_manifest, read_manifest

SHARES = {"count": 4, "classes": [0.5, 0.25, 0.25], "confidence": [0.0] * 9 + [1.0]}


def test_shares_are_counted() -> None:
    told = np.array([[0.7, 0.2, 0.1], [0.05, 0.95, 0.0], [0.65, 0.35, 0.0], [0.29, 0.29, 0.42]], dtype=np.float32)
    shares = answer_shares(told)
    assert (shares.count, shares.classes) == (4, (0.5, 0.25, 0.25))
    assert shares.confidence == (0, 0, 0, 0, 0.25, 0, 0.5, 0, 0, 0.25)


def test_bins_are_closed_above_and_hold_everything() -> None:
    assert confidence_bins(np.array([0.0, 0.1, 0.1000001, 0.5, 1.0, 1.0000001])).tolist() == [0, 0, 1, 4, 9, 9]


def test_calibrating_counts_calibrated_answers_of_all_texts() -> None:
    generator = np.random.default_rng(0)
    labels = np.where(np.arange(200) % 4, generator.integers(0, 3, 200), -1)
    logits = {"job": (np.eye(3)[labels % 3] * 9 + generator.normal(0, 6, (200, 3))).astype(np.float32)}
    found = calibrate({"job": HeadSettings()}, logits, {"job": labels})["job"]
    assert found.temperature > 1.2
    assert found.shares == answer_shares(probabilities(logits["job"], found.temperature))
    assert found.shares is not None
    assert found.shares.count == 200
    assert found.shares.confidence != answer_shares(probabilities(logits["job"])).confidence


def test_a_manifest_keeps_them_and_older_ones_lack_them(tiny_checkpoint: Path) -> None:
    content = json.loads((tiny_checkpoint / "manifest.json").read_text(encoding="utf-8"))
    content["heads"][0]["validation_answers"] = SHARES
    # So do they lack the manifest's own digest.
    del content["heads"][1]["validation_answers"], content["digest"]
    first, second = parse_manifest(json.dumps(content).encode(), "manifest.json").heads
    assert first.validation_answers == AnswerShares.model_validate(SHARES)
    assert second.validation_answers is None
    assert HeadFacts.model_validate_json(first.model_dump_json()) == first
    assert read_manifest(tiny_checkpoint).heads[0].validation_answers is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": [0.5, 0.5]}, "validation_answers has shares of 2 classes, but must have 3"),
        ({"confidence": [1.0]}, "at least 10 items"),
        ({"count": 0}, "greater than or equal to 1"),
        ({"classes": [0.5, 1.5, -1.0]}, "less than or equal to 1"),
    ],
)
def test_shares_that_cannot_be_are_refused(change: dict[str, object], message: str, tiny_checkpoint: Path) -> None:
    content = json.loads((tiny_checkpoint / "manifest.json").read_text(encoding="utf-8"))
    content["heads"][0]["validation_answers"] = SHARES | change
    with pytest.raises(CheckpointError, match=message):
        parse_manifest(json.dumps(content).encode(), "manifest.json")
