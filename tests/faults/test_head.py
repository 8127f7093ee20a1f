"""A cluster whose head is lost, and with it all that Ray knew; and one whose disk is full."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from benchmarks.drills.house import until
from cluster.facts import Facts, read_facts
from cluster.processes import name_of
from cluster.session import free_port
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from serving.client import Client
from tests.disks import small_disk
from tests.ports import port_shift
from training.registry import Registry

SOURCE = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2_400)]
TEXTS = ["nurse", "the sales driver and the teacher"]


def call(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Call a command as a user does; `more` goes into its environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TWOHEAD_"))}
    environment = kept | {"PYTHONPATH": str(SOURCE), "RAY_worker_niceness": "0"} | more
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=800, check=False)


def run(folder: Path, *words: str, code: int = 0, **more: str) -> str:
    done = call(folder, *words, **more)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def facts_of(folder: Path) -> Facts:
    facts = read_facts(ClusterSettings(storage=str(folder / ".twohead")))
    assert facts
    return facts


def heads_processes(folder: Path) -> list[psutil.Process]:
    """The control service, which is what makes a head, and the processes that keep it."""
    return [process for process in facts_of(folder).session.processes() if name_of(process) == "gcs_server"]


@pytest.fixture
def url(tmp_path: Path, make_checkpoint: Callable[[int], Path]) -> str:
    """Where a promoted version will answer, by settings in the folder."""
    port = free_port(18_900 + port_shift())
    cluster = {"num_cpus": 2, "object_store_bytes": 100_000_000, "dashboard_port": free_port(18_940 + port_shift())}
    serving = {"port": port, "resources_per_replica": {"cpu": 0.5}, "min_replicas": 1, "max_replicas": 1, "ready_timeout_s": 600}
    (tmp_path / "ray_config.yaml").write_text(yaml.safe_dump({"cluster": cluster, "serving": serving}))
    registry = Registry(Storage(str(tmp_path / ".twohead")))
    registry.promote(registry.publish(make_checkpoint(0)))
    return f"http://127.0.0.1:{port}"


def test_f2_after_the_head_is_lost_two_commands_bring_the_deployment_back(tmp_path: Path, url: str) -> None:
    run(tmp_path, "cluster", "up")
    try:
        run(tmp_path, "serving", "deploy")
        with Client(url) as client:
            before = client.predict(TEXTS)
        (head,) = heads_processes(tmp_path)
        head.send_signal(signal.SIGKILL)
        head.wait(30)
        began = time.monotonic()
        assert "clearing away what is left of a cluster that died" in run(tmp_path, "cluster", "up")
        run(tmp_path, "serving", "deploy")
        with Client(url) as client:
            after = client.predict(TEXTS)
        print(f"answers again after {time.monotonic() - began:.0f} s")
        assert after == before
        assert httpx.get(f"{url}/v1/version", trust_env=False, timeout=30.0).json()["version"] == 1
    finally:
        run(tmp_path, "cluster", "down")


@pytest.fixture
def disk() -> Iterator[Path]:
    """For Ray's own folder, whose path must be short."""
    with small_disk(Path(tempfile.mkdtemp()), "300M") as found:
        yield found
    found.rmdir()


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "filler").open("wb") as filler:
        while True:
            filler.write(bytes(1_000_000))


def test_f7_while_rays_disk_is_full_answers_come_jobs_fail_and_the_screen_says_why(tmp_path: Path, url: str, disk: Path) -> None:
    run(tmp_path, "cluster", "up", TMPDIR=str(disk))
    try:
        run(tmp_path, "serving", "deploy")
        with Client(url) as client:
            before = client.predict(TEXTS)
            fill(disk)

            def is_told() -> bool:
                # A dashboard that is busy answers a look too late.
                done = call(tmp_path, "cluster", "status")
                return done.returncode == 0 and "the disk that Ray writes to is 100 % full" in done.stdout + done.stderr

            until("the screen says so", is_told)
            assert [client.predict(TEXTS) == before for _ in range(100)] == [True] * 100
        failed = run(tmp_path, "cluster", "submit", "--", "python", "-c", "print('never')", code=2)
        assert "No space left on device" in failed
        (disk / "filler").unlink()
        assert "always" in run(tmp_path, "cluster", "submit", "--", "python", "-c", "print('always')")
    finally:
        run(tmp_path, "cluster", "down")
