"""Small searches for tests: a table, settings, and the command, in this process on a Ray that is up, or as a user calls it.

A search spends most of its time on the start of processes. So only tests about a command's own end, or about a Ray of its own, start both.
"""

import gc
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.console import run_command
from cluster.facts import Facts, read_facts
from cluster.session import free_port
from cluster.settings import ClusterSettings
from tests.ports import port_shift

ROOT = Path(__file__).resolve().parents[1]
CPUS = 2
CLUSTER = {"num_cpus": CPUS, "object_store_bytes": 100_000_000}
# One trial at a time: only so is even the uninterrupted search the same every time.
ONE_BY_ONE = {"head_candidates": 8, "num_samples": 5, "max_concurrent_trials": 1, "grace_period": 1, "confirm_top": 1, "confirm_seeds": 1}
# States of trials that brought what they could.
ENDED_WELL = ("finished", "stopped", "passed over")


@dataclass(frozen=True)
class Done:
    """What a command came to, under the names of `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


@contextmanager
def running_ray(folder: Path) -> Iterator[Facts]:
    """Start a cluster by `cluster up` for the length of the block; `attach` lets others use it."""
    settings = folder / "ray_config.yaml"
    cluster = CLUSTER | {"storage": str(folder / "storage"), "dashboard_port": free_port(18_565 + port_shift())}
    settings.write_text(yaml.safe_dump({"cluster": cluster}))
    words = [sys.executable, "-m", "cluster"]
    subprocess.run([*words, "up", "--config", str(settings)], cwd=ROOT, check=True, capture_output=True)
    try:
        facts = read_facts(ClusterSettings(storage=str(folder / "storage")))
        assert facts
        yield facts
    finally:
        subprocess.run([*words, "down", "--config", str(settings)], cwd=ROOT, check=True, capture_output=True)


def storage_of(settings: Path) -> Path:
    """Return the storage beside a settings file of ours."""
    return settings.parent / "storage"


def attach(facts: Facts, storage: Path) -> None:
    """Let the commands of a storage use a cluster that was started with another one."""
    shutil.copytree(Path(facts.token_path).parent, storage / "cluster", dirs_exist_ok=True)


def write_table(file: Path, filler: Callable[[int], str]) -> None:
    """Write 160 rows: two jobs by their word, three letters, every tenth of them unknown, and something more in every text."""
    rows = ["text,job,letter"]
    for index in range(160):
        job, letter = ("nurse", "driver")[index % 2], "abc"[index % 3]
        rows.append(f"the {job} {letter} {filler(index)},{job},{'' if index % 10 == 0 else letter}")
    file.write_text("\n".join(rows) + "\n")


def command(settings: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "training", words[0], "--config", str(settings), *words[1:]]


def training(settings: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Call the command as a user does."""
    return subprocess.run(command(settings, *words), cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)


def training_here(settings: Path, *words: str) -> Done:
    """Run the command in this process."""
    from training.__main__ import make_parser

    # What a test before has left is not this command's.
    gc.collect()
    said, told = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(told):
        try:
            code = run_command(make_parser(), [words[0], "--config", str(settings), *words[1:]])
        except SystemExit as ended:
            # argparse's way to refuse a word.
            code = int(ended.code or 0)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        # A file that was left open is told of now, in the test that left it.
        gc.collect()
    if left := [str(one.message) for one in warned if "unclosed file" in str(one.message)]:
        raise AssertionError(f"left open: {left}")
    return Done(code, said.getvalue(), told.getvalue())


def start(settings: Path, *words: str) -> subprocess.Popen[str]:
    """Start the command in a process group of its own."""
    return subprocess.Popen(
        command(settings, *words),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
        start_new_session=True,
    )


def result_of(storage: Path, name: str = "one") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((storage / "searches" / name / "result.json").read_text())
    return content


def events_of(storage: Path, name: str = "one") -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((storage / "searches" / name / "ledger").iterdir())]
