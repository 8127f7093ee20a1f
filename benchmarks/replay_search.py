"""Searches in recorded learning curves: which sampler and which scheduler win per CPU second, and how to stop with several heads.

    python benchmarks/replay_search.py                       # TPE, random, grid with every scheduler; then the Pareto experiment
    python benchmarks/replay_search.py --samplers gp --schedulers none "asha 2/2" --part search

`collect_curves.py` recorded random configurations to the end, without early stopping (`benchmarks/curves/*.json`, no texts). A
configuration in between has the curve that extremely randomised trees predict (a surrogate benchmark, Eggensperger et al. 2015; of
k-nearest neighbours, quadratic ridge, Gaussian processes, random forests and these, they had the smallest leave-one-out error on
O*NET), plus noise: the leave-one-out residual curve of a recorded configuration, drawn by seed and trial, times --noise. At 0.7 half of
the residuals' variance counts as noise; how much of it is, and how much what the trees do not know, nobody measured, so try others.
As in a real search the best three are trained twice more with other noise, and the best mean wins (`confirm_top: 3`); that costs
everybody the same and is not in the budget. The winner is scored without noise at the epoch that looked best, so luck does not count.

The sampler, the rungs and Optuna are the real ones. Two trials run at once; an epoch takes the CPU seconds it took, a start
START_EPOCHS of the first more; a trial ends after PATIENCE epochs without a better score, as in `fit`. What this cannot show:
population based training (it changes configurations in mid-training, and no curve was recorded for that); spaces unlike these; detail
finer than the trees resolve. Intervals are 95 % over seeds, of the search; the surrogate's own error is in none of them.
"""

import argparse
import heapq
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from sklearn.ensemble import ExtraTreesRegressor

from training.search.deciding.pareto import front, ranks
from training.search.deciding.schedulers import RungScheduler, make_scheduler, rungs
from training.search.proposing.samplers import make_sampler
from training.search_settings import TuningSettings

Array = NDArray[np.float64]
START_EPOCHS = 0.25
SLOTS = 2
PATIENCE = 2
CONFIRMED, CONFIRM_SEEDS = 3, 2
BASELINE = ("tpe", "asha 2/2")
SAMPLERS = ("tpe", "random", "grid")
SCHEDULERS = ("none", "asha 2/1", "asha 2/2", "asha 2/3", "asha 3/1", "asha 3/3", "hyperband 2/2")
BUDGETS = (8, 24)


@dataclass(frozen=True)
class Curve:
    """What one training would bring: (epochs, heads) with and without noise, and the CPU seconds of each epoch."""

    seen: Array
    true: Array
    seconds: Array


class Landscape:
    """Curves of every configuration, learnt from the recorded ones."""

    def __init__(self, path: Path, noise: float) -> None:
        self._noise = noise
        recorded = json.loads(path.read_text(encoding="utf-8"))
        self.name, self.heads = path.stem.partition(".")[0], recorded["heads"]
        self._points = [one["point"] for one in recorded["curves"]]
        self.default: dict[str, Any] = self._points[0]
        self.distributions = {path: _distribution(path, [point[path] for point in self._points]) for path in self.default}
        self.curves = np.array(
            [[[epoch["metrics"][head]["macro_f1"] for head in self.heads] for epoch in one["epochs"]] for one in recorded["curves"]]
        )
        self.seconds = np.array([np.diff([0.0, *(epoch["cpu_s"] for epoch in one["epochs"])]) for one in recorded["curves"]])
        self.training_s = float(self.seconds.sum(axis=1).mean())
        inputs = np.array([self._encoded(point) for point in self._points], dtype=np.float32)
        targets = self.curves.reshape(len(inputs), -1)
        self._trees = _fitted(inputs, targets)
        others = ~np.eye(len(inputs), dtype=bool)
        left_out = [_predicted(_fitted(inputs[keep], targets[keep]), row) for keep, row in zip(others, inputs, strict=True)]
        self._residuals = (targets - np.array(left_out)).reshape(self.curves.shape)
        self.guessed = self.curves - self._residuals
        best, guessed = (values.mean(axis=2).max(axis=1) for values in (self.curves, self.guessed))
        self.explained = float(np.corrcoef(best, guessed)[0, 1] ** 2)

    def curve(self, point: Mapping[str, Any], seed: int, number: int) -> Curve:
        """Train a configuration."""
        true = _predicted(self._trees, np.array(self._encoded(point), dtype=np.float32)).reshape(self.curves.shape[1:])
        return self.again(true, seed, number)

    def again(self, true: Array, seed: int, number: int) -> Curve:
        """Train the configuration whose curve without noise is `true`."""
        donor = int(np.random.default_rng([seed, number]).integers(len(self.curves)))
        return Curve(true + self._noise * self._residuals[donor], true, self.seconds[donor])

    def _encoded(self, point: Mapping[str, Any]) -> list[float]:
        values: list[float] = []
        for path, distribution in self.distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                values.append(float(distribution.choices.index(point[path])))
            elif isinstance(distribution, FloatDistribution):
                values.append(math.log(point[path]) if distribution.log else point[path])
        return values


