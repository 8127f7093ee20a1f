"""A command's own Ray leaves nothing behind, however the command ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from cluster.facts import Facts
from cluster.processes import MARK_VARIABLE
from cluster.session import sweep
from tests.working_folder import SMALL, SOURCE, Place, request

pytestmark = pytest.mark.slow

PRIVATE = """
    import os, signal, sys, time
    import ray
    from cluster.connection import connect
    from cluster.settings import load_settings
    with connect(load_settings()) as connection:
        assert connection.is_private
        assert ray.get(ray.remote(lambda: 6 * 7).remote()) == 42
        print(os.environ["TWOHEAD_SESSION"], connection.dashboard_url, flush=True)
        if sys.argv[1] == "end":
            sys.exit()
        try:
            signal.pause()
        finally:
            if sys.argv[1] == "busy":
                # What a busy machine needs to clear away.
                time.sleep(5)
"""


@pytest.fixture
def private(tmp_path: Path) -> Place:
    """A working folder without a cluster, and a script that starts a private Ray."""
    (tmp_path / "ray_config.yaml").write_text(SMALL % 18265)
    (tmp_path / "private.py").write_text(textwrap.dedent(PRIVATE))
    return Place(tmp_path)


def _marked(folder: str) -> list[int]:
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK_VARIABLE}={folder}".encode() in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


def test_a_private_ray_leaves_nothing(private: Place) -> None:
    done = private.run("end", module="private")
    assert done.returncode == 0, done.stderr
    folder = done.stdout.split()[0]
    assert not Path(folder).exists()
    assert _marked(folder) == []


@pytest.mark.parametrize(
    ("number", "how"), [(signal.SIGTERM, "wait"), (signal.SIGTERM, "busy"), (signal.SIGINT, "wait"), (signal.SIGKILL, "wait")]
)
def test_a_private_ray_does_not_outlive_its_command(private: Place, number: int, how: str) -> None:
    command = [sys.executable, "-m", "private", how]
    # Ray's processes overwrite the beginning of their environment with a title; of a short one nothing is left.
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE)}
    said = private.folder / "said"
    with (
        said.open("w") as errors,
        subprocess.Popen(command, cwd=private.folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout
        folder, url = process.stdout.readline().split()
        assert request(Facts("", url, folder, "", (), "", 0.0), "POST", "/api/jobs/", "{}") == 401
        assert _marked(folder)
        process.send_signal(number)
        process.wait(120)
    if number == signal.SIGKILL:
        # The next command, of whatever folder, finds what nobody could clear away.
        deadline = time.monotonic() + 120
        while _marked(folder) or Path(folder).exists():
            # One that runs beside this may be sweeping it just now.
            assert time.monotonic() < deadline
            sweep()
            time.sleep(0.1)
    assert _marked(folder) == []
    left = [str(path) for path in Path(folder).rglob("*")]
    assert not Path(folder).exists(), (process.returncode, left[:20], said.read_text()[-2_000:])
