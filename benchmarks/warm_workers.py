"""Trials one after another in one process: how long each takes to begin, and whether the process grows.

    python benchmarks/warm_workers.py benchmarks/configs/onet.yaml --data FOLDER --trials 30

FOLDER holds the tables the configuration names. Every trial reads the activations that are kept, trains one epoch on the first texts and is
saved, as inside Ray Tune but without it. Begins with one trial in a process of its own, the cold start. Prints seconds from the order to
the first training step, median and worst, with CPU seconds beside them; their ratio to the cold start; and the memory of the process that
is its own (anonymous pages, so not the mapped activations that all processes share) after the first, fifth and last trial.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

STARTED = time.monotonic()


def own_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--rows", type=int, default=300, help="of the table (default: %(default)s)")
    parser.add_argument("--storage", help="where activations are kept (default: a new folder)")
    options = parser.parse_args()
    storage = options.storage or tempfile.mkdtemp(prefix="warm")
    if options.storage is None:
        # Twice: the first one computes the activations.
        again = [sys.executable, __file__, str(options.config), "--data", str(options.data), "--rows", str(options.rows)]
        for _ in range(2):
            cold = subprocess.run([*again, "--storage", storage, "--trials", "1"], check=True, capture_output=True, text=True).stdout
        print(f"cold start         {cold.strip()}")
    starts = run(options.config, options.data, options.rows, options.trials, storage, is_cold=options.storage is not None)
    if options.storage is not None:
        print(f"{starts[0][0]:.2f} s  {starts[0][1]:.2f} CPU s")
        return
    wall, cpu = (statistics.median(column) for column in zip(*starts[1:], strict=True))
    print(f"start of a trial   {wall:.2f} s  {cpu:.2f} CPU s (median), {max(one for one, _ in starts[1:]):.2f} s at worst")
    print(f"ratio              {float(cold.split()[0]) / wall:.1f}")


def run(config: Path, data: Path, rows: int, trials: int, storage: str, *, is_cold: bool) -> list[tuple[float, float]]:
    from real_data import table_overrides

    from training.data.dataset import load_dataset
    from training.data.tokens import Tokenizer
    from training.fitting.memory import epochs_within_memory
    from training.fitting.step import Step
    from training.network.encoder import find_encoder
    from training.search.prepared import make_assignment
    from training.search.trials.assignment import Order
    from training.search.trials.work import Work
    from training.settings import load_settings

    limits = [f"training.data.max_rows={rows}", "training.fit.epochs=1", "training.tuning.ladder=false"]
    settings = load_settings(config, [*table_overrides(config, data), *limits])
    source = find_encoder(settings.encoder)
    assignment = make_assignment(settings, load_dataset(settings), source, Tokenizer(source.folder, source.max_tokens), storage)
    starts: list[tuple[float, float]] = []
    take, begun = Step.take, [0.0, 0.0]

    def first_step(self: Step, batches: Any) -> Any:
        if begun[0]:
            starts.append((time.monotonic() - begun[0], time.process_time() - begun[1]))
            begun[0] = 0.0
        return take(self, batches)

    Step.take = first_step  # type: ignore[method-assign]
    scores: list[float] = []

    def report(metrics: Mapping[str, Any], _: Path | None) -> None:
        scores.append(metrics["score"])

    for number in range(trials):
        begun[:] = [STARTED, 0.0] if is_cold else [time.monotonic(), time.process_time()]
        order = Order(f"trial-{number}", "trial", number, tuple(settings.heads), {"batch_tokens": 1024 * 2 ** (number % 3)}, 7)
        work = Work(replace(order), assignment)
        work.report_epochs(work.epochs(epochs_within_memory), report)
        if not is_cold and number + 1 in (1, 5, 10, 15, 20, 25, trials):
            print(f"after trial {number + 1:>2}     {own_bytes() / 1e6:.0f} MB of its own, score {scores[-1]:.4f}", flush=True)
    return starts


if __name__ == "__main__":
    main()