def _distribution(path: str, values: Sequence[Any]) -> BaseDistribution:
    distinct = sorted(set(values))
    if isinstance(distinct[0], str) or len(distinct) <= 4:
        return CategoricalDistribution(distinct)
    return FloatDistribution(distinct[0], distinct[-1], log="rate" in path or path.endswith("loss_weight"))


def _fitted(inputs: NDArray[np.float32], targets: Array) -> list[Any]:
    forest = ExtraTreesRegressor(100, min_samples_leaf=2, random_state=0).fit(inputs, targets)
    return [tree.tree_ for tree in forest.estimators_]


def _predicted(trees: Sequence[Any], row: NDArray[np.float32]) -> Array:
    # A hundred times faster for one row than the forest's own `predict`.
    return np.asarray(np.mean([tree.predict(row[None, :])[0, :, 0] for tree in trees], axis=0))


@dataclass
class Training:
    """One trial under way."""

    number: int
    trial: optuna.Trial
    curve: Curve
    epoch: int = 0
    best: int = -1
    score: float = -1.0

    def advance(self) -> dict[str, Any]:
        """Train one epoch and report."""
        self.epoch += 1
        if (score := float(self.curve.seen[self.epoch - 1].mean())) > self.score:
            self.score, self.best = score, self.epoch - 1
        is_last = self.epoch == len(self.curve.seen) or self.epoch - 1 - self.best >= PATIENCE
        return {"score": self.score, "epoch": self.epoch, "head_scores": self.curve.seen[self.best], "is_last": is_last}


@dataclass(frozen=True)
class Strategy:
    """A sampler and a scheduler; with 1 direction they search the mean over heads, with 2 both heads side by side."""

    sampler: str
    scheduler: str
    directions: int = 1
    make_rungs: Callable[[TuningSettings, int], RungScheduler] | None = None

    def tuning(self, trainings: int, seed: int) -> TuningSettings:
        """Say it in settings; `asha 2/1` is a reduction factor of 2 and a grace period of 1."""
        kind, _, numbers = self.scheduler.partition(" ")
        reduction, _, grace = (numbers or "2/2").partition("/")
        return TuningSettings.model_validate(
            {"sampler": self.sampler, "scheduler": kind, "reduction_factor": float(reduction), "grace_period": int(grace)}
            | {"num_samples": trainings, "seed": seed}
        )

    def decide(self, tuning: TuningSettings, epochs: int) -> Callable[[int, Mapping[str, Any]], bool]:
        """Return who decides, from a trial's number and result, whether it goes on."""
        scheduler = self.make_rungs(tuning, epochs) if self.make_rungs else make_scheduler(tuning, epochs, {})
        return scheduler.observe if isinstance(scheduler, RungScheduler) else lambda number, result: True


