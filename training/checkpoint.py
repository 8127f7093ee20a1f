"""A checkpoint: a folder that holds everything a model is, described by its manifest.

    weights.safetensors   all parameters
    config.json           the network, for `TwoHeadBert.from_pretrained`
    tokenizer*.json …     the tokenizer
    report.json           what the search found, for the report
    README.md             the model card
    golden.safetensors    some validation texts as tokens, and what the model answers about them
    manifest.json         heads, text template, limits, metrics, provenance, and the digest of every file, itself among them
    manifest.sig          who published it, where it was signed

What a model is stands only here; serving has no setting for it. It does not know versions or names (`registry`).
"""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version as library_version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from cluster.storage import sha256_file
from cluster.whole_files import DRAFT
from training.errors import CheckpointError
from training.golden import GOLDEN_FILE, Golden, write_golden
from training.manifest import MANIFEST_FILE, UNSEALED, FileFacts, Manifest, ModelFacts, parse_manifest, read_manifest, sealed
from training.signature import SIGNATURE_FILE

if TYPE_CHECKING:
    from training.data.tokens import SavedTokenizer, Tokenizer
    from training.network.model import TwoHeadBert

WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "config.json"
RECORD_FILE = "report.json"
CARD_FILE = "README.md"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILES = frozenset(
    {
        "tokenizer.json",
        TOKENIZER_CONFIG_FILE,
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "bpe.codes",
        "sentencepiece.bpe.model",
        "spiece.model",
        "spm.model",
    }
)
# Everything a checkpoint may hold; nothing in this list is ever executed when read.
ALLOWED_FILES = TOKENIZER_FILES | {MANIFEST_FILE, SIGNATURE_FILE, WEIGHTS_FILE, CONFIG_FILE, RECORD_FILE, CARD_FILE, GOLDEN_FILE}
_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "ray", "optuna", "scikit-learn", "numpy")
_COPIED_AT_ONCE_BYTES = 2**20


def write_checkpoint(
    folder: Path,
    model: "TwoHeadBert",
    tokenizer: "Tokenizer",
    facts: ModelFacts,
    pages: Mapping[str, str] | None = None,
    golden: Golden | None = None,
) -> Manifest:
    """Write a checkpoint into an empty folder.

    Args:
        folder: Exists and is empty.
        model: With its encoder whole.
        tokenizer: The one it was trained with.
        facts: What the manifest says about the model.
        pages: File name → text, for the record of the search and the model card.
        golden: Texts it must always answer alike.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = model.config.to_dict()
    # Tells transformers which file to read, so that from_pretrained works on the folder as it is.
    config |= {"transformers_weights": WEIGHTS_FILE, "architectures": [type(model).__name__]}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
    tokenizer.save(folder)
    for name, page in (pages or {}).items():
        (folder / name).write_text(page, encoding="utf-8")
    if golden is not None:
        write_golden(folder, golden)
    files = {file.name: FileFacts(sha256=sha256_file(file), size_bytes=file.stat().st_size) for file in sorted(folder.iterdir())}
    manifest = Manifest(
        **dict(facts),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        code_revision=code_revision(),
        libraries=library_versions(),
        files=files,
        digest=UNSEALED,
    )
    content = sealed(manifest.model_dump_json(indent=2).encode() + b"\n")
    (folder / MANIFEST_FILE).write_bytes(content)
    return parse_manifest(content, MANIFEST_FILE)


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide how a model trains and answers."""
    return {"python": platform.python_version()} | {name: library_version(name) for name in _LIBRARIES}


def code_revision() -> str:
    """Return the commit of the checkout this code runs from, with `+` after local changes; else `unknown`."""
    here = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()


def verify_checkpoint(folder: Path) -> Manifest:
    """Check that a checkpoint is whole, unchanged and consistent; do this before every load.

    Raises:
        CheckpointError: A file is missing, was changed, is a link, or may not be in a checkpoint.
    """
    manifest = read_manifest(folder)
    _verify_names(folder, manifest)
    _verify_files(folder, manifest)
    _verify_config(folder, manifest)
    return manifest


