"""What does a search cost? The recipe of a Ray user against this project's search, on the same rows, in one run.

    pip install --no-deps accelerate        # what the recipe's Trainer needs beside this project
    python benchmarks/search_cost/search_cost.py onet400 --data FOLDER --seeds 0 1 2 --out RESULTS

FOLDER holds the real tables (`onet/occupations.csv`, `kldb/titles.csv`). For every seed the recipe (`recipe.py`) runs to its end, then our
search until it has used as many CPU seconds, or has tried its trials. Measured are CPU seconds of all processes, Ray's own among them, and
wall time. Prints, by seed: the recipe's final score and cost; CPU seconds until our search first held that score, and the ratio; the same
until a model held it that can be published if the search is stopped, for a look at a sample is no model; our best model's score at the
recipe's cost. RESULTS gets the readings as JSON and the curves as SVG. Scores are mean macro-F1 of both heads on the validation rows.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from curve import draw_curves
from meter import Meter, measure

from training.data.dataset import load_dataset
from training.network.encoder import find_encoder
from training.settings import TrainingSettings

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """A table and two questions about its texts.

    Attributes:
        file: Below the data folder.
        template: Of the text.
        heads: Columns.
        max_tokens: Of a text.
        rows: As many are taken after a shuffle with seed 0; all, where null.
        group: Rows whose values of this column begin with the same letters stay together.
        letters: So many.
        without: Rows of this class of the first head are left out: too few to stand on both sides.
    """

    file: str
    template: str
    heads: tuple[str, str]
    max_tokens: int
    rows: int | None = None
    group: str = ""
    letters: int = 0
    without: str = ""


CASES = {
    "onet400": Case("onet/occupations.csv", "{Title}. {Description} {tasks}", ("category", "edu5"), 256, 400),
    "onet": Case("onet/occupations.csv", "{Title}. {Description} {tasks}", ("category", "edu5"), 256),
    "kldb": Case("kldb/titles.csv", "{beruf}", ("bereich", "niveau"), 32, 5_000, "code", 4, "Militär"),
}


@dataclass
class Curve:
    """Best scores over cost.

    Attributes:
        points: (CPU seconds, wall seconds, best score so far), whenever it rose.
        saved: The same of scores whose model can be published if the search is stopped.
        cpu_s: Of the whole command.
        wall_s: Of the whole command.
        peak_bytes: Most memory that one of its processes held.
        gpu_busy: Share of the time in which the GPU computed.
    """

    points: list[tuple[float, float, float]] = field(default_factory=list)
    saved: list[tuple[float, float, float]] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0
    peak_bytes: int = 0
    gpu_busy: float = 0.0

    def note(self, meter: Meter, saved: Sequence[float], looks: Sequence[float] = ()) -> None:
        """Take in the scores reported so far, of models that can be published and of mere looks."""
        self.cpu_s, self.wall_s, self.peak_bytes = meter.cpu_s, meter.wall_s, meter.peak_bytes
        self.gpu_busy = statistics.mean(meter.gpu_busy or [0.0])
        for points, scores in ((self.points, [*saved, *looks]), (self.saved, saved)):
            now = max(scores, default=0.0)
            if now > best(points):
                points.append((meter.cpu_s, meter.wall_s, now))


def best(points: Sequence[tuple[float, float, float]], cpu_s: float = float("inf")) -> float:
    """Return the best score within so many CPU seconds."""
    return max((score for spent, _, score in points if spent <= cpu_s), default=0.0)


def until(points: Sequence[tuple[float, float, float]], score: float) -> tuple[float, float]:
    """Return CPU and wall seconds until a score was first held; not a number where it never was."""
    return next(((cpu, wall) for cpu, wall, reached in points if reached >= score), (float("nan"), float("nan")))


def write_tables(case: Case, data: Path, folder: Path) -> None:
    """Write training and validation rows, four to one."""
    table = pd.read_csv(data / case.file, dtype=str, keep_default_na=False).sample(frac=1, random_state=0)
    table = table[table[case.heads[0]] != case.without] if case.without else table
    table = table.head(case.rows) if case.rows else table
    if not case.group:
        held_out = table.index[int(0.8 * len(table)) :]
    else:
        groups = table[case.group].str[: case.letters]
        sizes = groups.value_counts()[groups.drop_duplicates()].cumsum()
        held_out = table.index[groups.isin(sizes.index[sizes > 0.8 * len(table)])]
    table.drop(held_out).to_csv(folder / "training.csv", index=False)
    table.loc[held_out].to_csv(folder / "validation.csv", index=False)


def settings_of(case: Case, folder: Path, seed: int, trials: int, gpu: float = 0.0) -> dict[str, Any]:
    """Return the settings of our search: nothing but what the recipe is told as well."""
    return {
        "cluster": {"storage": str(folder / "storage")},
        "training": {
            "data": {
                "files": [str(folder / "training.csv")],
                "validation_files": [str(folder / "validation.csv")],
                "text": case.template,
                "split": {"test_fraction": 0.0},
            },
            "heads": {head: {} for head in case.heads},
            "encoder": {"max_tokens": case.max_tokens},
            "fit": {"seed": seed},
            "tuning": {"num_samples": trials, "confirm_top": 0, "seed": seed, "resources_per_trial": {"cpu": 1, "gpu": gpu}},
        },
    }


def run_recipe(case: Case, folder: Path, seed: int, encoder: Path, gpu: float) -> Curve:
    curve, log = Curve(), folder / "recipe.log"
    tables = ["--training", str(folder / "training.csv"), "--validation", str(folder / "validation.csv"), "--template", case.template]
    command = [sys.executable, str(HERE / "recipe.py"), *tables, "--heads", *case.heads, "--max-tokens", str(case.max_tokens)]

    def look(meter: Meter) -> bool:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        curve.note(meter, [json.loads(one)["score"] for one in lines if one.startswith('{"trial"') and one.endswith("}")])
        return False

    measure(
        [*command, "--seed", str(seed), "--encoder", str(encoder), "--gpu", str(gpu)],
        {"PYTHONWARNINGS": "ignore"},
        folder,
        look,
        log,
        _gpu_reader(gpu),
    )
    return curve


def run_ours(folder: Path, settings: dict[str, Any], most_cpu_s: float) -> Curve:
    curve, config = Curve(), folder / "ray_config.yaml"
    config.write_text(json.dumps(settings), encoding="utf-8")
    ledger = folder / "storage" / "searches" / "ours" / "ledger"
    count = len(pd.read_csv(folder / "validation.csv"))

    def look(meter: Meter) -> bool:
        events = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(ledger.glob("*.json"))]
        # A first look counts where it has seen all validation rows, as the recipe does.
        looks = [event for event in events if event["kind"] == "look" and event["look"]["validation_texts"] == count]
        models = [event["report"]["score"] for event in events if event["kind"] == "epoch"]
        models += [event["look"]["score"] for event in looks if event.get("is_model")]
        curve.note(meter, models, [event["look"]["score"] for event in looks])
        return meter.cpu_s > most_cpu_s

    command = [sys.executable, "-m", "training", "tune", "--config", str(config), "--name", "ours"]
    gpu = settings["training"]["tuning"]["resources_per_trial"]["gpu"]
    measure(command, {"PYTHONPATH": str(HERE.parent.parent)}, folder, look, folder / "ours.log", _gpu_reader(gpu))
    return curve


def _gpu_reader(gpu: float) -> Callable[[], float] | None:
    import torch

    # Asks the driver, not the GPU.
    return torch.cuda.utilization if gpu else None


def said_of(recipe: Curve, ours: Curve) -> dict[str, float]:
    """Compare two curves."""
    final = best(recipe.points)
    held, saved = until(ours.points, final), until(ours.saved, final)
    return {
        "recipe_score": final,
        "recipe_cpu_s": recipe.cpu_s,
        "recipe_wall_s": recipe.wall_s,
        "held_cpu_s": held[0],
        "held_wall_s": held[1],
        "ratio": recipe.cpu_s / held[0],
        "saved_cpu_s": saved[0],
        "saved_wall_s": saved[1],
        "saved_ratio": recipe.cpu_s / saved[0],
        "our_score": best(ours.saved, recipe.cpu_s),
        "peak_gb": ours.peak_bytes / 1e9,
        **({"recipe_gpu_busy": recipe.gpu_busy, "our_gpu_busy": ours.gpu_busy} if recipe.gpu_busy else {}),
    }


def print_table(rows: Mapping[int, Mapping[str, float]]) -> None:
    columns = list(next(iter(rows.values())))
    print(f"| seed | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for seed, row in rows.items():
        print(f"| {seed} | {' | '.join(f'{value:.3f}' if value < 1 else f'{value:.1f}' for value in row.values())} |")
    medians = [statistics.median(row[column] for row in rows.values()) for column in columns]
    print(f"| median | {' | '.join(f'{value:.3f}' if value < 1 else f'{value:.1f}' for value in medians)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=8, help="of our search (default: %(default)s)")
    parser.add_argument("--gpu", type=float, default=0.0, help="of a trial, on both sides; .5 lets two share one (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--go-on", action="store_true", help="keep the seeds that RESULTS has already, of the same code and machine")
    options = parser.parse_args()
    case = CASES[options.case]
    options.out.mkdir(parents=True, exist_ok=True)
    rows, curves = read_results(options.out / options.case) if options.go_on else ({}, [])
    for seed in (seed for seed in options.seeds if seed not in rows):
        folder = Path(tempfile.mkdtemp(prefix="cost"))
        write_tables(case, options.data, folder)
        ours_settings = settings_of(case, folder, seed, options.trials, options.gpu)
        settings = TrainingSettings.model_validate(ours_settings["training"])
        load_dataset(settings)
        recipe = run_recipe(case, folder, seed, find_encoder(settings.encoder).folder, options.gpu)
        ours = run_ours(folder, ours_settings, recipe.cpu_s)
        rows[seed] = said_of(recipe, ours)
        curves.append((recipe, ours))
        # After every seed: a run that is ended early leaves what it has.
        print_table(rows)
        write_results(options.out / options.case, rows, curves)
        shutil.rmtree(folder)


def read_results(path: Path) -> tuple[dict[int, dict[str, float]], list[tuple[Curve, Curve]]]:
    if not path.with_suffix(".json").exists():
        return {}, []
    facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    curves = [(Curve(**pair["recipe"]), Curve(**pair["ours"])) for pair in facts["curves"]]
    return {int(seed): row for seed, row in facts["rows"].items()}, curves


def write_results(path: Path, rows: Mapping[int, Mapping[str, float]], curves: Sequence[tuple[Curve, Curve]]) -> None:
    facts = {"case": path.name, "rows": rows, "curves": [{"recipe": asdict(one), "ours": asdict(other)} for one, other in curves]}
    path.with_suffix(".json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    drawn = draw_curves([[one.points for one in pair] for pair in curves], [[one.cpu_s for one in pair] for pair in curves])
    path.with_suffix(".svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
