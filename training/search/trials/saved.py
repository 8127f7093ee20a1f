"""What a trial leaves beside its parameters: a seal that shows the folder is whole, and the answers of its best epoch.

It does not know what trained them or who reads them.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from cluster.storage import sha256_file
from training.data.tokens import TokenTable
from training.judging.metrics import Logits

ANSWERS_FILE = "answers.safetensors"
_SEAL_FILE = "seal.json"


def seal(folder: Path, epoch: int) -> None:
    """Write the epoch and the digests of a folder's files beside them, last."""
    digests = {file.name: sha256_file(file) for file in sorted(folder.iterdir())}
    (folder / _SEAL_FILE).write_text(json.dumps({"epoch": epoch, "files": digests}), encoding="utf-8")


def whole_epoch(folder: Path) -> int | None:
    """Return the epoch of a sealed folder that is as it was written, else nothing."""
    try:
        facts = json.loads((folder / _SEAL_FILE).read_text(encoding="utf-8"))
        is_whole = all(sha256_file(folder / name) == digest for name, digest in facts["files"].items())
        return int(facts["epoch"]) if is_whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def save_answers(folder: Path, answers: Mapping[str, Logits], texts: Mapping[str, TokenTable]) -> None:
    """Write the logits of whole splits, split → head → (texts, classes), and a digest of each split's texts in their order."""
    tensors = {f"{split}/{head}": values for split, logits in answers.items() for head, values in logits.items()}
    save_file(tensors, folder / ANSWERS_FILE, {split: texts[split].digest for split in answers})


def read_answers(folder: Path, texts: Mapping[str, TokenTable]) -> dict[str, Logits] | None:
    """Return split → head → logits, (texts, classes), or nothing where a checkpoint has none that can be read.

    Args:
        folder: Of the checkpoint.
        texts: By split. A table with its rows in another order holds the same data, and answers to other rows.
    """
    try:
        with safe_open(folder / ANSWERS_FILE, framework="numpy") as file:
            digests = file.metadata() or {}
        tensors = load_file(folder / ANSWERS_FILE)
    except (OSError, SafetensorError):
        return None
    if not digests or any(split not in texts or texts[split].digest != digest for split, digest in digests.items()):
        return None
    answers: dict[str, Logits] = {}
    for name, values in tensors.items():
        split, _, head = name.partition("/")
        answers.setdefault(split, {})[head] = values
    return answers
