"""Two processes train one model: the same losses, scores and parameters as one process, up to float noise."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.facts import Facts
from tests.small_searches import CLUSTER, attach, result_of, running_ray, training_here, write_table

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LETTERS = "defghijklmnopqrstuvw"
METHODS = ("fixed", "uncertainty", "dynamic_average", "pcgrad")
SETTINGS = {"epochs": 3, "patience": 3, "encoder_learning_rate": 1e-3, "head_learning_rate": 1e-2, "batch_tokens": 60, "batch_texts": 7}
# Name → settings, and where to stop or go on. All in one pair of processes: starting one takes longer than all that it trains.
CASES: dict[str, dict[str, Any]] = {
    **{method: {"settings": {"balancing": method}, "shared": {"micro_batches": 2}} for method in METHODS},
    "stopped": {"settings": {"balancing": "uncertainty"}, "stop": 2},
    "restored": {"settings": {"balancing": "uncertainty"}, "restore": "stopped"},
    "whole": {"settings": {"balancing": "uncertainty"}},
    "single texts": {"settings": {"batch_texts": 1, "epochs": 1}, "depth": 2},
}

# One process of a group: trains every case, and writes its epochs and a digest of its parameters.
SCRIPT = """
import hashlib, json, sys
from pathlib import Path
import numpy as np
import torch
from torch import distributed
from transformers import AutoConfig
from training.fitting.fit import Fit, Fold, Objective
from training.fit_settings import FitSettings
from training.network.inputs import TokenInputs
from training.network.model import TwoHeadBert, make_config
from training.network.prefix import freeze
from training.data.tokens import Tokenizer
from training.fitting.workers import OneWorker, WorkerGroup

rank, count, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
plan = json.loads((folder / "plan.json").read_text())
torch.set_num_threads(1)
workers = OneWorker()
if count > 1:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    workers = WorkerGroup(torch.device("cpu"))
heads = [
    {"name": "job", "classes": ["nurse", "driver"], "hidden_size": 4, "dropout": 0.0},
    {"name": "letter", "classes": ["a", "b", "c"], "hidden_size": 0, "dropout": 0.0, "loss": "corn"},
]
tokenizer = Tokenizer(Path(plan["encoder"]), 32)
texts = [f"the {'nurse' if row % 2 else 'driver'} {'abc'[row % 3]} {'x ' * (row % 7)}" for row in range(41)]
labels = {
    "job": np.array([-1 if row % 5 == 0 else row % 2 for row in range(41)]),
    "letter": np.array([row % 3 if row % 4 == 0 else -1 for row in range(41)]),
}
fold = Fold(TokenInputs(tokenizer.encode(texts), tokenizer.pad_id), labels)
results = {}
for name, case in plan["cases"].items():
    # Each process begins elsewhere: only the first one's numbers count.
    torch.manual_seed(rank)
    model = TwoHeadBert(make_config(AutoConfig.from_pretrained(plan["encoder"]), "mean", heads))
    freeze(model, case.get("depth", 0))
    settings = FitSettings(**plan["settings"] | case["settings"] | (case.get("shared", {}) if count > 1 else {}))
    fit = Fit(model, fold, fold, settings, Objective({"job": 1.0, "letter": 2.0}), torch.device("cpu"), workers)
    if "restore" in case:
        fit.restore(folder / f"{case['restore']}-{count}")
    epochs = []
    for epoch in fit.epochs():
        epochs.append([epoch.number, epoch.loss, epoch.score, epoch.best_number, epoch.is_last])
        if epoch.number == case.get("stop"):
            if rank == 0:
                (folder / f"{name}-{count}").mkdir()
                fit.save(folder / f"{name}-{count}")
            if count > 1:
                distributed.barrier()
            break
    digest = hashlib.sha256(b"".join(one.detach().numpy().tobytes() for one in model.parameters())).hexdigest()
    norm = float(torch.stack([one.detach().norm() for one in model.parameters()]).norm())
    results[name] = {"epochs": epochs, "digest": digest, "norm": norm}