@dataclass
class Search:
    """Trials of one search on a budget of CPU seconds, in simulated time."""

    landscape: Landscape
    strategy: Strategy
    trainings: int
    seed: int
    trials: list[Training] = field(default_factory=list)

    def run(self) -> list[Training]:
        """Search until the budget is spent."""
        tuning = self.strategy.tuning(self.trainings, self.seed)
        sampler = make_sampler(tuning.sampler, self.landscape.distributions, tuning.num_samples, self.seed)
        study = optuna.create_study(directions=["maximize"] * self.strategy.directions, sampler=sampler)
        study.enqueue_trial(self.landscape.default)
        decide = self.strategy.decide(tuning, self.landscape.curves.shape[1])
        end = self.trainings * self.landscape.training_s / SLOTS
        queue = [self._start(study, 0.0) for _ in range(SLOTS)]
        heapq.heapify(queue)
        while (event := heapq.heappop(queue))[0] <= end:
            now, number = event
            training = self.trials[number]
            result = training.advance()
            if self._told(study, training, result, decide):
                heapq.heappush(queue, self._start(study, now))
            else:
                heapq.heappush(queue, (now + float(training.curve.seconds[training.epoch]), number))
        return [training for training in self.trials if training.epoch]

    def _start(self, study: optuna.Study, now: float) -> tuple[float, int]:
        trial = study.ask(self.landscape.distributions)
        curve = self.landscape.curve(trial.params, self.seed, trial.number)
        self.trials.append(Training(trial.number, trial, curve))
        return now + (1 + START_EPOCHS) * float(curve.seconds[0]), trial.number

    def _told(self, study: optuna.Study, training: Training, result: Mapping[str, Any], decide: Callable[..., bool]) -> bool:
        """Tell the study if the trial ends here, and return whether it does."""
        is_single = self.strategy.directions == 1
        if is_single:
            training.trial.report(result["score"], result["epoch"])
        goes_on = decide(training.number, result)
        if result["is_last"]:
            study.tell(training.trial, [result["score"]] if is_single else list(result["head_scores"]))
        elif not goes_on:
            study.tell(training.trial, state=TrialState.PRUNED)
        return bool(result["is_last"] or not goes_on)


def chosen_score(landscape: Landscape, trials: Sequence[Training], seed: int) -> float:
    """Return, without noise, the score of the configuration that wins after confirmation."""
    best = sorted(trials, key=lambda training: -training.score)[:CONFIRMED]
    means = []
    for place, training in enumerate(best):
        again = [landscape.again(training.curve.true, seed, 10_000 + place * CONFIRM_SEEDS + one) for one in range(CONFIRM_SEEDS)]
        means.append(np.mean([training.score, *(curve.seen.mean(axis=1).max() for curve in again)]))
    winner = best[int(np.argmax(means))]
    return float(winner.curve.true.mean(axis=1)[winner.best])


def front_volume(landscape: Landscape, trials: Sequence[Training], seed: int) -> float:
    """Return, without noise, what the front that was seen dominates, in boxes from the lower quartile of good scores to the best."""
    tops = landscape.guessed.max(axis=1)
    low, high = np.quantile(tops, 0.25, axis=0), tops.max(axis=0)
    seen = [training.curve.seen[training.best].tolist() for training in trials]
    points = np.array([trials[place].curve.true[trials[place].best] for place in front(seen)])
    points = np.maximum((points - low) / (high - low), 0)
    volume, reached = 0.0, 0.0
    for first, second in sorted(points.tolist(), reverse=True):
        volume += first * max(0.0, second - reached)
        reached = max(reached, second)
    return volume


class DominationRungs(RungScheduler):
    """Rungs where a trial goes on while few others stand before it in the order of non-domination (Schmucker et al. 2021).

    Trials of one front stand in the order of crowding (Deb et al. 2002).
    """

    def __init__(self, tuning: TuningSettings, epochs: int) -> None:
        super().__init__([rungs(tuning.grace_period, epochs, tuning.reduction_factor)], epochs, tuning.reduction_factor, tuning.seed)
        self._keep = tuning.reduction_factor
        self._seen: dict[float, dict[int, Array]] = {}

    def observe(self, number: int, result: Mapping[str, Any]) -> bool:
        """Decide whether a trial goes on."""
        for milestone in self._milestones[0]:
            seen = self._seen.setdefault(milestone, {})
            if result["epoch"] >= milestone and number not in seen:
                seen[number] = np.array(result["head_scores"])
                order = _domination_order(np.array(list(seen.values())))
                return order.index(len(seen) - 1) < math.ceil(len(seen) / self._keep)
        return True


class ScalarRungs(DominationRungs):
    """The same by the mean over heads, so that both keep exactly as many."""

    def observe(self, number: int, result: Mapping[str, Any]) -> bool:
        """Decide whether a trial goes on."""
        return super().observe(number, {**result, "head_scores": [float(np.mean(result["head_scores"]))]})


