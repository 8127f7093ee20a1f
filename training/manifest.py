"""A checkpoint's manifest: what the model is, how it was made, and the digest of every file, its own among them.

It does not know how a checkpoint is written, verified or loaded (`checkpoint`).
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cluster.storage import sha256
from training.errors import CheckpointError
from training.fit_settings import HeadLoss

MANIFEST_FILE = "manifest.json"
# In the place of the manifest's own digest while that is computed.
UNSEALED = "0" * 64
# Bins of equal width between 0 and 1.
CONFIDENCE_BINS = 10
_MOST_BYTES = 16_000_000

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
        word_pieces: What the text's pieces and letters say by themselves is added to its logits.
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
    word_pieces: bool = False
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
    """`manifest.json`: the model's facts and those of its making.

    Attributes:
        digest: SHA-256 of the file itself with zeros in this place; null in versions made before this was kept.
    """

    format_version: Literal[1] = 1
    created: str
    code_revision: str
    libraries: dict[str, str]
    files: dict[str, FileFacts]
    digest: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


def sealed(content: bytes) -> bytes:
    """Put the digest of a manifest's file into it, in place of the last 64 zeros."""
    return _with_digest(content, UNSEALED, sha256(content))


def _with_digest(content: bytes, old: str, new: str) -> bytes:
    # It stands behind everything else.
    before, _, after = content.rpartition(old.encode())
    return before + new.encode() + after


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
    if len(content) > _MOST_BYTES:
        raise CheckpointError(f"{path}: is {len(content)} bytes, but may have at most {_MOST_BYTES}")
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Parse a manifest's bytes.

    Raises:
        CheckpointError: It is not a manifest this version reads.
    """
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CheckpointError(f"{where}: {key}: {first['msg']}", "it was written by another version of twohead, or changed") from None
    if manifest.digest is not None:
        found = sha256(_with_digest(content, manifest.digest, UNSEALED))
        if found != manifest.digest:
            raise CheckpointError(f"{where}: has SHA-256 {found}, but says {manifest.digest}", "it was changed: fetch or publish it again")
    return manifest
