"""Checkpoints: whole, unchanged and consistent, or refused (FAULTS C1, C2, C10 to C12, C14)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from cluster.whole_files import DRAFT
from training.checkpoint import copy_checkpoint, load_model, load_tokenizer, verify_checkpoint
from training.errors import CheckpointError
from training.manifest import UNSEALED, read_manifest, sealed
from training.network.inputs import TokenInputs


def test_from_pretrained_reads_a_checkpoint_bit_for_bit(tiny_checkpoint: Path) -> None:
    from safetensors.torch import load_file

    manifest = verify_checkpoint(tiny_checkpoint)
    tokenizer = load_tokenizer(tiny_checkpoint, manifest)
    stored = load_file(tiny_checkpoint / "weights.safetensors")
    model = load_model(tiny_checkpoint)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    import numpy as np

    batch = TokenInputs(tokenizer.encode(["the nurse", "sales"]), tokenizer.pad_id).batch(np.arange(2))
    again = AutoModel.from_pretrained(str(tiny_checkpoint)).eval()(**batch).logits
    logits = model(**batch).logits
    assert list(logits) == ["category", "education"]
    assert all(torch.equal(logits[head], again[head]) for head in logits)


def test_the_manifest_says_what_the_model_is(tiny_checkpoint: Path) -> None:
    manifest = read_manifest(tiny_checkpoint)
    assert manifest.heads[0].classes == ("driver", "nurse", "sales")
    assert manifest.max_tokens == 64
    assert manifest.text_template == "{title}: {text}"
    assert set(manifest.files) == {file.name for file in tiny_checkpoint.iterdir()} - {"manifest.json"}
    assert manifest.libraries["torch"] == torch.__version__


def flip_a_bit(folder: Path) -> None:
    weights = folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)


def truncate(folder: Path) -> None:
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def add_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"no")


def link_weights(folder: Path) -> None:
    moved = folder.parent / "elsewhere"
    (folder / "weights.safetensors").rename(moved)
    (folder / "weights.safetensors").symlink_to(moved)


def remove_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def rewrite(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_bytes(sealed(json.dumps(manifest | {"digest": UNSEALED}).encode()))


def shift_classes(folder: Path) -> None:
    rewrite(folder, lambda manifest: manifest["heads"][0]["classes"].reverse())


def later_format(folder: Path) -> None:
    rewrite(folder, lambda manifest: manifest.update(format_version=2))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, "has SHA-256"),
        (truncate, "bytes, but the manifest says"),
        (add_pickle, "may not be in a checkpoint"),
        (link_weights, "must be a plain file"),
        (remove_tokenizer, "is missing from the checkpoint"),
        (shift_classes, "name different heads, classes or losses"),
        (later_format, "format_version"),
    ],
)
def test_a_damaged_checkpoint_is_refused(damage: Callable[[Path], None], message: str, tiny_checkpoint: Path) -> None:
    damage(tiny_checkpoint)
    with pytest.raises(CheckpointError, match=message):
        verify_checkpoint(tiny_checkpoint)


def test_a_draft_of_the_manifest_that_its_publisher_left_is_no_part_of_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    # As `write_whole` has it between the name and the end of the draft.
    (tiny_checkpoint / f"{DRAFT}0123").hardlink_to(tiny_checkpoint / "manifest.json")
    verify_checkpoint(tiny_checkpoint)
    copy_checkpoint(tiny_checkpoint, tmp_path / "copy")
    assert not [one.name for one in (tmp_path / "copy").iterdir() if one.name.startswith(DRAFT)]


def test_a_head_whose_outputs_are_not_its_classes_is_refused(tiny_checkpoint: Path) -> None:
    # A consistent lie: config, manifest and digests agree, but the weights have three outputs.
    from cluster.storage import sha256_file

    config = tiny_checkpoint / "config.json"
    content = json.loads(config.read_text())
    content["heads"][0]["classes"].append("extra")
    config.write_text(json.dumps(content))

    def change(manifest: dict[str, object]) -> None:
        manifest["heads"][0]["classes"].append("extra")
        manifest["files"]["config.json"] = {"sha256": sha256_file(config), "size_bytes": config.stat().st_size}

    rewrite(tiny_checkpoint, change)
    with pytest.raises(CheckpointError, match="head 'category' has 3 outputs, but 4 classes"):
        verify_checkpoint(tiny_checkpoint)


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_manifest(tmp_path)


def test_where_there_is_no_room_for_a_copy_it_says_where(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(CheckpointError) as raised:
        copy_checkpoint(tiny_checkpoint, tmp_path / "copy")
    assert raised.value.message == f"{tmp_path}/copy: No space left on device"
    assert raised.value.hint.startswith(f"{tiny_checkpoint} needs ")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"/file/copy: Not a directory$"):
        copy_checkpoint(tiny_checkpoint, tmp_path / "file/copy")
