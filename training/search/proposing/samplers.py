"""Who proposes configurations: TPE, a Gaussian process, chance or a grid; each proposal can be repeated.

It does not know how trials run or end. Optuna's samplers carry random state from one proposal to the next, which a search that was
killed has lost; here a proposal depends on the seed, the trial's number in the study and what the study holds, and on nothing else.
Sources: Bergstra et al. 2011 and Falkner et al. 2018 (multivariate TPE), Ament et al. 2023 (log expected improvement), Bergstra and
Bengio 2012 (random).
"""

import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

SamplerName = Literal["tpe", "gp", "random", "grid"]
Value = int | float | str


def make_sampler(name: SamplerName, distributions: Mapping[str, BaseDistribution], num_samples: int, seed: int) -> BaseSampler:
    """Make a sampler by its name in the settings.

    A trial out of memory is told as PRUNED with a constraint above 0 (Optuna's `set_constraint`; the function of constraints that
    samplers took before is deprecated): TPE ranks it last, the others do not learn from it.

    Args:
        name: `tpe`, `gp`, `random` or `grid`.
        distributions: Of every searched dimension, by path.
        num_samples: Trials planned.
        seed: Of the search.
    """
    startup = startup_trials(num_samples)
    if name == "grid":
        return GridSampler(distributions, num_samples, seed)
    makers: dict[str, Callable[[int, int], BaseSampler]] = {
        "tpe": lambda own, directions: _tpe(startup, own, directions),
        "gp": lambda own, _: GPSampler(seed=own, n_startup_trials=startup, warn_independent_sampling=False),
        "random": lambda own, _: RandomSampler(seed=own),
    }
    return RepeatableSampler(makers[name], seed)


def startup_trials(num_samples: int) -> int:
    """Return how many trials explore by chance before a model proposes: about a third, 4 to 10."""
    return max(4, min(10, num_samples // 3))


def _tpe(startup: int, seed: int, directions: int) -> TPESampler:
    # Both spelled out, because Optuna 4 and 5 differ; with several directions Optuna's authors take dimensions one by one.
    return TPESampler(n_startup_trials=startup, multivariate=directions == 1, constant_liar=True, seed=seed)


class RepeatableSampler(BaseSampler):
    """A new sampler for every trial, seeded by its number, so that nothing is carried over but what the study holds.

    Args:
        make: Makes the sampler from a seed and the number of directions.
        seed: Of the search.
    """

    def __init__(self, make: Callable[[int, int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed % 2**32
        self._current = make(self._seed, 1)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Make the trial's sampler."""
        seed = int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0])
        self._current = self._make(seed, len(study.directions))
        self._current.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Ask the trial's sampler."""
        space: dict[str, BaseDistribution] = self._current.infer_relative_search_space(study, trial)
        return space

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Ask the trial's sampler."""
        point: dict[str, Any] = self._current.sample_relative(study, trial, search_space)
        return point

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """Ask the trial's sampler."""
        return self._current.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Do nothing: what a trial brought stands in the study."""


def _drawn(total: int, most: int, chance: random.Random) -> list[int]:
    """Draw that many different numbers below a total; all, where there are no more."""
    if total <= sys.maxsize:
        return chance.sample(range(total), min(total, most))
    # Python counts no longer range, and among so many none comes twice but by a miracle.
    drawn: dict[int, None] = {}
    while len(drawn) < most:
        drawn[chance.randrange(total)] = None
    return list(drawn)


class GridSampler(BaseSampler):
    """Proposes the points of a grid in an order shuffled by seed, each once; when all are visited, random points.

    A range becomes its ends and its middle (by magnitude where it is logarithmic), a list all its values. A point counts as visited when
    any trial of the study has it, one that was not proposed by the grid too. Optuna's own `GridSampler` ends a study from within,
    cannot do with enqueued trials and repeats points that are running.

    Args:
        distributions: Of every searched dimension, by path.
        num_samples: Trials planned; no more points are drawn than these can visit.
        seed: Of the order.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution], num_samples: int, seed: int) -> None:
        self._distributions = dict(distributions)
        levels = {path: grid_levels(distribution) for path, distribution in self._distributions.items()}
        total = math.prod(len(values) for values in levels.values())
        # Trials may already stand on as many points as there are trials, so twice as many are enough.
        self._points = [_grid_point(levels, index) for index in _drawn(total, 2 * num_samples, random.Random(seed))]  # noqa: S311 - no secret
        self._random = RepeatableSampler(lambda own, _: RandomSampler(seed=own), seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Prepare a random point, in case the grid is exhausted."""
        self._random.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return every dimension: a point is proposed whole."""
        return self._distributions

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Return the first point that no trial has."""
        visited = [other.params for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        return dict(next((point for point in self._points if point not in visited), {}))

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """Draw a random value: the grid is exhausted."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)


def grid_levels(distribution: BaseDistribution) -> list[Value]:
    """List the values that a dimension has on the grid."""
    if isinstance(distribution, CategoricalDistribution):
        return [value for value in distribution.choices if value is not None]
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        raise TypeError(f"a grid over {type(distribution).__name__} is not known")
    low, high = distribution.low, distribution.high
    middle = math.sqrt(low * high) if distribution.log else (low + high) / 2
    if isinstance(distribution, IntDistribution):
        middle = round(middle)
    return sorted({low, middle, high})


def grid_note(distributions: Mapping[str, BaseDistribution], num_samples: int) -> str:
    """Say how much of the grid so many trials visit."""
    total = math.prod(len(grid_levels(distribution)) for distribution in distributions.values())
    if num_samples < total:
        return f"the grid has {total:,} points, and {num_samples} trials visit {num_samples / total:.2%} of them, in random order"
    return f"the grid has {total:,} points; all are visited" + (
        f", and {num_samples - total} more trials are random" if num_samples > total else ""
    )


def _grid_point(levels: Mapping[str, Sequence[Value]], index: int) -> dict[str, Value]:
    point: dict[str, Value] = {}
    for path, values in levels.items():
        index, place = divmod(index, len(values))
        point[path] = values[place]
    return point
