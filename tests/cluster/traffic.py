"""What goes on while a host is lost: requests at a steady rate, and waiting for what the cluster notices."""

import json
import os
import signal
import subprocess
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.conftest import DOOR_PORT, Cluster
from tests.cluster.hosts import SOURCE, Host
from tests.cluster.programs import NODES, TRAFFIC, UNFINISHED
from tests.running import running
from tests.waiting import until

RATE = 20
# Where `cluster up` keeps it, on the laptop.
TOKEN = "/root/.twohead/clusters/lab/token"
SERVE_LOGS = "/tmp/ray/session_latest/logs/serve/{controller,proxy}_*.log"


def _stop(process: subprocess.Popen[str]) -> None:
    # The command enters its host's own processes: a signal to it reaches nsenter, not Python.
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGTERM)


class Traffic:
    """Requests at a steady rate, from the laptop, until the end of a block.

    Args:
        cluster: With the laptop.
        rate: Requests a second.
        urls: The client's addresses.
    """

    def __init__(self, cluster: Cluster, rate: float, *urls: str) -> None:
        self._cluster = cluster
        program = textwrap.dedent(TRAFFIC)
        command = cluster.laptop.command("python", "-c", program, str(rate), *urls, environment={"PYTHONPATH": str(SOURCE)})
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> "Traffic":
        assert self._process.stdout
        if self._process.stdout.readline() != "asking\n":
            self.__exit__()
            raise AssertionError("it does not ask")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            # A test that failed: nothing it began goes on beside the next one.
            _stop(self._process)
        self._process.communicate(timeout=120)

    def end(self) -> dict[str, Any]:
        """Stop asking, and return what became of all requests."""
        _stop(self._process)
        out, err = self._process.communicate(timeout=120)
        assert self._process.returncode == 0, err
        told: dict[str, Any] = json.loads(out)
        if told["lost"]:
            self._tell_why()
        return told

    def _tell_why(self) -> None:
        """Print what is served from where, and what Serve's own processes wrote last: once the hosts are gone nobody can ask."""
        print(self._cluster.run("serving", "status").stdout, self._cluster.run("cluster", "status").stdout, sep="\n")
        for name, host in self._cluster.nodes.items():
            if host.is_on:
                print(f"--- {name}", host.run("bash", "-c", f"tail -n 60 {SERVE_LOGS}").stdout, sep="\n")


@contextmanager
def unfinished(host: Host) -> Iterator[None]:
    """Keep requests on their way through a host that never end, until the block ends or the host is lost."""
    with running(host.command("python", "-c", textwrap.dedent(UNFINISHED))) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == "begun 1\n"
            yield
        finally:
            _stop(process)


def nodes(cluster: Cluster) -> int:
    """Return how many there are; none where the cluster does not answer just now.

    It asks what `cluster status` asks, without the seconds of a processor that importing Ray takes at every look.
    """
    found: int = cluster.python(NODES, f"{cluster.nodes['one'].address}:8265", TOKEN)
    return found


def are_in(cluster: Cluster, count: int) -> bool:
    """Tell whether so many are there, and `cluster status` answers; the cheap question goes first."""
    return nodes(cluster) == count and cluster.run("cluster", "status").returncode == 0


def door(cluster: Cluster, name: str) -> str:
    return f"http://{cluster.nodes[name].address}:{DOOR_PORT}"


def raylets(cluster: Cluster) -> dict[str, str]:
    """Return the process of Ray on every worker: where it is another one, all that ran there was lost."""
    # The oldest: one that it starts has its name for a moment.
    return {name: host.run("pgrep", "-o", "raylet").stdout for name, host in cluster.nodes.items() if name != "one"}


def lose_the_head(cluster: Cluster, *through: str) -> dict[str, Any]:
    """Let the head be without power for 20 s and bring it back, while workers are asked; return what became of the requests."""
    before = raylets(cluster)
    with Traffic(cluster, RATE, *(door(cluster, name) for name in through)) as traffic:
        cluster.nodes["one"].lose()
        time.sleep(20)  # so long the head is away
        cluster.nodes["one"].start()
        assert "bringing back lab" in cluster.must("cluster", "up")
        until("all replicas run again", lambda: "running" in cluster.run("serving", "status").stdout.partition("\n")[0], 600)
        told = traffic.end()
    print(f"head lost: {told}")
    assert raylets(cluster) == before
    return told
