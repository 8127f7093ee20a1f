"""Trials of two processes under Ray Tune: they report, are stopped, run out of memory, and leave nothing reserved."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

# Without the dashboard Ray Train's own cleaner cannot work, and two CPUs are what one trial needs: the next one starts only if the one
# before has left nothing.
SCRIPT = """
import json, sys, tempfile, threading
from pathlib import Path

import ray
from ray import tune

from cluster.connection import _init
from training.search_settings import TrialResources
from training.search.trials.together import work_together


def work(name):
    def in_each(workers, report):
        import torch

        number = torch.tensor(float(workers.rank + 1))
        workers.sum([number])
        for epoch in (1, 2):
            if name == "greedy" and epoch == 2 and workers.rank == 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            if name == "stopped" and epoch == 2:
                # At work when it is stopped, and until it is ended.
                threading.Event().wait()
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "epoch.txt").write_text(f"{epoch} of {workers.rank}")
                report({"epoch": epoch, "sum": float(number), "halt": name == "stopped"}, Path(folder))

    return in_each


def trial(config):
    try:
        work_together(work(config["name"]), 2, TrialResources(cpu=1.0))
    except MemoryError:
        tune.report({"epoch": -1, "sum": 0.0, "halt": False})


folder = Path(sys.argv[1])
# As a command begins one: Ray gives its processes 30 s to start.
_init({"num_cpus": 2, "include_dashboard": False, "log_to_driver": False, "_temp_dir": sys.argv[2]})
results = tune.Tuner(
    tune.with_resources(trial, {"cpu": 0, "memory": 2**20}),
    param_space={"name": tune.grid_search(["stopped", "greedy"])},
    tune_config=tune.TuneConfig(max_concurrent_trials=1),
    run_config=tune.RunConfig(name="all", storage_path=str(folder / "storage"), stop={"halt": True}, verbose=0),
).fit()
found = {}
for result in results:
    kept = Path(result.checkpoint.path) / "epoch.txt"
    found[result.config["name"]] = [result.metrics["epoch"], result.metrics["sum"], kept.read_text(), bool(result.error)]
states = [group["state"] for group in ray.util.placement_group_table().values()]
(folder / "found.json").write_text(json.dumps({"trials": found, "states": sorted(set(states)), "groups": len(states)}))
"""


def test_trials_of_two_processes_report_stop_and_leave_nothing(tmp_path: Path) -> None:
    # Ray refuses long paths of sockets.
    short = Path("/tmp") / f"tw-{os.getpid()}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(short)]
    try:
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    finally:
        shutil.rmtree(short, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["trials"]["stopped"] == [1, 3.0, "1 of 0", False]
    assert found["trials"]["greedy"] == [-1, 0.0, "1 of 0", False]
    # A placement group of each trial and of each trial's processes.
    assert (found["states"], found["groups"]) == (["REMOVED"], 4)
    assert not list((tmp_path / "storage").rglob("together-*/checkpoint_*/*"))