def _domination_order(scores: Array) -> list[int]:
    levels = np.array(ranks(scores.tolist()))
    return [one for level in range(int(levels.max()) + 1) for one in _by_crowding(scores, np.flatnonzero(levels == level).tolist())]


def _by_crowding(scores: Array, members: list[int]) -> list[int]:
    distance = dict.fromkeys(members, 0.0)
    for head in range(scores.shape[1]):
        ordered = sorted(members, key=lambda one: scores[one, head])
        width = max(float(scores[ordered[-1], head] - scores[ordered[0], head]), 1e-12)
        distance[ordered[0]] = distance[ordered[-1]] = math.inf
        for before, one, after in zip(ordered, ordered[1:], ordered[2:], strict=False):
            distance[one] += float(scores[after, head] - scores[before, head]) / width
    return sorted(members, key=lambda one: -distance[one])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval (normal; 30 seeds and more)."""
    return float(np.mean(values)), float(1.96 * np.std(values, ddof=1) / math.sqrt(len(values)))


def compare(landscape: Landscape, trainings: int, seeds: int, strategies: Mapping[str, Strategy], value: Callable[..., float]) -> None:
    """Print a table: strategies, their value, and the difference to the first one with the same seeds."""
    baseline = next(iter(strategies))
    title = f"{landscape.name}, {value.__name__.replace('_', ' ')}, {trainings} trainings ({trainings * landscape.training_s:.0f} CPU s)"
    print(f"\n{title:<46} {'value':>17} {'minus ' + baseline:>32} {'trials':>8}")
    first: list[float] = []
    for name, strategy in strategies.items():
        searches = [Search(landscape, strategy, trainings, seed).run() for seed in range(seeds)]
        values = [value(landscape, trials, seed) for seed, trials in enumerate(searches)]
        first = first or values
        (mean, half), (apart, apart_half) = interval(values), interval(np.subtract(values, first).tolist())
        mark = "+" if apart - apart_half > 0 else "-" if apart + apart_half < 0 else " "
        difference = "" if name == baseline else f"{apart:+.4f} ± {apart_half:.4f} {mark}"
        print(f"  {name:<44} {mean:>8.4f} ± {half:.4f} {difference:>32} {np.mean([len(one) for one in searches]):>8.1f}", flush=True)


def score_searches(samplers: Sequence[str], schedulers: Sequence[str]) -> dict[str, Strategy]:
    """List what searches the mean over heads, the present default first."""
    pairs = [BASELINE, *((sampler, scheduler) for sampler in samplers for scheduler in schedulers)]
    return {f"{sampler}, {scheduler}": Strategy(sampler, scheduler) for sampler, scheduler in pairs}


def pareto_searches(samplers: Sequence[str]) -> dict[str, Strategy]:
    """List what searches the heads side by side."""
    strategies = {}
    for sampler in samplers:
        strategies[f"{sampler}, rungs by the mean of heads"] = Strategy(sampler, "asha 2/2", 2, ScalarRungs)
        strategies[f"{sampler}, rungs by domination"] = Strategy(sampler, "asha 2/2", 2, DominationRungs)
        strategies[f"{sampler}, no stopping"] = Strategy(sampler, "none", 2)
    return strategies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, nargs="+", default=sorted((Path(__file__).parent / "curves").glob("*.json")))
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS)
    parser.add_argument("--schedulers", nargs="+", default=SCHEDULERS, help="like `asha 2/1`: reduction factor 2, grace period 1")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, help="in CPU seconds of whole trainings")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--part", choices=("search", "pareto", "both"), default="both")
    parser.add_argument("--noise", type=float, default=0.7, help="share of the residuals that is noise")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
    landscapes = [Landscape(path, options.noise) for path in options.curves]
    for one in landscapes:
        alone = one.curve(one.default, 0, 0).true.mean(axis=1).max()
        print(f"{one.name}: {len(one.curves)} curves, {one.explained:.0%} of a left-out best score explained; trial 0 alone {alone:.4f}")
        for trainings in options.budgets:
            if options.part != "pareto":
                compare(one, trainings, options.seeds, score_searches(options.samplers, options.schedulers), chosen_score)
            if options.part != "search":
                several = pareto_searches([name for name in options.samplers if name != "grid"])
                compare(one, trainings, options.seeds, several, front_volume)


if __name__ == "__main__":
    main()