(folder / f"results-{count}-{rank}.json").write_text(json.dumps(results))
if count > 1:
    distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, make_encoder_in: Callable[..., Path]) -> dict[str, Any]:
    """Results of one process alone, and of the two of a group: case → epochs and parameters."""
    folder = tmp_path_factory.mktemp("workers")
    encoder = make_encoder_in(folder / "encoder", "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    (folder / "plan.json").write_text(json.dumps({"encoder": str(encoder), "settings": SETTINGS, "cases": CASES}))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    members = [(0, 1), (0, 2), (1, 2)]
    processes = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(rank), str(count), str(folder)], env=environment) for rank, count in members
    ]
    assert [process.wait(timeout=400) for process in processes] == [0, 0, 0]
    alone, first, second = (json.loads((folder / f"results-{count}-{rank}.json").read_text()) for rank, count in members)
    return {"alone": alone, "first": first, "second": second}


@pytest.mark.parametrize("case", CASES)
def test_the_processes_of_a_group_agree_bit_for_bit(trained: dict[str, Any], case: str) -> None:
    assert trained["first"][case] == trained["second"][case]


@pytest.mark.parametrize("case", [*METHODS, "single texts"])
def test_two_processes_learn_what_one_learns(trained: dict[str, Any], case: str) -> None:
    ours, theirs = trained["first"][case], trained["alone"][case]
    assert [epoch[3:] for epoch in ours["epochs"]] == [epoch[3:] for epoch in theirs["epochs"]]
    for mine, other in zip(ours["epochs"], theirs["epochs"], strict=True):
        assert mine[:3] == pytest.approx(other[:3], abs=2e-4)
    assert ours["norm"] == pytest.approx(theirs["norm"], rel=1e-4)


def test_a_group_goes_on_from_what_its_first_process_saved(trained: dict[str, Any]) -> None:
    for member in ("alone", "first", "second"):
        stopped, restored, whole = (trained[member][case] for case in ("stopped", "restored", "whole"))
        assert stopped["epochs"] + restored["epochs"] == whole["epochs"]
        assert restored["digest"] == whole["digest"]


def search(folder: Path, workers: int, ray: Facts) -> dict[str, Any]:
    """Let a search of one trial go the whole way, through Ray Tune and Ray Train."""
    write_table(folder / "table.csv", lambda index: f"{'x ' * (index % 7)}{LETTERS[index % 20]} {LETTERS[index * 7 % 20]}")
    storage = folder / f"storage-{workers}"
    settings = {
        "cluster": CLUSTER | {"storage": str(storage)},
        "training": {
            "data": {"files": [str(folder / "table.csv")]},
            "heads": {"job": {"dropout": 0.0}, "letter": {"dropout": 0.0}},
            "encoder": {"name": str(folder / "encoder"), "max_tokens": 16},
            "fit": {"epochs": 2, "encoder_learning_rate": 1e-3, "head_learning_rate": 1e-2, "batch_texts": 8},
            "search_space": {"encoder_learning_rate": None},
            "tuning": {"num_samples": 1, "confirm_top": 0, "workers_per_trial": workers},
        },
    }
    config = folder / f"workers-{workers}.yaml"
    config.write_text(yaml.safe_dump(settings))
    attach(ray, storage)
    done = training_here(config, "tune", "--name", "one")
    assert done.returncode == 0, done.stderr
    return result_of(storage)


@pytest.mark.filterwarnings("default")
def test_a_trial_of_two_processes_has_the_score_of_one_the_whole_way(tmp_path: Path, make_encoder_in: Callable[..., Path]) -> None:
    make_encoder_in(tmp_path / "encoder", "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    (tmp_path / "ray").mkdir()
    with running_ray(tmp_path / "ray") as ray:
        (alone,), (together,) = (search(tmp_path, workers, ray)["trials"] for workers in (1, 2))
    assert (alone["state"], together["state"]) == ("finished", "finished")
    assert together["score"] == pytest.approx(alone["score"], abs=1e-3)
    for mine, other in zip(together["epochs"], alone["epochs"], strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-3)
    # What Ray Train wrote on the way is gone, but for a note it may write as it ends.
    assert not list((tmp_path / "storage-2").rglob("together-*/checkpoint_*/*"))
