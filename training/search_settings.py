"""Settings of the search: what varies, how trials are proposed, stopped, judged and confirmed."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from cluster.settings import Section
from training.fit_settings import Positive, decided_class_weighting

Metric = Literal["macro_f1", "weighted_f1", "accuracy", "quadratic_weighted_kappa", "log_loss"]
HeadName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]


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

    choices: tuple[int | float | str, ...] = Field(min_length=1)


def _kind_of_dimension(value: object) -> str:
    if isinstance(value, Choices) or (isinstance(value, dict) and "choices" in value):
        return "choices"
    if isinstance(value, str):
        return "word"
    return "range" if isinstance(value, Range | dict) else "number"


# A plain number or word fixes the dimension; null takes the default configuration's value. Choosing by kind keeps
# pydantic from listing what is wrong with the input as each of the other kinds.
Dimension = Annotated[
    Annotated[Range, Tag("range")]
    | Annotated[Choices, Tag("choices")]
    | Annotated[int | float | None, Tag("number")]
    | Annotated[str, Tag("word")],
    Discriminator(_kind_of_dimension),
]


class HeadSpace(Section):
    """Searched per head; see `HeadSettings` for what each means."""

    hidden_size: Dimension = Choices(choices=(0, 128, 256))
    dropout: Dimension = Range(low=0.0, high=0.4)
    loss_weight: Dimension = Range(low=0.25, high=4.0, log=True)
    loss: Dimension = Choices(choices=("softmax", "corn"))
    class_weighting: Dimension = None

    @field_validator("class_weighting")
    @classmethod
    def _decide(cls, value: Dimension) -> Dimension:
        if isinstance(value, Choices):
            return Choices(choices=tuple(dict.fromkeys(decided_class_weighting(choice) for choice in value.choices)))
        found: Dimension = decided_class_weighting(value)
        return found


class SearchSpace(HeadSpace):
    """What the search may vary; every dimension can be widened, narrowed or fixed.

    The dimensions of a head hold for each head, unless `heads` gives one of its own. The first head's
    `loss_weight` is never searched: only the ratio between heads matters. `loss` is searched for ordered heads only.
    """

    encoder_learning_rate: Dimension = Range(low=1e-5, high=2e-4, log=True)
    head_learning_rate: Dimension = Range(low=3e-4, high=1e-2, log=True)
    layer_decay: Dimension = Range(low=0.7, high=1.0)
    warmup_fraction: Dimension = Range(low=0.0, high=0.2)
    batch_tokens: Dimension = Choices(choices=(1024, 2048, 4096))
    frozen_layers: Dimension = None
    balancing: Dimension = None
    heads: dict[HeadName, HeadSpace] = {}

    @field_validator("heads")
    @classmethod
    def _inherit(cls, value: dict[str, HeadSpace], info: ValidationInfo) -> dict[str, HeadSpace]:
        # At once: settings that are written down, for `--resume`, do not tell what a head was given from what it has by default.
        shared = {name: info.data[name] for name in HeadSpace.model_fields if name in info.data}
        return {
            head: own.model_copy(update={name: one for name, one in shared.items() if name not in own.model_fields_set})
            for head, own in value.items()
        }


class TrialResources(Section):
    """What one trial reserves; `gpu: 0.5` puts two trials on one GPU, and one GPU is the most a trial can use."""

    cpu: float = Field(default=1.0, gt=0)
    gpu: float = Field(default=0.0, ge=0, le=1)


class TuningSettings(Section):
    """The search.

    Attributes:
        num_samples: Trials, the default configuration (trial 0) and the equal-weights one included.
        ladder: Begin with heads on the frozen encoder, go on with its top layers, and let only the better configurations train all the
            layers they may; see `ladder`. Without it every trial trains them from the start, its heads from random weights. A population
            (`pbt`) never climbs, and a `grid` passes nobody over.
        head_candidates: With the ladder: so many are tried for each head on the frozen encoder, in seconds.
        golden_texts: So many validation texts at most, and 16,384 of their tokens, go into the checkpoint for whoever loads it to check
            its answers by; 0 keeps them out.
        max_concurrent_trials: Trials at once; null means as many as the resources allow.
        resources_per_trial: CPUs and GPUs of one worker of a trial.
        workers_per_trial: Processes that train one trial together, each on a share of every batch.
        time_budget_s: Seconds the search may take, reading its tables and what confirms its best included; what trains then stops at its
            next epoch, and judging and the report come after. Where words are a model, it holds before the first trial too: texts that are
            encoded by then stay so. Elsewhere a first score is waited for. Null means no limit.
        cpu_budget_s: CPU seconds that what trains and encodes may use, likewise.
        sampler: Who proposes: `tpe`, `gp` (Gaussian process), `random` or `grid` (a range becomes its ends and its middle).
        scheduler: Who stops early: `asha`, `hyperband` (asynchronous, several brackets), `pbt` (population based training) or `none`.
        grace_period: Epochs before a trial can be stopped early.
        reduction_factor: One in so many trials goes on past a rung.
        max_failures: Times a dead trial is started again from its last checkpoint.
        score_metrics: Metric of each head in the selection score; a head that is left out has `macro_f1`.
        score_weights: Weight of each head in the selection score; empty means equal.
        mode: `score` searches one number, the weighted mean over heads; `pareto` searches the heads' metrics side by side.
        pick: With `pareto`, which of the front wins: `knee`, or a rule like `education >= 0.70, then category`.
        confirm_top: So many of the best configurations are trained again with other seeds; the best mean wins. 0 trusts the search.
        confirm_seeds: Other seeds for each of them, for the default configuration and for equal weights.
        refit: At the end train the winning configuration once more, on training and validation texts together and for as many epochs as it
            was best after, and publish that. Temperatures, thresholds and validation figures stay those of before.
        compare_single: Also search a model of its own for each head, with as many trials each, and compare.
        trackers: Also write to `tensorboard` or `mlflow` (each needs its package).
        seed: Of the sampler.
    """

    num_samples: int = Field(default=8, ge=1)
    ladder: bool = True
    head_candidates: int = Field(default=16, ge=1)
    golden_texts: int = Field(default=200, ge=0, le=2_000)
    max_concurrent_trials: int | None = Field(default=None, ge=1)
    resources_per_trial: TrialResources = TrialResources()
    workers_per_trial: int = Field(default=1, ge=1)
    time_budget_s: Positive | None = None
    cpu_budget_s: Positive | None = None
    sampler: Literal["tpe", "gp", "random", "grid"] = "tpe"
    scheduler: Literal["asha", "hyperband", "pbt", "none"] = "asha"
    grace_period: int = Field(default=2, ge=1)
    reduction_factor: float = Field(default=2.0, gt=1.0)
    max_failures: int = Field(default=1, ge=0)
    score_metrics: dict[HeadName, Metric] = {}
    score_weights: dict[HeadName, Annotated[float, Field(ge=0.0)]] = {}
    mode: Literal["score", "pareto"] = "score"
    pick: str = "knee"
    confirm_top: int = Field(default=3, ge=0)
    confirm_seeds: int = Field(default=2, ge=1)
    refit: bool = False
    compare_single: bool = False
    trackers: tuple[Literal["tensorboard", "mlflow"], ...] = ()
    seed: int = 7

    @field_validator("score_metrics", mode="before")
    @classmethod
    def _is_no_training_loss(cls, value: Any) -> Any:
        for head, metric in value.items() if isinstance(value, dict) else ():
            if isinstance(metric, str) and metric in ("loss", "weighted_loss", "training_loss", "validation_loss", "eval_loss"):
                raise ValueError(
                    f"{head}: {metric!r} cannot choose a model: the loss is weighted, and the search moves the weights, so the smallest "
                    "weight would win; log_loss is the unweighted one"
                )
        return value