def copy_checkpoint(source: Path, target: Path) -> Manifest:
    """Copy a checkpoint into a folder of the caller's own and verify the copy, which nobody else can change before it is loaded.

    Args:
        source: A checkpoint.
        target: Must not exist.

    Raises:
        CheckpointError: See `verify_checkpoint`; or it cannot be copied.
    """
    manifest = read_manifest(source)
    _verify_names(source, manifest)
    signature = [SIGNATURE_FILE] if (source / SIGNATURE_FILE).exists() else []
    try:
        target.mkdir(parents=True)
        for name in (MANIFEST_FILE, *signature, *manifest.files):
            with open(source / name, "rb", opener=_open_no_link) as original, (target / name).open("xb") as copy:
                shutil.copyfileobj(original, copy, _COPIED_AT_ONCE_BYTES)
    except OSError as error:
        # Without a name where the disk is full.
        hint = f"{source} needs {sum(facts.size_bytes for facts in manifest.files.values()) >> 20} MiB there; TMPDIR names another folder"
        raise CheckpointError(f"{error.filename or target}: {error.strerror}", hint) from error
    return verify_checkpoint(target)


def _open_no_link(path: str, flags: int) -> int:
    # What was a plain file a moment ago may be a link, or a pipe that nobody writes to, by now.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _verify_files(folder: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        path = folder / name
        size = path.stat().st_size
        if size != expected.size_bytes:
            raise CheckpointError(f"{path}: is {size} bytes, but the manifest says {expected.size_bytes}", "fetch or publish it again")
        digest = sha256_file(path)
        if digest != expected.sha256:
            raise CheckpointError(f"{path}: has SHA-256 {digest}, but the manifest says {expected.sha256}", "fetch or publish it again")


def _verify_names(folder: Path, manifest: Manifest) -> None:
    # A draft of the manifest, its second name, stays where its publisher is ended between the two; nobody reads or copies it.
    present = {path.name: path for path in folder.iterdir() if not path.name.startswith(DRAFT)}
    # Of what can be there, the signature is the one file that the manifest cannot know.
    listed = set(manifest.files) | {MANIFEST_FILE, SIGNATURE_FILE}
    for name, path in sorted(present.items()):
        if name not in ALLOWED_FILES or name not in listed:
            raise CheckpointError(f"{path}: may not be in a checkpoint, which holds only {', '.join(sorted(listed & ALLOWED_FILES))}")
        # The manifest has two names for a moment while it is put in its place.
        if path.is_symlink() or not path.is_file() or (path.stat().st_nlink > 1 and name != MANIFEST_FILE):
            raise CheckpointError(f"{path}: must be a plain file with one name, not a link, a folder or a device")
    for name in sorted(({WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_CONFIG_FILE, MANIFEST_FILE} | set(manifest.files)) - set(present)):
        raise CheckpointError(f"{folder / name}: is missing from the checkpoint")


def _verify_config(folder: Path, manifest: Manifest) -> None:
    try:
        config = _Config.model_validate_json((folder / CONFIG_FILE).read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CheckpointError(f"{folder / CONFIG_FILE}: {key}: {first['msg']}", "publish it again") from None
    described = [(head.name, head.classes, head.loss) for head in config.heads]
    expected = [(head.name, head.classes, head.loss) for head in manifest.heads]
    if described != expected:
        raise CheckpointError(f"{folder}: config.json and manifest.json name different heads, classes or losses", "publish it again")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS_FILE, framework="np") as weights:
            shapes = [weights.get_slice(f"heads.{position}.output.weight").get_shape() for position in range(len(expected))]
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS_FILE}: {error}") from None
    for head, shape in zip(manifest.heads, shapes, strict=True):
        outputs = len(head.classes) - (head.loss == "corn")
        if shape[0] != outputs:
            raise CheckpointError(f"{folder}: head {head.name!r} has {shape[0]} outputs, but {len(head.classes)} classes")


class _ConfigHead(BaseModel):
    name: str
    classes: tuple[str, ...]
    loss: str = "softmax"


class _Config(BaseModel):
    """What of `config.json` must agree with the manifest; transformers reads the rest."""

    heads: tuple[_ConfigHead, ...]


def load_tokenizer(folder: Path, manifest: Manifest) -> "SavedTokenizer":
    """Load a verified checkpoint's tokenizer with its token limit."""
    from training.data.tokens import load_saved

    return load_saved(folder, manifest.max_tokens)


def load_model(folder: Path) -> "TwoHeadBert":
    """Load a verified checkpoint's model in evaluation mode, on the CPU, in float32."""
    from training.data.tokens import hush_transformers
    from training.network.model import TwoHeadBert

    hush_transformers()
    model = TwoHeadBert.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
    model.eval()
    return model
