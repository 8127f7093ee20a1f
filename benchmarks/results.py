"""Searches on real data and prints a row of RESULTS.md for every comparison.

    python benchmarks/results.py benchmarks/configs/onet.yaml --data FOLDER     searches, then prints
    python benchmarks/results.py --record .twohead/searches/NAME/result.json    prints what an earlier search found

FOLDER holds the tables the configuration names. Everything else is `python -m training tune --compare-single`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from real_data import table_overrides

from cluster.settings import load_settings as load_cluster_settings
from training.search.tuning import search
from training.settings import load_settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    if options.record is None and (options.config is None or options.data is None):
        parser.error("give CONFIG and --data FOLDER, or --record FILE")
    record = json.loads(options.record.read_text()) if options.record else find(options.config, options.data, options.overrides)
    print(render(record))


def find(config: Path, data: Path, overrides: list[str]) -> dict[str, Any]:
    overrides = [*table_overrides(config, data), *overrides]
    settings = load_settings(config, ["training.tuning.compare_single=true", *overrides])
    return dict(search(settings, load_cluster_settings(config, overrides)).record)


def render(record: dict[str, Any]) -> str:
    lines = [
        record["headline"],
        "",
        "The two sides, each the mean over its trainings:",
        "",
        "| head | metric | searched model | against | theirs | difference [95 %] | verdict |",
        "|---" * 7 + "|",
    ]
    for one in record["comparisons"]:
        difference = f"{one['difference']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"
        head = one["head"] or "all heads"
        lines.append(
            f"| {head} | {one['metric']} | {one['ours']:.3f} | {one['against']} | {one['theirs']:.3f} | {difference} | {one['verdict']} |"
        )
    lines += [
        "",
        "The published checkpoint:",
        "",
        "| head | accuracy | macro-F1 [95 %] | calibration error before → after | wanted | coverage, precision on test |",
    ]
    lines.append("|---" * 6 + "|")
    for head in record["heads"]:
        figures, (low, high) = record["metrics"]["test"][head], record["intervals"][head]["macro_f1"]
        errors, answers = record["calibration"][head]["test"], record["abstention"][head]
        reached = f"{answers['test']['coverage']:.2f}, {answers['test']['precision'] or float('nan'):.3f}" if answers["target"] else "–"
        lines.append(
            f"| {head} | {figures['accuracy']:.3f} | {figures['macro_f1']:.3f} [{low:.3f}, {high:.3f}] "
            f"| {errors['ece_before']:.3f} → {errors['ece_after']:.3f} | {answers['target'] or '–'} | {reached} |"
        )
    lines.append(f"\n{len(record['trials'])} trials, {record['seconds'] / 60:.0f} minutes, {record['cpu_seconds'] / 60:.0f} CPU minutes.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
