"""Repeats each drill on one deployment, in turn, and prints what became of the requests.

    python -m benchmarks.drills --times 20
    python -m benchmarks.drills --only swap,kill --times 1

Two clients ask 20 times a second each: one sends every request once, the other is ours, which sends again what was not answered.
"""

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks.drills.asking import causes_of
from benchmarks.drills.drills import DRILLS, Drill, Told, is_kept, run
from benchmarks.drills.house import house
from benchmarks.over_http.made import write_version

REPLICAS = 3
HEAD = f"{'':<24}{'times':>6}{'once':>9}{'lost':>8}{'most':>8}{'again':>9}{'lost':>8}{'silence':>9}{'most':>8}{'whole s':>9}{'most':>8}"


def line(drill: Drill, told: list[Told]) -> str:
    """One row of the table."""
    once, again = sum(len(one.once.failed) for one in told), sum(len(one.again.failed) for one in told)
    asked = sum(one.once.begun for one in told), sum(one.again.begun for one in told)
    silences, wholes = [one.again.silence_s() for one in told], [one.whole_s for one in told]
    return (
        f"{drill.name:<24}{len(told):>6}{asked[0]:>9}{once:>8}{max(len(one.once.failed) for one in told):>8}{asked[1]:>9}{again:>8}"
        f"{statistics.median(silences):>9.2f}{max(silences):>8.2f}{statistics.median(wholes):>9.1f}{max(wholes):>8.1f}"
    )


def main() -> int:
    """Repeat, print, and fail where a request was lost that may not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="of each drill")
    parser.add_argument("--only", default="", help="parts of names, with commas between them")
    options = parser.parse_args()
    chosen = [drill for drill in DRILLS if any(part in drill.name for part in options.only.split(","))]
    found: dict[str, list[Told]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, house(write_version(Path(folder) / "made", "tiny"), REPLICAS) as home:
        for number in range(options.times):
            for drill in chosen:
                told = run(drill, home)
                found[drill.name].append(told)
                lost = [*told.once.failed, *told.again.failed]
                causes = dict(causes_of(lost)) or ""
                counts = f"{len(told.once.failed)} and {len(told.again.failed)}"
                print(f"{number + 1}: {drill.name}: {told.whole_s:.1f} s, {counts} requests lost {causes}", flush=True)
    print("\n" + HEAD)
    for drill in chosen:
        print(line(drill, found[drill.name]))
    return 0 if all(is_kept(drill, told) for drill in chosen for told in found[drill.name]) else 1


if __name__ == "__main__":
    sys.exit(main())
