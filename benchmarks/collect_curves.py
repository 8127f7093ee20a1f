"""Records whole learning curves of random configurations, for `replay_search.py` to search in.

    python benchmarks/collect_curves.py CONFIG OUT.json --count 48

CONFIG is a ray_config.yaml with data, heads, fit and search_space. Every configuration trains all its epochs, without early
stopping, with a seed of its own; written down are the validation figures of every epoch and the CPU seconds of this process. No text
is written.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import optuna
import torch

from training.data.dataset import load_dataset
from training.data.tokens import Tokenizer
from training.network.encoder import find_encoder
from training.search.prepared import make_assignment
from training.search.proposing.search_space import dimensions, first_points, trial_settings
from training.search.trials.build import prepare_fit
from training.search_settings import Choices
from training.settings import TrainingSettings, load_settings


def propose(settings: TrainingSettings, count: int, seed: int) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    points = first_points(settings)
    while len(points) < count:
        trial = study.ask()
        points.append({path: _suggest(trial, path, dimension) for path, dimension in dimensions(settings).items()})
    return points[:count]


def _suggest(trial: optuna.Trial, path: str, dimension: Any) -> Any:
    if isinstance(dimension, Choices):
        return trial.suggest_categorical(path, dimension.choices)
    return trial.suggest_float(path, dimension.low, dimension.high, log=dimension.log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    settings = load_settings(options.config, [])
    source = find_encoder(settings.encoder)
    tokenizer = Tokenizer(source.folder, source.max_tokens)
    assignment = make_assignment(settings, load_dataset(settings), source, tokenizer, str(Path(".twohead").resolve()))
    curves = []
    for position, point in enumerate(propose(settings, options.count, options.seed)):
        trial = trial_settings(settings, point)
        fit_settings = trial.fit.model_copy(update={"patience": trial.fit.epochs, "seed": options.seed + position})
        fit = prepare_fit(assignment, type(trial)(fit_settings, trial.heads))
        epochs, started = [], time.process_time()
        for epoch in fit.epochs():
            epochs.append({"cpu_s": round(time.process_time() - started, 3), "score": epoch.score, "metrics": epoch.metrics})
        curves.append({"point": point, "epochs": epochs})
        print(
            f"{position + 1} of {options.count}: best {max(epoch['score'] for epoch in epochs):.3f}, {epochs[-1]['cpu_s']:.0f} s",
            flush=True,
        )
        options.out.write_text(json.dumps({"heads": list(settings.heads), "curves": curves}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
