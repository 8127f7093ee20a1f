"""What one replica found out, the next one need not; anything else is found out anew."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import predictor
from serving.engines import kept as module
from serving.engines.cache import cache_folder
from serving.engines.calibration import Trial
from serving.engines.kept import KEPT_FOR_S, Found, Keep
from serving.predictor import Predictor
from training.golden import Golden, write_golden

FOUND = Found((Trial("float32", 10.0, 1.0, 0.0), Trial("int8", 30.0, 1.0, 0.01, is_chosen=True)), 512, 31.5)
BOTH = ("float32", "int8")


def test_what_was_kept_is_read(tmp_path: Path) -> None:
    place = Keep(tmp_path / "cache", "code").open(b"manifest", 1)
    assert place.read(BOTH) is None
    place.write(FOUND)
    assert place.read(BOTH) == FOUND
    assert [file.name for file in place.path.parent.iterdir()] == [place.path.name]


def test_every_folder_on_the_way_is_this_users_alone(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        Keep(tmp_path / ".cache/twohead/calibration", "code").open(b"manifest").write(FOUND)
    finally:
        os.umask(before)
    folders = [".cache", ".cache/twohead", ".cache/twohead/calibration"]
    assert [(tmp_path / folder).stat().st_mode & 0o777 for folder in folders] == [0o700] * 3


@pytest.mark.parametrize(("code", "manifest", "asked"), [("other", b"manifest", 1), ("code", b"other", 1), ("code", b"manifest", 2)])
def test_another_version_code_or_question_has_another_place(tmp_path: Path, code: str, manifest: bytes, asked: int) -> None:
    Keep(tmp_path, "code").open(b"manifest", 1).write(FOUND)
    assert Keep(tmp_path, code).open(manifest, asked).read(BOTH) is None


def test_another_machine_or_library_has_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Keep(tmp_path, "code").open(b"manifest")
    monkeypatch.setattr(module, "processor", lambda: "another")
    assert Keep(tmp_path, "code").open(b"manifest") != before
    monkeypatch.undo()
    assert Keep(tmp_path, "code").open(b"manifest") == before
    monkeypatch.setattr(module, "version", lambda _: "99")
    assert Keep(tmp_path, "code").open(b"manifest") != before


@pytest.mark.parametrize(
    "change",
    [
        {"batch_tokens": 0},
        {"batch_tokens": "many"},
        {"tokens_per_s": -1.0},
        {"trials": []},
        {"trials": [{"precision": "int4", "tokens_per_s": 1.0, "is_chosen": True}]},
    ],
)
def test_what_makes_no_sense_counts_for_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    place = Keep(tmp_path, "code").open(b"manifest")
    place.write(FOUND)
    place.path.write_text(json.dumps(json.loads(place.path.read_text()) | change))
    assert place.read(BOTH) is None


def test_an_old_or_broken_file_counts_for_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = Keep(tmp_path, "code").open(b"manifest")
    place.write(FOUND)
    written = place.path.stat().st_mtime
    os.utime(place.path, (written, written - KEPT_FOR_S - 60))
    assert place.read(BOTH) is None
    assert not caplog.records
    place.path.write_text("{")
    assert place.read(BOTH) is None
    assert caplog.messages == [f"{place.path} is not used: ValidationError"]


def test_where_nothing_can_be_kept_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    place = Keep(tmp_path / "file", "code").open(b"manifest")
    place.write(FOUND)
    assert caplog.messages == [f"{place.path}: what was found out is not kept: File exists"]


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("calibration") == tmp_path / "twohead/calibration"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("calibration") == tmp_path / ".cache/twohead/calibration"


def test_the_next_replica_starts_with_what_the_first_found_out(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Predictor.load(tiny_checkpoint, 1, precision="float32")
    texts = plain.tokenize(["nurse", "a teacher and a driver"])
    logits = {head: np.asarray(values) for head, values in plain.engine.forward([one.ids for one in texts]).items()}
    write_golden(tiny_checkpoint, Golden([one.ids for one in texts], logits))
    keep = Keep(tmp_path / "cache", "code")
    first = Predictor.load(tiny_checkpoint, 1, keep=keep)
    speed = first.warm()

    def never(*_: object) -> Any:
        raise AssertionError("found out again")

    monkeypatch.setattr(predictor, "calibrate", never)
    monkeypatch.setattr(predictor, "measure_costs", never)
    second = Predictor.load(tiny_checkpoint, 1, keep=keep)
    assert second.warm() == speed
    assert (second.engine.dtype, second.calibration, second.batch_tokens) == (first.engine.dtype, first.calibration, first.batch_tokens)
    with pytest.raises(AssertionError, match="found out again"):
        Predictor.load(tiny_checkpoint, 1, threads=2, keep=keep)
