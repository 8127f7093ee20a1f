"""The section `training` of ray_config.yaml, validated when it is read.

It does not know the data: classes left out here are found there by `dataset`. Its parts are in `data_settings`, `fit_settings`
and `search_settings`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from cluster.settings import Section, read_settings_file, validate_section
from training.data_settings import DataSettings
from training.fit_settings import ActivationSettings, EncoderSettings, FitSettings, HeadSettings
from training.search_settings import HeadName, SearchSpace, TuningSettings


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
    activations: ActivationSettings = ActivationSettings()
    search_space: SearchSpace = SearchSpace()
    tuning: TuningSettings = TuningSettings()

    @model_validator(mode="after")
    def _names_known_heads(self) -> Self:
        for where, names in (
            ("search_space.heads", self.search_space.heads),
            ("tuning.score_weights", self.tuning.score_weights),
            ("tuning.score_metrics", self.tuning.score_metrics),
        ):
            for name in names:
                if name not in self.heads:
                    raise ValueError(f"{where} names the head {name!r}, but the heads are {', '.join(self.heads)}")
        if self.tuning.score_weights and not any(self.tuning.score_weights.values()):
            raise ValueError("tuning.score_weights are all 0, but at least one must be above 0")
        for name, metric in self.tuning.score_metrics.items():
            if metric == "quadratic_weighted_kappa" and not self.heads[name].ordered:
                raise ValueError(f"tuning.score_metrics.{name} is {metric!r}, but only ordered heads have a distance between classes")
        return self


def of_heads(settings: TrainingSettings, heads: Sequence[str]) -> TrainingSettings:
    """Return the same settings with some of the heads only, all else equal."""
    if tuple(heads) == tuple(settings.heads):
        return settings
    space, tuning = settings.search_space, settings.tuning
    weights = {head: weight for head, weight in tuning.score_weights.items() if head in heads}
    own = {
        "score_weights": weights if any(weights.values()) else {},
        "score_metrics": {head: metric for head, metric in tuning.score_metrics.items() if head in heads},
    }
    return settings.model_copy(
        update={
            "heads": {head: settings.heads[head] for head in heads},
            "search_space": space.model_copy(update={"heads": {head: one for head, one in space.heads.items() if head in heads}}),
            "tuning": tuning.model_copy(update=own | ({"mode": "score"} if len(heads) == 1 else {})),
        }
    )


def load_settings(path: Path, overrides: list[str]) -> TrainingSettings:
    """Read and validate the section `training`.

    Raises:
        SettingsError: With every finding.
    """
    return validate_section(TrainingSettings, read_settings_file(path, overrides), "training", str(path))
