"""Sixty-five heads trained together against the same ones one after another, as torch alone would train them.

    python benchmarks/population.py --rounds 3

Thirteen candidates, each trained for four folds and on all texts. Features are drawn from clusters, of the size of O*NET's (710 texts, 384
numbers, 22 classes); one torch thread. Rounds of both sides alternate. Prints CPU and wall seconds, their ratio, and how far the
cross-validated scores of both sides are apart; dropout is off, since two generators draw differently.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from training.fit_settings import FitSettings
from training.fitting.optimiser import schedule
from training.fitting.population import Candidate, Features, Question, train_population
from training.judging.metrics import confusion, macro_f1
from training.network.model import Head

TEXTS, WIDTH, CLASSES, FOLDS = 710, 384, 22, 4
SETTINGS = FitSettings(epochs=12, patience=12, batch_texts=59)


def make_features() -> Features:
    chance = np.random.default_rng(0)
    labels = chance.integers(0, CLASSES, TEXTS)
    centres = np.random.default_rng(99).normal(size=(CLASSES, WIDTH)) / 5
    pooled = torch.from_numpy((centres[labels] + chance.normal(size=(TEXTS, WIDTH))).astype(np.float32))
    return Features(pooled, torch.from_numpy(labels), torch.arange(TEXTS) % FOLDS)


def make_candidates(count: int) -> list[Candidate]:
    chance = np.random.default_rng(1)
    rates, sizes = 10 ** chance.uniform(-3.5, -2, count), chance.choice([0, 128, 256], count)
    return [Candidate(int(size), 0.0, "softmax", float(rate)) for size, rate in zip(sizes, rates, strict=True)]


def alone(candidate: Candidate, features: Features) -> float:
    """Train a candidate's heads one after another; return its best cross-validated score."""
    answers = torch.zeros(SETTINGS.epochs, TEXTS, CLASSES)
    for fold in range(FOLDS + 1):
        learns = features.folds != fold
        for epoch, head in enumerate(epochs_of(candidate, features, learns)):
            if not bool(learns.all()):
                with torch.no_grad():
                    answers[epoch, ~learns] = head(features.pooled[~learns])
    truth = features.labels.numpy()
    return max(macro_f1(confusion(truth, one.argmax(dim=1).numpy(), CLASSES)) for one in answers)


def epochs_of(candidate: Candidate, features: Features, learns: torch.Tensor):  # type: ignore[no-untyped-def]
    torch.manual_seed(SETTINGS.seed)
    head = Head(WIDTH, CLASSES, candidate.hidden_size, 0.0)
    matrices, biases = ([one for one in head.parameters() if (one.dim() > 1) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": SETTINGS.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=candidate.learning_rate, fused=True)
    for number in range(1, SETTINGS.epochs + 1):
        generator = torch.Generator().manual_seed(SETTINGS.seed * 100_003 + number)
        batches = torch.randperm(TEXTS, generator=generator).split(SETTINGS.batch_texts)
        for position, indices in enumerate(batches):
            # What the population's dropout draws, though it drops nothing.
            for width in (WIDTH, candidate.hidden_size) if candidate.hidden_size else (WIDTH,):
                torch.rand((len(indices), width), generator=generator)
            own = indices[learns[indices]]
            for group in optimiser.param_groups:
                progress = (number - 1 + position / len(batches)) / SETTINGS.epochs
                group["lr"] = candidate.learning_rate * schedule(progress, SETTINGS.warmup_fraction)
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(head(features.pooled[own]), features.labels[own]).backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), SETTINGS.max_gradient_norm)
            optimiser.step()
        yield head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=13, help="candidates, each of five heads (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    features, candidates, question = make_features(), make_candidates(options.count), Question("category", CLASSES)
    sides = {
        "together": lambda: [one.score for one in train_population(candidates, question, features, SETTINGS)],
        "one after another": lambda: [alone(candidate, features) for candidate in candidates],
    }
    spent: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    found: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for side, train in sides.items():
            cpu, wall = time.process_time(), time.perf_counter()
            found[side] = train()
            spent[side].append((time.process_time() - cpu, time.perf_counter() - wall))
    medians = {side: [statistics.median(column) for column in zip(*rounds, strict=True)] for side, rounds in spent.items()}
    for side, (cpu, wall) in medians.items():
        print(f"{side:<18} {cpu:6.1f} CPU s  {wall:6.1f} s   (median of {options.rounds})")
    apart = [abs(one - other) for one, other in zip(found["together"], found["one after another"], strict=True)]
    print(f"ratio              {medians['one after another'][0] / medians['together'][0]:.2f} in CPU seconds")
    print(f"scores             {sum(one < 1e-6 for one in apart)} of {len(apart)} equal, at most {max(apart):.4f} apart")


if __name__ == "__main__":
    main()
