"""Two hundred thousand texts: does the cache keep its bound, and does the search stay in bounded memory?

    python benchmarks/search_cost/many_texts.py --rows 200000

Texts are composed of words and numbers, with two heads that can be learned from them. One search with room for all activations on disk,
then one with room for the pooled vectors only, so that the top layer reads token ids. Each trains two trials of one epoch. Prints the bytes
of the cache against its bound, the most memory that any one process held (mapped files included), CPU seconds of all processes and wall
time.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from meter import measure

JOBS = ("nurse", "driver", "teacher", "cook", "welder", "clerk", "doctor", "farmer")
PLACES = ("hospital", "harbour", "school", "kitchen", "factory", "office", "village", "airport")
LEVELS = ("none", "school", "vocational", "bachelor", "master")


def write_table(path: Path, rows: int) -> None:
    chance = np.random.default_rng(0)
    jobs, places, levels = (chance.integers(0, len(names), rows) for names in (JOBS, PLACES, LEVELS))
    with path.open("w", encoding="utf-8") as file:
        file.write("text,job,level\n")
        for row, (job, place, level) in enumerate(zip(jobs, places, levels, strict=True)):
            file.write(f"{JOBS[job]} at the {PLACES[place]} {row} {LEVELS[level]},{JOBS[job]},{LEVELS[level]}\n")


def run(folder: Path, name: str, most_bytes: int) -> None:
    settings = {
        "cluster": {"storage": str(folder / name)},
        "training": {
            "data": {"files": [str(folder / "table.csv")], "text": "{text}"},
            "heads": {"job": {}, "level": {"ordered": True, "classes": list(LEVELS)}},
            "encoder": {"max_tokens": 16},
            "fit": {"epochs": 1, "frozen_layers": 5, "batch_texts": 256},
            "activations": {"most_bytes": most_bytes},
            "tuning": {"num_samples": 2, "confirm_top": 0},
        },
    }
    config = folder / f"{name}.yaml"
    config.write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "training", "tune", "--config", str(config), "--name", "one"]
    most = [0]

    def look(_: object) -> bool:
        files = (folder / name / "activations").glob("*/activations")
        most[0] = max(most[0], sum(file.stat().st_blocks * 512 for file in files))
        return False

    log = folder / f"{name}.log"
    meter = measure(command, {"PYTHONPATH": str(Path(__file__).parents[2])}, folder, look, log)
    record = json.loads((folder / name / "searches" / "one" / "result.json").read_text(encoding="utf-8"))
    print(
        f"{name:<8} cache {most[0] / 1e9:.2f} of at most {most_bytes / 1e9:.2f} GB, {meter.peak_bytes / 1e9:.1f} GB in the largest process,"
    )
    print(f" {record['worker_bytes'] / 1e9:.1f} GB of a worker's own, {meter.cpu_s:.0f} CPU s, {meter.wall_s:.0f} s")
    print(f"         {record['headline']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="many"))
    write_table(folder / "table.csv", options.rows)
    run(folder, "roomy", 20_000_000_000)
    # A pooled vector a text, 384 numbers of two bytes, and a quarter more.
    run(folder, "tight", int(1.25 * options.rows * 384 * 2))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
