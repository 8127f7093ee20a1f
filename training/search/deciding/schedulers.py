"""Who goes on, who stops: rungs (ASHA, HyperBand), a population (PBT), or everybody to the end.

It does not know what is proposed or how a trial trains. The rungs are our own: Ray's cannot be given the results of an earlier process,
count Tune's iterations, which begin anew after a resume, and draw brackets without a seed. Their decisions are those of Ray's
`ASHAScheduler`, which a test takes as its oracle. Sources: Li et al. 2020 (ASHA), Li et al. 2018 (Hyperband brackets), Jaderberg et al.
2017 (PBT).
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler

from training.search_settings import Choices, Range, TuningSettings

Result = Mapping[str, Any]
Dimension = Range | Choices

# What may change in the middle of a training; sizes and losses of heads may not, and come with the copied weights.
_MUTABLE_FIT = ("encoder_learning_rate", "head_learning_rate")
_MUTABLE_HEAD = ("dropout", "loss_weight")
# Jaderberg et al. 2017: drawn anew one time in four, else a fifth up or down.
_REDRAWN = 0.25
_FACTORS = (0.8, 1.2)
_LINEAR_STEP = 0.1


def make_scheduler(tuning: TuningSettings, epochs: int, dimensions: Mapping[str, Dimension]) -> TrialScheduler:
    """Make the scheduler that the settings name; `TuneConfig` must give `metric="score", mode="max"`.

    Trials are told apart by `config["number"]`; PBT changes `config["point"]`. Results have `score` (the best so far), `epoch`,
    `trained_score` (without what a trial began with: rungs compare trainings), and `is_climbing` where a trial trains more layers than
    it first did, or `config["is_climb"]` says that it is to: nobody stops it then.
    A search of several heads side by side has the same rungs, over the score: rungs by non-domination (Schmucker et al. 2021) found no
    better fronts in `benchmarks/replay_search.py`.

    Args:
        tuning: The section `training.tuning`.
        epochs: Most epochs of a trial.
        dimensions: The searched ones, by path.
    """
    grace = min(tuning.grace_period, epochs)
    if tuning.scheduler == "none":
        return FIFOScheduler()
    if tuning.scheduler == "pbt":
        return Population(mutable(dimensions), grace, epochs, tuning.seed)
    milestones = rungs(grace, epochs, tuning.reduction_factor)
    brackets = [milestones]
    if tuning.scheduler == "hyperband":
        # Each bracket has one early rung less than the one before; the last stops nobody.
        brackets = [milestones[start:] for start in range(len(milestones) + 1)]
    return RungScheduler(brackets, epochs, tuning.reduction_factor, tuning.seed)


def rungs(grace_period: int, epochs: int, reduction_factor: float) -> tuple[float, ...]:
    """List the epochs after which trials are compared: from the grace period up, each `reduction_factor` times the one before."""
    count = int(math.log(epochs / grace_period) / math.log(reduction_factor) + 1)
    return tuple(grace_period * reduction_factor**step for step in range(count))


class RungScheduler(FIFOScheduler):
    """Stops a trial at a rung unless it is among the best one in `reduction_factor` that came there before it.

    Args:
        brackets: Milestones of each bracket; a trial belongs to one of them, drawn by its number, the more likely the more rungs it has.
        epochs: Most epochs of a trial.
        reduction_factor: One in so many goes on.
        seed: Of the draw.
    """

    def __init__(self, brackets: Sequence[Sequence[float]], epochs: int, reduction_factor: float, seed: int) -> None:
        super().__init__()
        self._milestones = [tuple(sorted(bracket, reverse=True)) for bracket in brackets]
        self._epochs = epochs
        self._percentile = (1 - 1 / reduction_factor) * 100
        self._seed = seed % 2**32
        self._scores: dict[tuple[int, float], dict[int, float]] = {}
        self._stopped: dict[int, int] = {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decide whether a trial goes on."""
        # Ordered to climb, and what it first trained lost with its checkpoints: that is trained again, and was judged before.
        is_climbing = bool(result.get("is_climbing") or trial.config.get("is_climb"))
        goes_on = is_climbing or (self.observe(int(trial.config["number"]), result) and result["epoch"] < self._epochs)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def observe(self, number: int, result: Result) -> bool:
        """Enter a result into the rung it reached, if it is the trial's first there.

        Args:
            number: Of the trial.
            result: With `score` and `epoch`.

        Returns:
            Whether the trial goes on.
        """
        if number in self._stopped and result["epoch"] >= self._stopped[number]:
            # Decided before a kill, and not carried out.
            return False
        bracket = self.bracket(number)
        for milestone in self._milestones[bracket]:
            scores = self._scores.setdefault((bracket, milestone), {})
            if result["epoch"] >= milestone and number not in scores:
                cutoff = float(np.nanpercentile(list(scores.values()), self._percentile)) if scores else -math.inf
                trained = result.get("trained_score")
                scores[number] = float(result["score"] if trained is None else trained)
                if scores[number] >= cutoff:
                    return True
                self._stopped[number] = int(result["epoch"])
                return False
        return True

    @property
    def stopped(self) -> dict[int, int]:
        """Number of each trial that was stopped → after which epoch."""
        return dict(self._stopped)

    def bracket(self, number: int) -> int:
        """Return the position of a trial's bracket."""
        if len(self._milestones) == 1:
            return 0
        sizes = np.array([len(milestones) for milestones in self._milestones], dtype=np.float64)
        weights = np.exp(sizes - sizes.max())
        return int(np.random.default_rng([self._seed, number]).choice(len(sizes), p=weights / weights.sum()))

    def debug_string(self) -> str:
        """Return a line about the rungs."""
        counts = ", ".join(f"epoch {milestone:g}: {len(scores)}" for (_, milestone), scores in sorted(self._scores.items()) if scores)
        return f"Rungs with trials: {counts or 'none'}"


