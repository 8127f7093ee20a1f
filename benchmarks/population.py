"""Sixty-four candidates for a head trained together against the same ones one after another.

    python benchmarks/population.py --rounds 3

Features are drawn from clusters, of the size of O*NET's (710 and 153 texts, 384 numbers, 22 classes); one torch thread.
Rounds of both sides alternate. Prints CPU and wall seconds, their ratio, and how far the scores of both sides are apart.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from training.fit_settings import FitSettings
from training.fitting.population import Candidate, Features, Outcome, Question, train_population

TEXTS, WIDTH, CLASSES = {"training": 710, "validation": 153}, 384, 22


def features(texts: int, seed: int) -> Features:
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, CLASSES, texts)
    centres = np.random.default_rng(99).normal(size=(CLASSES, WIDTH)) / 5
    return Features(torch.from_numpy((centres[labels] + chance.normal(size=(texts, WIDTH))).astype(np.float32)), torch.from_numpy(labels))


def candidates(count: int) -> list[Candidate]:
    chance = np.random.default_rng(1)
    rates = 10 ** chance.uniform(-3.5, -2, count)
    sizes, dropouts = chance.choice([0, 128, 256], count), chance.uniform(0, 0.4, count)
    return [
        Candidate(int(size), float(dropout), "softmax", float(rate)) for size, dropout, rate in zip(sizes, dropouts, rates, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    training, validation = (features(texts, seed) for seed, texts in enumerate(TEXTS.values()))
    every, question = candidates(options.count), Question("category", CLASSES)
    settings = FitSettings(epochs=30, patience=30, batch_texts=44)
    spent: dict[str, list[tuple[float, float]]] = {"together": [], "one after another": []}
    found: dict[str, list[Outcome]] = {}
    for _ in range(options.rounds):
        for side, groups in (("together", [every]), ("one after another", [[one] for one in every])):
            cpu, wall = time.process_time(), time.perf_counter()
            found[side] = [one for group in groups for one in train_population(group, question, training, validation, settings)]
            spent[side].append((time.process_time() - cpu, time.perf_counter() - wall))
    medians = {side: [statistics.median(column) for column in zip(*rounds, strict=True)] for side, rounds in spent.items()}
    for side, (cpu, wall) in medians.items():
        print(f"{side:<18} {cpu:6.1f} CPU s  {wall:6.1f} s   (median of {options.rounds})")
    apart = [abs(one.score - other.score) for one, other in zip(found["together"], found["one after another"], strict=True)]
    print(f"ratio              {medians['one after another'][0] / medians['together'][0]:.2f} in CPU seconds")
    print(f"scores             {sum(one < 1e-6 for one in apart)} of {len(apart)} equal, at most {max(apart):.4f} apart")


if __name__ == "__main__":
    main()
