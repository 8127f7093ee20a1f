"""Our search with the ladder, at a fifth of the CPU seconds, against the same search without it.

    python benchmarks/search_cost/with_and_without.py kldb --data FOLDER --trials 4 --seed 0 --out RESULTS

The search without the ladder runs to its end: every trial trains all layers from the start, the worse ones are stopped early. Then the
search with the ladder gets a fifth of the CPU seconds, counted like the first one's over all processes, Ray's own among them: it is stopped
a little before, for writing the version counts too. Its progress is kept beside the figures. Prints both costs and both published versions'
macro-F1 on the test rows, which neither search has chosen by, with the paired 95 % interval of their difference.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meter import Meter, measure
from search_cost import CASES, Case, write_tables

from training.data.dataset import load_dataset
from training.data.tokens import Tokenizer
from training.fitting.predict import predict_logits
from training.judging.comparison import Answers, compare
from training.judging.metrics import probabilities
from training.network.inputs import TokenInputs
from training.network.model import TwoHeadBert
from training.settings import TrainingSettings

# Of a fifth, .03 are for writing and judging the version.
STOP_AT = 0.17


def settings_of(case: Case, folder: Path, seed: int, trials: int, cpus: int | None, *, ladder: bool) -> dict[str, Any]:
    """The rows that `search_cost.py` validates with are for the test here; another fifth of the rest validates."""
    split: dict[str, Any] = {"test_fraction": 0.0, "validation_fraction": 0.2, "seed": 0}
    return {
        "cluster": {"storage": str(folder / ("with" if ladder else "without")), "num_cpus": cpus},
        "training": {
            "data": {
                "files": [str(folder / "training.csv")],
                "test_files": [str(folder / "validation.csv")],
                "text": case.template,
                "split": split | ({"group_by": f"{{{case.group}[:{case.letters}]}}"} if case.group else {}),
            },
            "heads": {head: {} for head in case.heads},
            "encoder": {"max_tokens": case.max_tokens},
            "fit": {"seed": seed},
            "tuning": {"num_samples": trials, "confirm_top": 0, "seed": seed, "ladder": ladder},
        },
    }


def run(settings: dict[str, Any], folder: Path, most_cpu_s: float) -> tuple[Meter, Path]:
    """Return what a search cost and its best checkpoint."""
    name = Path(settings["cluster"]["storage"]).name
    config = folder / f"{name}.yaml"
    config.write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "training", "tune", "--config", str(config), "--name", "one"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    meter = measure(command, environment, folder, lambda meter: meter.cpu_s >= most_cpu_s, folder / f"{name}.log")
    return meter, Path(settings["cluster"]["storage"]) / "searches" / "one" / "best"


def answers(checkpoint: Path, texts: Sequence[str], max_tokens: int) -> Answers:
    """Answer with a checkpoint as it would be published, its temperatures left out: they move no class."""
    model, tokenizer = TwoHeadBert.from_pretrained(checkpoint), Tokenizer(checkpoint, max_tokens)
    logits = predict_logits(model, TokenInputs(tokenizer.encode(texts), tokenizer.pad_id), 2048)
    return {head: probabilities(values) for head, values in logits.items()}


def print_comparisons(found: Sequence[Mapping[str, Any]]) -> None:
    for one in found:
        ends = f"[{one['low']:+.3f}, {one['high']:+.3f}]"
        print(f"{one['head'] or 'all':<12} {one['ours']:.3f} against {one['theirs']:.3f}: {one['difference']:+.3f} {ends} {one['verdict']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpus", type=int, help="that Ray offers; all of this machine by default")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    case, folder = CASES[options.case], Path(tempfile.mkdtemp(prefix="cost"))
    options.out.mkdir(parents=True, exist_ok=True)
    write_tables(case, options.data, folder)
    plain, climbing = (settings_of(case, folder, options.seed, options.trials, options.cpus, ladder=ladder) for ladder in (False, True))
    settings = TrainingSettings.model_validate(plain["training"])
    examples = load_dataset(settings).test
    without, theirs = run(plain, folder, float("inf"))
    print(f"without the ladder  {without.cpu_s:7.0f} CPU s  {without.wall_s:6.0f} s", flush=True)
    with_it, ours = run(climbing, folder, STOP_AT * without.cpu_s)
    shutil.copy(folder / "with.log", options.out / f"with_{options.case}.log")
    print(f"with the ladder     {with_it.cpu_s:7.0f} CPU s  {with_it.wall_s:6.0f} s   ratio {without.cpu_s / with_it.cpu_s:.1f}")
    sides = [[answers(checkpoint, examples.texts, case.max_tokens)] for checkpoint in (ours, theirs)]
    found = compare(settings, examples, "without the ladder", *sides)
    print_comparisons(found)
    facts = {"case": options.case, "seed": options.seed, "cpu_s": [with_it.cpu_s, without.cpu_s], "comparisons": found}
    (options.out / f"with_and_without_{options.case}.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
