"""A search on many workers that are slow, and that are taken away: how busy are they, and how soon is the best configuration found?

    python benchmarks/simulate_search.py --workers 16 64 512

Sampler, rungs and Optuna are the real ones; trainings are the recorded curves of `replay_search.py`, on a clock of the model's own. A
worker is slower than the fastest by a factor drawn once (log-normal, sigma SLOW: some take twice as long), and is taken away at random,
once in --lost-every trainings' time on average; its trial goes on elsewhere after RESTART of a training, from its last epoch, as the
product's trials do. Each search gets so many trainings' worth of time a worker and as many trials as fit.

Three ways are compared with the same workers and losses: proposals and stopping as they ship; the same without stopping; and random
proposals with stopping. The score is that of the best trial, without noise; nothing is confirmed.
"""

import argparse
import heapq
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from replay_search import START_EPOCHS, Landscape, Strategy, Training

from training.search.proposing.samplers import make_sampler

SLOW, RESTART = 0.35, 0.1
TRAININGS_A_WORKER = 4.0
WAYS = {
    "as it ships": Strategy("tpe", "asha 2/2"),
    "without stopping": Strategy("tpe", "none"),
    "random, with stopping": Strategy("random", "asha 2/2"),
}


@dataclass
class Fleet:
    """One search on workers of different speeds, in simulated time, where 1 is a training on the fastest.

    Attributes:
        busy: Worker-time that brought an epoch that counted.
        best: (time, score without noise) whenever the best trial so far changed.
        lost: Times a worker was taken away.
    """

    landscape: Landscape
    strategy: Strategy
    workers: int
    lost_every: float
    seed: int
    busy: float = 0.0
    lost: int = 0
    trials: list[Training] = field(default_factory=list)
    best: list[tuple[float, float]] = field(default_factory=list)

    def run(self) -> None:
        """Search until the time is spent."""
        chance = np.random.default_rng([self.seed, self.workers])
        slower = np.exp(np.abs(chance.normal(0.0, SLOW, self.workers)))
        tuning = self.strategy.tuning(max(8, int(self.workers * TRAININGS_A_WORKER)), self.seed)
        sampler = make_sampler(tuning.sampler, self.landscape.distributions, tuning.num_samples, self.seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.enqueue_trial(self.landscape.default)
        decide = self.strategy.decide(tuning, self.landscape.curves.shape[1])
        events: list[tuple[float, int, int, float]] = []

        def begin(now: float, worker: int, number: int | None) -> None:
            """Let a worker train an epoch: of a trial that runs there, or of a new one."""
            if number is None:
                trial = study.ask(self.landscape.distributions)
                number = trial.number
                self.trials.append(Training(number, trial, self.landscape.curve(trial.params, self.seed, number)))
            training = self.trials[number]
            seconds = training.curve.seconds[training.epoch] * (1 + START_EPOCHS if training.epoch == 0 else 1)
            takes = float(seconds / self.landscape.training_s * slower[worker])
            gone = float(chance.exponential(self.lost_every))
            if gone < takes:
                self.lost += 1
                heapq.heappush(events, (now + gone + RESTART, worker, -1 - number, 0.0))
            else:
                heapq.heappush(events, (now + takes, worker, number, takes))

        for worker in range(self.workers):
            begin(0.0, worker, None)
        while (event := heapq.heappop(events))[0] <= TRAININGS_A_WORKER:
            now, worker, number, took = event
            if number < 0:
                begin(now, worker, -1 - number)
                continue
            self.busy += took
            training = self.trials[number]
            result = training.advance()
            self._note_best(now)
            begin(now, worker, number if self._goes_on(study, training, result, decide) else None)

    def _note_best(self, now: float) -> None:
        first = max(self.trials, key=lambda one: one.score)
        score = float(first.curve.true.mean(axis=1)[first.best])
        if not self.best or self.best[-1][1] != score:
            self.best.append((now, score))

    @staticmethod
    def _goes_on(study: optuna.Study, training: Training, result: Mapping[str, Any], decide: Any) -> bool:
        training.trial.report(result["score"], result["epoch"])
        goes_on = bool(decide(training.number, result))
        if result["is_last"]:
            study.tell(training.trial, result["score"])
        elif not goes_on:
            study.tell(training.trial, state=TrialState.PRUNED)
        return goes_on and not result["is_last"]

    @property
    def utilisation(self) -> float:
        """Share of the workers' time that brought an epoch."""
        return self.busy / (self.workers * TRAININGS_A_WORKER)

    def near_after(self, score: float) -> float:
        """When the best so far had so much for good, in trainings; infinite where it never had."""
        reached = float("inf")
        for at, found in reversed(self.best):
            if found < score:
                break
            reached = at
        return reached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, default=Path(__file__).parent / "curves" / "onet.json")
    parser.add_argument("--workers", type=int, nargs="+", default=[16, 64, 256, 512])
    parser.add_argument("--lost-every", type=float, nargs="+", default=[float("inf"), 10.0], metavar="TRAININGS")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    landscape, facts = Landscape(options.curves, 0.7), []
    print("| workers | one lost every | way | trials | lost | busy | score | as good as random's end after |")
    print("|---|---|---|---|---|---|---|---|")
    for workers in options.workers:
        for lost_every in options.lost_every:
            fleets = {
                name: [Fleet(landscape, way, workers, lost_every, seed) for seed in range(options.seeds)] for name, way in WAYS.items()
            }
            for fleet in (one for group in fleets.values() for one in group):
                fleet.run()
            goals = [fleet.best[-1][1] for fleet in fleets["random, with stopping"]]
            for name, group in fleets.items():
                near = float(np.median([fleet.near_after(goal) for fleet, goal in zip(group, goals, strict=True)]))
                row = {
                    "workers": workers, "lost_every": lost_every, "way": name, "trials": int(np.mean([len(one.trials) for one in group])),
                    "lost": int(np.mean([one.lost for one in group])), "busy": float(np.mean([one.utilisation for one in group])),
                    "score": float(np.mean([one.best[-1][1] for one in group])), "near_after": near,
                }  # fmt: skip
                facts.append(row)
                told = (f"{lost_every:g}", name, row["trials"], row["lost"], f"{row['busy']:.3f}", f"{row['score']:.4f}", f"{near:.2f}")
                print(f"| {workers} | {' | '.join(map(str, told))} |", flush=True)
    if options.out:
        options.out.write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
