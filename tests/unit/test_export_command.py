"""`python -m training export`: what it asks for, what it refuses, what it prints."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cluster.console import run_command
from cluster.storage import Storage
from training.__main__ import make_parser
from training.errors import ExportError
from training.export.facts import ExportFacts, ExportManifest, GraphFacts, OnnxFacts, describe
from training.export.folder import ParityTexts, file_texts, require_equal, validation_texts, write_export
from training.export.parity import HeadParity, compare
from training.registry import Registry
from training.settings import TrainingSettings

EQUAL = HeadParity(largest=1e-7, mean=1e-8, equal_answers=1.0, clear_changes=0)


@pytest.fixture
def command(make_checkpoint_in: Callable[..., Path], tmp_path: Path) -> Callable[..., int]:
    """Run the verb on a storage with one version, of one layer, which is in production."""
    registry = Registry(Storage(str(tmp_path / "store")))
    registry.promote(registry.publish(make_checkpoint_in(tmp_path / "checkpoint", num_hidden_layers=1)))
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"cluster: {{storage: {tmp_path / 'store'}}}\ntraining: {{data: {{files: [{tmp_path / 'ads.csv'}]}}}}\n")
    return lambda *words: run_command(make_parser(), ["export", *map(str, words), "--config", str(settings)])


def test_a_name_is_exported_for_transformers(command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("production", "--hub-layout", "--out", tmp_path / "out") == 0
    assert (
        "version 1 as hub-layout: config.json, configuration_twohead.py, model.safetensors, modeling_twohead.py" in capsys.readouterr().out
    )
    assert json.loads((tmp_path / "out" / "manifest.json").read_bytes())["export"]["version"] == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


@pytest.mark.slow
def test_both_formats_in_one_folder(command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("the nurse\n\nsales\ndriver and teacher\n", encoding="utf-8")
    assert command(1, "--onnx", "--hub-layout", "--texts", texts, "--out", tmp_path / "deep" / "out") == 0
    printed = capsys.readouterr().out
    assert "compared with PyTorch's on 3 texts:" in printed
    assert "100.00 %" in printed
    assert {"model.onnx", "model.int8.onnx", "model.safetensors", "manifest.json"} <= {
        path.name for path in (tmp_path / "deep/out").iterdir()
    }


def test_what_cannot_be_done_is_said(command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*words: object) -> str:
        assert command(*words) == 2
        return capsys.readouterr().err

    out = tmp_path / "out"
    assert fails(1, "--out", out) == "error: neither --onnx nor --hub-layout is given\nhint:  give one of them, or both\n"
    assert "version 9 is not published" in fails(9, "--hub-layout", "--out", out)
    assert "needed to compare answers: " in fails(1, "--onnx", "--out", out)
    assert "give --texts FILE" in fails(1, "--onnx", "--out", out)
    assert "--texts" in fails(1, "--onnx", "--out", out, "--texts", tmp_path / "none.txt")
    assert not out.exists()
    out.mkdir()
    (out / "mine").touch()
    assert "exists already, but must be a new or an empty folder" in fails(1, "--hub-layout", "--out", out)
    assert "mine: File exists" in fails(1, "--hub-layout", "--out", out / "mine" / "deeper")
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_missing_package_is_named(command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else object())
    from training.export.onnx import require_onnx

    with pytest.raises(ExportError, match="but 'onnxruntime' is not installed") as caught:
        require_onnx()
    assert caught.value.hint == "pip install 'twohead[onnx]'"


def test_the_validation_split_is_taken_only_of_the_versions_own_data(tmp_path: Path) -> None:
    from training.data.dataset import load_dataset

    rows = [f"text {number} {word},{word},{'none' if number % 2 else 'master'}" for number in range(40) for word in ("a", "b")]
    table = tmp_path / "ads.csv"
    table.write_text("\n".join(["text,category,education", *rows]) + "\n", encoding="utf-8")
    settings = TrainingSettings.model_validate({"data": {"files": [str(table)]}, "heads": {"category": {}, "education": {}}})
    dataset = load_dataset(settings)
    found = validation_texts(settings, SimpleNamespace(data_digest=dataset.digest))  # type: ignore[arg-type]
    assert found == ParityTexts("validation", dataset.validation.texts)
    with pytest.raises(ExportError, match="but the version was trained on 000000000000…, so its validation texts"):
        validation_texts(settings, SimpleNamespace(data_digest="0" * 64))  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="but the version was trained on unknown…"):
        validation_texts(settings, SimpleNamespace(data_digest=""))  # type: ignore[arg-type]


def test_a_file_of_texts_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("one\n\n  \ntwo words\n", encoding="utf-8")
    assert file_texts(path) == ParityTexts("texts", ("one", "two words"))
    path.write_bytes(b"gr\xfcn\n")
    with pytest.raises(ExportError, match=r"is not UTF-8 \(byte 2\)"):
        file_texts(path)
    path.write_text("\n")
    with pytest.raises(ExportError, match="holds no text"):
        file_texts(path)


def test_an_encoder_that_no_test_covers_is_refused(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.export.folder.EXPORTED_TYPES", ("roberta",))
    with pytest.raises(ExportError, match="encoder type 'bert' cannot be exported; types: roberta"):
        write_export(tiny_checkpoint, 1, tmp_path / "out", None, with_hub_layout=True)


def test_differences_are_those_of_the_probabilities() -> None:
    expected = np.array([[0.6, 0.4], [0.50001, 0.49999], [0.9, 0.1], [0.2, 0.8]], np.float32)
    found = np.array([[0.4, 0.6], [0.49999, 0.50001], [0.9, 0.1], [0.2, 0.8]], np.float32)
    parity = compare({"head": expected}, {"head": found})["head"]
    assert parity.largest == pytest.approx(0.2, abs=1e-6)
    assert parity.mean == pytest.approx((0.4 + 0.00004) / 8, abs=1e-6)
    assert parity.equal_answers == 0.5
    assert parity.clear_changes == 1


def test_a_float32_graph_must_answer_the_same() -> None:
    require_equal({"head": EQUAL})
    # A toss-up may fall the other way.
    require_equal({"head": EQUAL.model_copy(update={"equal_answers": 0.9})})
    for change in ({"largest": 2e-4}, {"largest": float("nan")}, {"clear_changes": 1}):
        with pytest.raises(ExportError, match="head 'head': the float32 graph moves a probability by"):
            require_equal({"head": EQUAL.model_copy(update=change)})


@pytest.mark.parametrize(
    ("change", "warned"),
    [({}, False), ({"equal_answers": 0.99}, True), ({"largest": 0.03}, True), ({"largest": float("nan")}, True)],
)
def test_an_8_bit_graph_that_disagrees_is_marked(change: dict[str, float], warned: bool, tiny_checkpoint: Path) -> None:
    from training.export.facts import disagreements
    from training.manifest import read_manifest

    parity = {"category": EQUAL, "education": EQUAL.model_copy(update=change)}
    assert bool(disagreements(parity)) == warned
    graphs = {"model.int8.onnx": GraphFacts(precision="int8", agrees=not disagreements(parity), parity=parity)}
    onnx = OnnxFacts(inputs=("input_ids", "attention_mask"), outputs=tuple(parity), compared_on="validation", texts=90, graphs=graphs)
    facts = ExportFacts(version=1, weights_sha256="0" * 64, exported="now", formats=("onnx",), libraries={}, onnx=onnx)
    text = describe(ExportManifest(**dict(read_manifest(tiny_checkpoint)), export=facts))
    assert "on 90 validation texts:" in text
    assert ("warning: model.int8.onnx disagrees: head 'education'" in text) == warned
    assert "head 'category'" not in text
