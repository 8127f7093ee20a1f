"""What the search varies: settings → Ray Tune's search space → the configuration of one trial.

It does not know how proposals are made or trials executed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cluster.errors import SettingsError
from training.settings import Choices, Dimension, FitSettings, HeadSettings, HeadSpace, Range, TrainingSettings

_FIT_DIMENSIONS = ("encoder_learning_rate", "head_learning_rate", "layer_decay", "warmup_fraction", "batch_tokens", "frozen_layers")
_HEAD_DIMENSIONS = ("hidden_size", "dropout", "loss_weight")
_INTEGERS = frozenset({"batch_tokens", "frozen_layers", "hidden_size"})


@dataclass(frozen=True)
class TrialSettings:
    """The configuration of one trial, every value decided."""

    fit: FitSettings
    heads: Mapping[str, HeadSettings]


def dimensions(settings: TrainingSettings) -> dict[str, Range | Choices]:
    """List the searched dimensions by path, like `heads/education/dropout`."""
    return {path: dimension for path, dimension in _all(settings) if isinstance(dimension, Range | Choices)}


def _all(settings: TrainingSettings) -> Iterator[tuple[str, Dimension]]:
    space = settings.search_space
    for name in _FIT_DIMENSIONS:
        yield name, getattr(space, name)
    for position, head in enumerate(settings.heads):
        own: HeadSpace = space.heads.get(head, space)
        for name in _HEAD_DIMENSIONS:
            # Only the ratio between heads matters, so the first head's weight stays where it is.
            is_reference = name == "loss_weight" and position == 0
            chosen = own if name in own.model_fields_set else space
            yield f"heads/{head}/{name}", None if is_reference else getattr(chosen, name)


def tune_space(settings: TrainingSettings) -> dict[str, Any]:
    """Express the searched dimensions in Ray Tune's own terms, nested: Tune keeps `/` for itself."""
    space: dict[str, Any] = {}
    for path, dimension in dimensions(settings).items():
        *parents, name = path.split("/")
        node = space
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = _tune_domain(path, dimension)
    return space


def _tune_domain(path: str, dimension: Range | Choices) -> Any:
    from ray import tune

    if isinstance(dimension, Choices):
        return tune.choice(list(dimension.choices))
    if path.rpartition("/")[2] in _INTEGERS:
        low, high = int(dimension.low), int(dimension.high) + 1
        return tune.lograndint(low, high) if dimension.log else tune.randint(low, high)
    return tune.loguniform(dimension.low, dimension.high) if dimension.log else tune.uniform(dimension.low, dimension.high)


def first_points(settings: TrainingSettings) -> list[dict[str, Any]]:
    """Return the configurations that every search begins with, by path.

    Returns:
        Trial 0, the default configuration, moved to the nearest point of the space where it lies outside; then, if its
        loss weights are not equal, the same with equal ones.
    """
    searched = dimensions(settings)
    default = {path: _nearest(dimension, _default(settings, path)) for path, dimension in searched.items()}
    reference = next(iter(settings.heads.values())).loss_weight
    equal = {path: _nearest(searched[path], reference) if path.endswith("/loss_weight") else value for path, value in default.items()}
    return [default] if equal == default else [default, equal]


def _default(settings: TrainingSettings, path: str) -> float:
    parts = path.split("/")
    return float(getattr(settings.fit, path) if len(parts) == 1 else getattr(settings.heads[parts[1]], parts[2]))


def _nearest(dimension: Range | Choices, value: float) -> int | float:
    if isinstance(dimension, Choices):
        return min(dimension.choices, key=lambda choice: abs(choice - value))
    return min(max(value, dimension.low), dimension.high)


def trial_settings(settings: TrainingSettings, point: Mapping[str, Any]) -> TrialSettings:
    """Decide every value of a trial: the searched ones, then fixed dimensions, then the defaults.

    Args:
        settings: The section `training`.
        point: Searched values by path, flat.

    Raises:
        SettingsError: A fixed or searched value is not allowed.
    """
    fixed = {path: dimension for path, dimension in _all(settings) if isinstance(dimension, int | float)}
    values = {path: int(value) if path.rpartition("/")[2] in _INTEGERS else value for path, value in (fixed | dict(point)).items()}
    fit = {path: value for path, value in values.items() if "/" not in path}
    try:
        heads = {}
        for head, defaults in settings.heads.items():
            own = {name: values[path] for name in _HEAD_DIMENSIONS if (path := f"heads/{head}/{name}") in values}
            heads[head] = HeadSettings.model_validate(defaults.model_dump() | own)
        return TrialSettings(FitSettings.model_validate(settings.fit.model_dump() | fit), heads)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise SettingsError(f"training.search_space.{first['loc'][0]} reaches {first['input']}, but {first['msg'].lower()}") from None


def check_space(settings: TrainingSettings) -> None:
    """Try both ends of every dimension, so that no trial meets a value that is not allowed.

    Raises:
        SettingsError: An end is not allowed, or an integer dimension has a fractional end.
    """
    for path, dimension in dimensions(settings).items():
        ends = dimension.choices if isinstance(dimension, Choices) else (dimension.low, dimension.high)
        if path.rpartition("/")[2] in _INTEGERS and any(end != int(end) for end in ends):
            raise SettingsError(f"training.search_space: {path} is searched over {list(ends)}, but must be whole numbers")
        for end in ends:
            trial_settings(settings, {path: end})
    trial_settings(settings, {})
