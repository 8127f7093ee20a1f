"""What the search varies: settings → Optuna's distributions → the configuration of one trial.

It does not know how proposals are made or trials executed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from cluster.errors import SettingsError
from training.fit_settings import FitSettings, HeadSettings
from training.search_settings import Choices, Dimension, HeadSpace, Range
from training.settings import TrainingSettings

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = int | float | str
Point = dict[str, Value]

_FIT_DIMENSIONS = (
    "encoder_learning_rate",
    "head_learning_rate",
    "layer_decay",
    "warmup_fraction",
    "batch_tokens",
    "frozen_layers",
    "balancing",
)
_HEAD_DIMENSIONS = ("hidden_size", "dropout", "loss_weight", "loss", "class_weighting")
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
    for position, (head, defaults) in enumerate(settings.heads.items()):
        own: HeadSpace = space.heads.get(head, space)
        for name in _HEAD_DIMENSIONS:
            dimension: Dimension = getattr(own, name)
            # Only the ratio between heads matters, so the first head's weight stays where it is; a chain needs ordered classes.
            is_settled = name == "loss_weight" and position == 0 and isinstance(dimension, Range | Choices)
            yield f"heads/{head}/{name}", None if is_settled or (name == "loss" and not defaults.ordered) else dimension


def distributions(settings: TrainingSettings) -> "dict[str, BaseDistribution]":
    """Express the searched dimensions in Optuna's own terms, by path."""
    return {path: _distribution(path, dimension) for path, dimension in dimensions(settings).items()}


def _distribution(path: str, dimension: Range | Choices) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Choices):
        return CategoricalDistribution(dimension.choices)
    if path.rpartition("/")[2] in _INTEGERS:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def first_points(settings: TrainingSettings) -> list[Point]:
    """Return the configurations that every search begins with, by path.

    Returns:
        Trial 0, the default configuration, moved to the nearest point of the space where it lies outside; then, if its
        loss weights are not equal and the space has equal ones, the same with these.
    """
    searched = dimensions(settings)
    default = {path: _nearest(dimension, _default(settings, path)) for path, dimension in searched.items()}
    reference = next(iter(trial_settings(settings, default).heads.values())).loss_weight
    equal = {path: _nearest(searched[path], reference) if path.endswith("/loss_weight") else value for path, value in default.items()}
    if "balancing" in equal:
        equal["balancing"] = _nearest(searched["balancing"], "fixed")
    trial = trial_settings(settings, equal)
    is_equal = len({one.loss_weight for one in trial.heads.values()}) == 1 and trial.fit.balancing == "fixed"
    return [default, equal] if is_equal and equal != default else [default]


def point_of(settings: TrainingSettings, fit: Mapping[str, Any], heads: Mapping[str, Mapping[str, Any]]) -> Point:
    """Return the point of the space nearest to a configuration, like that of an earlier version.

    Args:
        settings: The section `training`.
        fit: Fields of `FitSettings`; what is left out is as in the default configuration.
        heads: Head → fields of `HeadSettings`, likewise.
    """
    point = {}
    for path, dimension in dimensions(settings).items():
        parts = path.split("/")
        own = fit if len(parts) == 1 else heads.get(parts[1], {})
        point[path] = _nearest(dimension, own.get(parts[-1], _default(settings, path)))
    return point


def without_equal_batches(settings: TrainingSettings, longest: int) -> TrainingSettings:
    """Merge choices of `batch_tokens` that no batch reaches: `batch_texts` bounds the batches of all of them, and they are the same.

    Args:
        settings: The section `training`.
        longest: Tokens of the longest text that is trained on.

    Returns:
        The settings with the least of such choices in place of all, fixed where it is the only one left.
    """
    space, enough = settings.search_space, settings.fit.batch_texts * longest
    if not isinstance(space.batch_tokens, Choices):
        return settings
    sizes = [choice for choice in space.batch_tokens.choices if not isinstance(choice, str)]
    most = min((size for size in sizes if size >= enough), default=max(sizes))
    kept = tuple(dict.fromkeys(size for size in sizes if size <= most))
    if kept == space.batch_tokens.choices:
        return settings
    merged = kept[0] if len(kept) == 1 else Choices(choices=kept)
    return settings.model_copy(update={"search_space": space.model_copy(update={"batch_tokens": merged})})


