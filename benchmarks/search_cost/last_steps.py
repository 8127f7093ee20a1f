"""What do the last steps bring: averaging the last epochs' weights, and training once more on the validation texts too?

    python benchmarks/search_cost/last_steps.py kldb --data FOLDER --seeds 0 1 2 --out RESULTS

Trains the default configuration as a search of one trial does, once a seed and variant: plain, with `fit.average_epochs`, with
`tuning.refit`, with both. Prints what each cost and both heads' macro-F1 on test rows that no search has chosen by, against plain, with
the paired 95 % interval over rows and seeds.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from search_cost import CASES, Case, write_tables
from with_and_without import answers, print_comparisons, run, settings_of

from training.data.dataset import load_dataset
from training.judging.comparison import Answers, compare
from training.settings import TrainingSettings

PLAIN = "plain"
# Name → `fit.average_epochs`, `tuning.refit`.
VARIANTS = {PLAIN: (False, False), "averages": (True, False), "refit": (False, True), "averages and refit": (True, True)}


def settings_with(case: Case, folder: Path, seed: int, variant: str) -> dict[str, Any]:
    """Return the settings of one training; its storage is named after seed and variant."""
    settings = settings_of(case, folder, seed, 1, None, ladder=True)
    average, refit = VARIANTS[variant]
    settings["cluster"]["storage"] = str(folder / f"{variant.replace(' ', '-')}-{seed}")
    settings["training"]["fit"]["average_epochs"] = average
    settings["training"]["tuning"]["refit"] = refit
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    case, folder = CASES[options.case], Path(tempfile.mkdtemp(prefix="last"))
    options.out.mkdir(parents=True, exist_ok=True)
    write_tables(case, options.data, folder)
    settings = TrainingSettings.model_validate(settings_with(case, folder, 0, PLAIN)["training"])
    examples = load_dataset(settings).test
    costs: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    sides: dict[str, list[Answers]] = {variant: [] for variant in VARIANTS}
    for seed in options.seeds:
        for variant in VARIANTS:
            meter, best = run(settings_with(case, folder, seed, variant), folder, float("inf"))
            costs[variant].append(meter.cpu_s)
            sides[variant].append(answers(best, examples.texts, case.max_tokens))
            print(f"seed {seed}  {variant:<20} {meter.cpu_s:5.0f} CPU s", flush=True)
    found = {variant: compare(settings, examples, PLAIN, sides[variant], sides[PLAIN]) for variant in VARIANTS if variant != PLAIN}
    for variant, cpu_s in costs.items():
        print(f"{variant:<20} {statistics.median(cpu_s):5.0f} CPU s at the median")
        print_comparisons(found.get(variant, []))
    facts = {"case": options.case, "seeds": options.seeds, "cpu_s": costs, "comparisons": found}
    (options.out / f"last_steps_{options.case}.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