def replay(scheduler: TrialScheduler, finished: Iterable[tuple[int, Iterable[Result]]]) -> dict[int, int]:
    """Let a new scheduler know what trials of an earlier process reported.

    Trials that go on belong in too: what they reported before the kill. A population keeps nothing of finished trials, and `none`
    nothing at all.

    Args:
        scheduler: Of `make_scheduler`.
        finished: Number of a trial and results of it, in the order in which they came; a trial may come several times.

    Returns:
        Number of each trial that was to be stopped → after which epoch.
    """
    if not isinstance(scheduler, RungScheduler):
        return {}
    for number, results in finished:
        for result in results:
            if not result.get("is_climbing"):
                scheduler.observe(number, result)
    return scheduler.stopped


def mutable(dimensions: Mapping[str, Dimension]) -> dict[str, Dimension]:
    """Return the dimensions that may change in the middle of a training."""
    return {
        path: dimension
        for path, dimension in dimensions.items()
        if path in _MUTABLE_FIT or ("/" in path and path.rpartition("/")[2] in _MUTABLE_HEAD)
    }


class Population(PopulationBasedTraining):
    """Ray's population based training over `config["point"]`.

    A trial in the lowest quarter takes the weights and the point of one in the highest, and changes what may change; all else in
    its configuration, its number too, stays. All trials of a search should be alive together, so nothing may limit them but the
    resources. Ray refuses a searcher with PBT because it would learn of scores that its proposals did not bring; ours must know that.

    Args:
        dimensions: Those that may change.
        interval: Epochs between two comparisons.
        epochs: Most epochs of a trial.
        seed: Of the changes. Which trials meet when depends on time all the same.
    """

    def __init__(self, dimensions: Mapping[str, Dimension], interval: int, epochs: int, seed: int) -> None:
        self._dimensions = dict(dimensions)
        self._epochs = epochs
        self._own: set[str] = set()
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._random = random.Random(seed)  # noqa: S311 - no secret
        super().__init__(time_attr="epoch", perturbation_interval=interval, custom_explore_fn=self.explore, log_config=False)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Welcome a trial, whoever proposed it."""
        self._own.add(trial.trial_id)
        no_searcher: Any = SimpleNamespace(search_alg=None)
        super().on_trial_add(no_searcher, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decide whether a trial goes on as it is, waits for others, or goes on from another's weights."""
        self._turn += 1
        self._turns[trial.trial_id] = self._turn
        if result.get("is_last") or result["epoch"] >= self._epochs:
            # It has nothing left to train with another's weights, and would end with the other's figures.
            return str(TrialScheduler.CONTINUE)
        own = trial.config
        decision = super().on_trial_result(tune_controller, trial, result)
        if trial.config is not own:
            # Ray copies the other's whole configuration, its number and names too.
            trial.set_config(own | {"point": trial.config["point"]})
        return str(decision)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the least trained of its own trials that wait, so that all grow up together; of equals, who has waited longest."""
        own = [trial for trial in tune_controller.get_trials() if trial.trial_id in self._own]
        # Else the first of equals, sent back to the start by the others' weights again and again, would get its process back each time.
        own.sort(key=lambda trial: self._turns.get(trial.trial_id, 0))
        only_own: Any = SimpleNamespace(get_trials=lambda: own)
        return super().choose_trial_to_run(only_own)

    def explore(self, config: dict[str, Any]) -> dict[str, Any]:
        """Change a copied configuration."""
        point = dict(config["point"])
        for path, dimension in self._dimensions.items():
            if path in point:
                point[path] = _moved(point[path], dimension, self._random)
        return config | {"point": point}


def _moved(value: Any, dimension: Dimension, chance: random.Random) -> Any:
    is_redrawn = chance.random() < _REDRAWN
    if isinstance(dimension, Choices):
        place = chance.randrange(len(dimension.choices)) if is_redrawn else dimension.choices.index(value) + chance.choice((-1, 1))
        return dimension.choices[min(max(place, 0), len(dimension.choices) - 1)]
    if is_redrawn and dimension.log:
        moved = math.exp(chance.uniform(math.log(dimension.low), math.log(dimension.high)))
    elif is_redrawn:
        moved = chance.uniform(dimension.low, dimension.high)
    elif dimension.log:
        moved = value * chance.choice(_FACTORS)
    else:
        # A factor would leave a dropout of 0 at 0 for ever.
        moved = value + chance.choice((-1, 1)) * _LINEAR_STEP * (dimension.high - dimension.low)
    return min(max(moved, dimension.low), dimension.high)
