"""A cluster whose head is lost, and with it all that Ray knew: what the storage holds brings everything back."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from cluster.facts import Facts, read_facts
from cluster.launcher import free_port
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from serving.client import Client
from tests.ports import port_shift
from training.registry import Registry

SOURCE = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
TEXTS = ["nurse", "the sales driver and the teacher"]


def run(folder: Path, *words: str) -> str:
    """Call a command as a user does."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TWOHEAD_"))}
    environment = kept | {"PYTHONPATH": str(SOURCE), "RAY_worker_niceness": "0"}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def facts_of(folder: Path) -> Facts:
    facts = read_facts(ClusterSettings(storage=str(folder / ".twohead")))
    assert facts
    return facts


def heads_processes(folder: Path) -> list[psutil.Process]:
    """The control service, which is what makes a head, and the processes that keep it."""
    return [process for process in facts_of(folder).session.processes() if process.name() == "gcs_server"]


def test_f2_after_the_head_is_lost_two_commands_bring_the_deployment_back(tmp_path: Path, make_checkpoint: Callable[[int], Path]) -> None:
    port = free_port(18_900 + port_shift())
    cluster = {"num_cpus": 2, "object_store_bytes": 100_000_000, "dashboard_port": free_port(18_940 + port_shift())}
    serving = {"port": port, "resources_per_replica": {"cpu": 0.5}, "min_replicas": 1, "max_replicas": 1}
    (tmp_path / "ray_config.yaml").write_text(yaml.safe_dump({"cluster": cluster, "serving": serving}))
    registry = Registry(Storage(str(tmp_path / ".twohead")))
    registry.promote(registry.publish(make_checkpoint(0)))
    run(tmp_path, "cluster", "up")
    try:
        run(tmp_path, "serving", "deploy")
        with Client(f"http://127.0.0.1:{port}") as client:
            before = client.predict(TEXTS)
        (head,) = heads_processes(tmp_path)
        head.send_signal(signal.SIGKILL)
        head.wait(30)
        began = time.monotonic()
        assert "clearing away what is left of a cluster that died" in run(tmp_path, "cluster", "up")
        run(tmp_path, "serving", "deploy")
        with Client(f"http://127.0.0.1:{port}") as client:
            after = client.predict(TEXTS)
        print(f"answers again after {time.monotonic() - began:.0f} s")
        assert after == before
        assert httpx.get(f"http://127.0.0.1:{port}/v1/version", trust_env=False, timeout=30.0).json()["version"] == 1
    finally:
        run(tmp_path, "cluster", "down")
