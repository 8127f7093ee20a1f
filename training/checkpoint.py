"""A checkpoint: a folder that holds everything a model is, described by its manifest.

    weights.safetensors   all parameters
    config.json           the network, for `TwoHeadBert.from_pretrained`
    tokenizer*.json …     the tokenizer
    report.json           what the search found, for the report
    README.md             the model card
    golden.safetensors    some validation texts as tokens, and what the model answers about them
    manifest.json         heads, text template, limits, metrics, provenance, and the digest of every file

What a model is stands only here; serving has no setting for it. It does not know versions or names (`registry`).
"""

import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version as library_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cluster.storage import sha256_file
from training.errors import CheckpointError
from training.fit_settings import HeadLoss
from training.golden import GOLDEN_FILE, Golden, write_golden

if TYPE_CHECKING:
    from training.data.tokens import Tokenizer
    from training.network.model import TwoHeadBert

MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "config.json"
RECORD_FILE = "report.json"
CARD_FILE = "README.md"
TOKENIZER_FILES = frozenset(
    {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "sentencepiece.bpe.model",
        "spm.model",
    }
)
# Everything a checkpoint may hold; nothing in this list is ever executed when read.
ALLOWED_FILES = TOKENIZER_FILES | {MANIFEST_FILE, WEIGHTS_FILE, CONFIG_FILE, RECORD_FILE, CARD_FILE, GOLDEN_FILE}
_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "ray", "optuna", "scikit-learn", "numpy")
_MOST_MANIFEST_BYTES = 16_000_000
# Bins of equal width between 0 and 1.
CONFIDENCE_BINS = 10

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class AnswerShares(_Facts):
    """How a head's answers about the validation texts are spread, so that serving can tell whether its own still are.

    Attributes:
        count: Texts.
        classes: Share of each class among the answers, in the order of the head's classes; each sums to 1.
        confidence: Share of each tenth of the calibrated probability of the answer, the lowest first.
    """

    count: int = Field(ge=1)
    classes: tuple[Share, ...]
    confidence: tuple[Share, ...] = Field(min_length=CONFIDENCE_BINS, max_length=CONFIDENCE_BINS)


class HeadFacts(_Facts):
    """One head as it was trained.

    Attributes:
        name: Key of its answers.
        classes: In the order of its logits.
        ordered: The classes have a natural order.
        hidden_size: Units of its hidden layer; 0 means linear.
        dropout: Used in training.
        loss: `softmax`, or `corn` for a chain over ordered classes.
        temperature: Logits are divided by it before the softmax.
        threshold: An answer less probable than this is an abstention; null never abstains.
        validation_answers: How its answers about the validation texts are spread; null in versions made before this was kept.
    """

    name: str
    classes: tuple[str, ...] = Field(min_length=2)
    ordered: bool = False
    hidden_size: int = 0
    dropout: float = 0.0
    loss: HeadLoss = "softmax"
    temperature: float = Field(default=1.0, gt=0)
    threshold: float | None = None
    validation_answers: AnswerShares | None = None

    @model_validator(mode="after")
    def _has_a_share_for_each_class(self) -> Self:
        shares = self.validation_answers
        if shares is not None and len(shares.classes) != len(self.classes):
            raise ValueError(f"validation_answers has shares of {len(shares.classes)} classes, but must have {len(self.classes)}")
        return self


class EncoderFacts(_Facts):
    """The pretrained encoder a model started from."""

    name: str
    model_type: str
    sha256: str
    pooling: Literal["cls", "pooler", "mean"]


class FileFacts(_Facts):
    """Digest and size of one file."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class ModelFacts(_Facts):
    """What is known about a model when its checkpoint is written.

    Attributes:
        heads: In the order of the model's heads.
        text_template: How columns become the text, like `{title}: {description}`.
        max_tokens: Longer texts are cut.
        encoder: What it started from.
        settings: The trial's whole configuration.
        metrics: Split → head (or `joint_accuracy`) → figures.
        data_digest: SHA-256 over texts, labels and split.
        search: Name of the search and id of the trial.
    """

    heads: tuple[HeadFacts, ...] = Field(min_length=1)
    text_template: str
    max_tokens: int = Field(ge=2)
    encoder: EncoderFacts
    settings: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    data_digest: str = ""
    search: dict[str, str] = {}


class Manifest(ModelFacts):
    """`manifest.json`: the model's facts and those of its making."""

    format_version: Literal[1] = 1
    created: str
    code_revision: str
    libraries: dict[str, str]
    files: dict[str, FileFacts]


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
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


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


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest without looking at the other files.

    Raises:
        CheckpointError: It is missing, too big, or not a manifest this version reads.
    """
    path = folder / MANIFEST_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", "a checkpoint is a folder with a manifest.json") from None
    if len(content) > _MOST_MANIFEST_BYTES:
        raise CheckpointError(f"{path}: is {len(content)} bytes, but may have at most {_MOST_MANIFEST_BYTES}")
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Parse a manifest's bytes.

    Raises:
        CheckpointError: It is not a manifest this version reads.
    """
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CheckpointError(f"{where}: {key}: {first['msg']}", "it was written by another version of twohead, or changed") from None


def verify_checkpoint(folder: Path) -> Manifest:
    """Check that a checkpoint is whole, unchanged and consistent; do this before every load.

    Raises:
        CheckpointError: A file is missing, was changed, is a link, or may not be in a checkpoint.
    """
    manifest = read_manifest(folder)
    _verify_names(folder, manifest)
    for name, expected in manifest.files.items():
        path = folder / name
        size = path.stat().st_size
        if size != expected.size_bytes:
            raise CheckpointError(f"{path}: is {size} bytes, but the manifest says {expected.size_bytes}", "fetch or publish it again")
        digest = sha256_file(path)
        if digest != expected.sha256:
            raise CheckpointError(f"{path}: has SHA-256 {digest}, but the manifest says {expected.sha256}", "fetch or publish it again")
    _verify_config(folder, manifest)
    return manifest


def _verify_names(folder: Path, manifest: Manifest) -> None:
    present = {path.name: path for path in folder.iterdir()}
    listed = set(manifest.files) | {MANIFEST_FILE}
    for name, path in sorted(present.items()):
        if name not in ALLOWED_FILES or name not in listed:
            raise CheckpointError(f"{path}: may not be in a checkpoint, which holds only {', '.join(sorted(listed & ALLOWED_FILES))}")
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{path}: must be a plain file, not a link or a folder")
    for name in sorted(({WEIGHTS_FILE, CONFIG_FILE, "tokenizer_config.json"} | listed) - set(present)):
        raise CheckpointError(f"{folder / name}: is missing from the checkpoint")


def _verify_config(folder: Path, manifest: Manifest) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    described = [(head.get("name"), tuple(head.get("classes", ())), head.get("loss", "softmax")) for head in config.get("heads") or ()]
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


def load_tokenizer(folder: Path, manifest: Manifest) -> "Tokenizer":
    """Load a verified checkpoint's tokenizer with its token limit."""
    from training.data.tokens import Tokenizer

    return Tokenizer(folder, manifest.max_tokens)


def load_model(folder: Path) -> "TwoHeadBert":
    """Load a verified checkpoint's model in evaluation mode, on the CPU, in float32."""
    from training.data.tokens import hush_transformers
    from training.network.model import TwoHeadBert

    hush_transformers()
    model = TwoHeadBert.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
    model.eval()
    return model