def moved_into(settings: TrainingSettings, point: Mapping[str, Value]) -> Point:
    """Return the point of the space nearest to one of a wider space."""
    return {path: _nearest(dimension, point[path]) for path, dimension in dimensions(settings).items() if path in point}


def _default(settings: TrainingSettings, path: str) -> Value:
    parts = path.split("/")
    value: Value = getattr(settings.fit, path) if len(parts) == 1 else getattr(settings.heads[parts[1]], parts[2])
    return value


def _nearest(dimension: Range | Choices, value: Value) -> Value:
    if isinstance(dimension, Range):
        return min(max(float(value), dimension.low), dimension.high)
    if value in dimension.choices or isinstance(value, str):
        return value if value in dimension.choices else dimension.choices[0]
    return min(dimension.choices, key=lambda choice: abs(float(choice) - value))


def trial_settings(settings: TrainingSettings, point: Mapping[str, Any]) -> TrialSettings:
    """Decide every value of a trial: the searched ones, then fixed dimensions, then the defaults.

    Args:
        settings: The section `training`.
        point: Searched values by path, flat.

    Raises:
        SettingsError: A fixed or searched value is not allowed.
    """
    fixed = {path: dimension for path, dimension in _all(settings) if isinstance(dimension, int | float | str)}
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


def check_depth(settings: TrainingSettings, layers: int) -> None:
    """Refuse to freeze more layers than the encoder has.

    Args:
        settings: The section `training`.
        layers: Of the encoder.

    Raises:
        SettingsError: The default or the search space reaches too far.
    """
    dimension = settings.search_space.frozen_layers
    ends = dimension.choices if isinstance(dimension, Choices) else (dimension.high,) if isinstance(dimension, Range) else (dimension or 0,)
    for where, depth in (("fit", settings.fit.frozen_layers), *(("search_space", float(end)) for end in ends)):
        if depth > layers:
            raise SettingsError(
                f"training.{where}.frozen_layers reaches {depth:g}, but encoder {settings.encoder.name!r} has {layers} layers",
                f"{layers} trains only the heads",
            )


def check_space(settings: TrainingSettings) -> None:
    """Try both ends of every dimension, so that no trial meets a value that is not allowed.

    For searches that begin: one that goes on has the space it began with, whatever is refused since.

    Raises:
        SettingsError: An end, or what fixes a dimension, is not allowed, or no whole number where it must be one; or a head without an
            order is to have CORN.
    """
    _check_chains(settings)
    for path, dimension in _all(settings):
        if path.rpartition("/")[2] in _INTEGERS and any(not isinstance(end, int | float) or end != int(end) for end in _ends(dimension)):
            is_fixed = not isinstance(dimension, Range | Choices)
            found = (
                f"{dimension!r}, but must be a whole number"
                if is_fixed
                else f"searched over {list(_ends(dimension))}, but must be whole numbers"
            )
            raise SettingsError(f"training.search_space: {path} is {found}")
    trial_settings(settings, {})
    for path, dimension in dimensions(settings).items():
        for end in _ends(dimension):
            trial_settings(settings, {path: end})


def _check_chains(settings: TrainingSettings) -> None:
    space = settings.search_space
    # Where it is wanted of all heads, the ordered ones alone are meant.
    for head, own in space.heads.items() if space.loss != "corn" else ():
        if own.loss == "corn" and not settings.heads[head].ordered:
            raise SettingsError(f"training.search_space.heads.{head}.loss is 'corn', but only ordered classes can have it")


def _ends(dimension: Dimension) -> tuple[Value, ...]:
    if isinstance(dimension, Choices):
        return dimension.choices
    if isinstance(dimension, Range):
        return dimension.low, dimension.high
    return () if dimension is None else (dimension,)
