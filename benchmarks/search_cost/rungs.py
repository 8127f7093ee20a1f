"""What does a rung of the ladder say of the next one?

    python benchmarks/search_cost/rungs.py kldb --data FOLDER --trials 20

Searches as `search_cost.py` does, with so many trials, and prints what the search itself measured: Spearman's rank correlation between
rungs, over how many configurations, and what it cost. Those that were passed over have no score on the next rung, and those that did not
climb none on the last: over all configurations a correlation may be higher. How much narrower the lower scores of the others are is said
beside it, and counts where the ladder asks whether the rung tells anything.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from meter import measure
from search_cost import CASES, settings_of, write_tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    case, folder = CASES[options.case], Path(tempfile.mkdtemp(prefix="cost"))
    write_tables(case, options.data, folder)
    config = folder / "ours.json"
    config.write_text(json.dumps(settings_of(case, folder, options.seed, options.trials)), encoding="utf-8")
    command = [sys.executable, "-m", "training", "tune", "--config", str(config), "--name", "one"]
    meter = measure(command, {"PYTHONPATH": str(Path(__file__).parents[2])}, folder, lambda _: False, folder / "ours.log")
    record = json.loads((folder / "storage/searches/one/result.json").read_text(encoding="utf-8"))
    print(f"{options.case}, seed {options.seed}, {len(record['trials'])} trials: {meter.cpu_s:.0f} CPU s, {meter.wall_s:.0f} s")
    for one in record["rungs"]:
        said = "not known" if one["correlation"] is None else f"{one['correlation']:+.2f}"
        narrower = f", whose lower scores are {one['restriction']:.2f} times narrower than all"
        print(f"{one['lower']} and {one['higher']}: {said}, over {one['pairs']} configurations that were let through{narrower}")
    best = max(record["trials"], key=lambda trial: trial["score"] or 0.0)
    print(f"best trial: {best['score']:.3f}, {best['origin']}, epoch {best['best_epoch']}")
    for note in record["notes"]:
        print(f"note: {note}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
