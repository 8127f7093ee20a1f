"""Do heads on frozen vectors answer better where rare classes weigh more?

    PYTHONPATH=. python benchmarks/class_weighting.py --data FOLDER --tables kldb --seeds 7

FOLDER holds the tables that the configurations of `benchmarks/configs` name. Of each table the test texts are put away; the others are cut
into six parts, groups whole, and every seed answers another part (from the seventh on, of another cut). The first rung finds the best
linear head on the other five for each way to weigh classes, with the same proposals for all. Prints macro-F1 and accuracy on what is
answered, and over the seeds the paired differences to `none` with 95 % intervals (Student's t; heads of two seeds learn partly from the
same texts, so these are too narrow rather than too wide).
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from real_data import table_overrides
from scipy.stats import t as student

from training.data.dataset import Dataset, Examples, folds_of, load_dataset
from training.data.tokens import Tokenizer
from training.fit_settings import ClassWeighting
from training.judging.metrics import majority_class, measure_head, probabilities
from training.network.encoder import encoder_layers, find_encoder
from training.network.model import Head
from training.network.prefix import prefix_rows
from training.search.prepared import make_assignment
from training.search.proposing.search_space import trial_settings
from training.search.trials.assignment import Assignment
from training.search.trials.build import build_model
from training.search.trials.first_look import words_say
from training.search.trials.heads_alone import explore_head
from training.settings import TrainingSettings, load_settings

WAYS: tuple[ClassWeighting, ...] = get_args(ClassWeighting)
MEASURES = ("macro_f1", "accuracy")
PARTS = 6
Figures = dict[ClassWeighting, tuple[float, ...]]


class Table:
    """A table without its test texts, tokens and pooled vectors of the frozen encoder once for all seeds."""

    def __init__(self, settings: TrainingSettings) -> None:
        whole = load_dataset(settings)
        self._settings, self._dataset, self._pool = settings, whole, joined(whole.training, whole.validation)
        self._source = find_encoder(settings.encoder)
        self._tokenizer = Tokenizer(self._source.folder, self._source.max_tokens)
        plain = self.assignment(settings, np.arange(len(self._pool)), np.arange(0), with_words=False)
        model = build_model(plain, trial_settings(settings, {}))
        depth = len(encoder_layers(model.encoder))
        self._pooled = prefix_rows(model, plain.tokens["training"], plain.pad_id, [depth])[depth]

    def assignment(
        self, settings: TrainingSettings, learned: NDArray[np.int64], answered: NDArray[np.int64], *, with_words: bool
    ) -> Assignment:
        """Divide the texts, and find what words say of those to answer."""
        heads = {name: one.model_copy(update={"word_pieces": one.word_pieces and with_words}) for name, one in settings.heads.items()}
        own = settings.model_copy(update={"heads": heads})
        pool = self._pool
        dataset: Dataset = replace(self._dataset, training=pool.take(learned), validation=pool.take(answered), test=pool.take([]))
        return make_assignment(own, dataset, self._source, self._tokenizer)

    def figures(self, seed: int, *, with_words: bool) -> dict[str, Figures]:
        """Return for each head and way its figures, in the order of `MEASURES`, with one part of the texts to answer."""
        cut, part = divmod(seed, PARTS)
        parts = folds_of(self._pool, PARTS, cut)
        learned, answered = np.flatnonzero(parts != part), np.flatnonzero(parts == part)
        settings = seeded(self._settings, seed)
        shared = self.assignment(settings, learned, answered, with_words=with_words)
        said = words_say(shared)
        found: dict[str, Figures] = {head: {} for head in settings.heads}
        for way in WAYS:
            space = settings.search_space.model_copy(update={"class_weighting": way})
            own = replace(shared, settings=shared.settings.model_copy(update={"search_space": space}))
            for head in settings.heads:
                logits = best_answers(own, head, self._pooled[torch.from_numpy(learned)], self._pooled[torch.from_numpy(answered)])
                found[head][way] = measured(own, head, logits + said[head] if head in said else logits)
        return found


def joined(training: Examples, validation: Examples) -> Examples:
    labels = {head: np.concatenate([own, validation.labels[head]]) for head, own in training.labels.items()}
    groups = None if training.groups is None else (*training.groups, *(validation.groups or ()))
    return Examples((*training.texts, *validation.texts), labels, (*training.rows, *validation.rows), groups)


def seeded(settings: TrainingSettings, seed: int) -> TrainingSettings:
    own = {"fit": settings.fit.model_copy(update={"seed": seed}), "tuning": settings.tuning.model_copy(update={"seed": seed})}
    return settings.model_copy(update=own)


@torch.no_grad()
def answers_of(head: Head, pooled: torch.Tensor) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = head.eval()(pooled).numpy()
    return logits


def best_answers(assignment: Assignment, head: str, learned: torch.Tensor, answered: torch.Tensor) -> NDArray[np.float32]:
    """Let the first rung find the head, and answer with it."""
    rung = explore_head(assignment, head, learned)
    best = rung.heads[head].best[0]
    module = Head(learned.shape[1], len(assignment.classes[head]), best.hidden_size, best.dropout, best.loss)
    prefix = f"{head}/{best.hidden_size}/{best.loss}/{best.class_weighting}/"
    module.load_state_dict({name.removeprefix(prefix): value for name, value in rung.tensors.items() if name.startswith(prefix)})
    return answers_of(module, answered)


def measured(assignment: Assignment, head: str, logits: NDArray[np.float32]) -> tuple[float, ...]:
    majority = majority_class(assignment.labels["training"][head], len(assignment.classes[head]))
    is_ordered = assignment.settings.heads[head].ordered
    found = measure_head(assignment.labels["validation"][head], probabilities(logits), majority, is_ordered=is_ordered).to_dict()
    return tuple(found[name] for name in MEASURES)


def difference(own: Sequence[float], other: Sequence[float]) -> str:
    """Write a mean paired difference with its interval."""
    apart = np.array(own) - np.array(other)
    if len(apart) == 1:
        return f"{apart[0]:+.4f}"
    half = float(student.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / np.sqrt(len(apart)))
    return f"{apart.mean():+.4f} [{apart.mean() - half:+.4f}, {apart.mean() + half:+.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tables", nargs="+", default=["kldb"], help="names of configurations (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=7, help="how many (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=4, help="for each way and head (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=2000, help="of each table (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=4.0, help="no seed begins later (default: %(default)s)")
    parser.add_argument("--without-words", action="store_true", help="heads add nothing to what they read from the encoder")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.monotonic()
    for name in options.tables:
        config = Path(__file__).parent / "configs" / f"{name}.yaml"
        fixed = [f"training.tuning.head_candidates={options.candidates}", f"training.data.max_rows={options.rows}"]
        fixed += ["training.search_space.hidden_size=0", "training.search_space.loss=softmax"]
        table = Table(load_settings(config, [*table_overrides(config, options.data), *fixed, *options.overrides]))
        found: list[dict[str, Figures]] = []
        for seed in range(options.seeds):
            if time.monotonic() - begun > 60 * options.minutes:
                break
            found.append(table.figures(seed, with_words=not options.without_words))
            for head, one in found[-1].items():
                shown = "  ".join(f"{way} {' '.join(f'{value:.3f}' for value in figures)}" for way, figures in one.items())
                print(f"{name:9} seed {seed}  {head:15} {shown}", flush=True)
        for head in found[0] if found else ():
            for place, measure in enumerate(MEASURES):
                sides = {way: [one[head][way][place] for one in found] for way in WAYS}
                means = "  ".join(f"{way} {np.mean(values):.4f}" for way, values in sides.items())
                print(f"{name:9} {head:15} {measure:9} {means}   over {len(found)} seeds")
                for way in WAYS[1:]:
                    print(f"{'':36}{way} - none {difference(sides[way], sides['none'])}")
    print(f"{(time.monotonic() - begun) / 60:.1f} min")


if __name__ == "__main__":
    main()
