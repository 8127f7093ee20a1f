"""A real deployment of a tiny version in a Ray of its own, and the processes that make it up."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from cluster.connection import connect
from cluster.session import free_port
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from serving.client import Client
from serving.errors import AnswerError
from serving.rollout import Rollout
from serving.settings import ServingSettings
from training.registry import Registry

PATIENCE_S = 180.0
_START_S = 600.0
POLL_S = 0.1
# Of the words in a process's title.
REPLICA, CONTROLLER, FRONT_KEEPER, FRONT = "ray::ServeReplica:twohead:Replica", "ray::ServeController", "ray::HAProxyManager", "haproxy"


@dataclass
class House:
    """A deployment and all that is needed to change it.

    Attributes:
        settings: It was deployed with.
        registry: Its versions.
        versions: Two with the same weights; the name points to the first.
        rollout: To change it.
    """

    settings: ServingSettings
    registry: Registry
    versions: tuple[int, int]
    rollout: Rollout

    def processes(self, title: str) -> list[psutil.Process]:
        """Find the deployment's processes whose first word begins or ends so."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                words = process.cmdline()
            except psutil.NoSuchProcess:
                continue
            if words and (words[0].startswith(title) or words[0].endswith(f"/{title}")):
                found.append(process)
        return found

    def engines(self, replica: psutil.Process) -> list[psutil.Process]:
        """Find the processes in which a replica without a GPU computes: copies of one of its children."""
        return [process for process in replica.children(recursive=True) if process.ppid() != replica.pid]

    def is_whole(self) -> bool:
        """Tell whether all replicas run, no other one does, and the front answers, by one door."""
        status = self.rollout.status()
        runs = status.state == "RUNNING" and status.replicas == {"RUNNING": status.min_replicas}
        return runs and self.is_ready() and self.has_one_door()

    def is_ready(self) -> bool:
        """Tell whether the front answers, and that a replica is ready."""
        try:
            return httpx.get(f"{self.settings.url}/health/ready", trust_env=False, timeout=2.0).status_code == 200
        except httpx.TransportError:
            return False

    def has_one_door(self) -> bool:
        """Tell whether no HAProxy is about to go that still listens beside its successor.

        While one takes over, requests come to both, and the first that is begun after a loss knows of no replica.
        """
        listening = 0
        for process in self.processes(FRONT):
            try:
                found = process.net_connections("tcp")
            except psutil.NoSuchProcess:
                continue
            listening += any(one.status == psutil.CONN_LISTEN and one.laddr.port == self.settings.port for one in found)
        return listening <= 1

    def answers_with(self, version: int) -> bool:
        """Tell whether several requests in a row are answered by a version."""
        try:
            with Client(self.settings.url, retries=0) as client:
                return all(client.version().version == version for _ in range(6 * self.rollout.status().min_replicas))
        except AnswerError:
            return False


def until(what: str, holds: Callable[[], bool], patience_s: float = PATIENCE_S) -> float:
    """Wait for other processes; returns seconds.

    Raises:
        TimeoutError: It does not hold in time.
    """
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > patience_s:
            raise TimeoutError(f"not within {patience_s:.0f} s: {what}")
        time.sleep(POLL_S)  # neither Serve nor a process tells of it by itself
    return time.monotonic() - began


@contextmanager
def house(checkpoint: Path, replicas: int, port: int = 18_800) -> Iterator[House]:
    """Deploy a version for the length of the block.

    Args:
        checkpoint: Published twice.
        replicas: How many.
        port: It listens on the first from here that is free.
    """
    with tempfile.TemporaryDirectory() as folder:
        storage = f"{folder}/storage"
        cluster = ClusterSettings(storage=storage, num_cpus=2, num_gpus=0, object_store_bytes=100_000_000)
        registry = Registry(Storage(storage))
        versions = (registry.publish(checkpoint), registry.publish(checkpoint))
        registry.promote(versions[0])
        settings = ServingSettings(
            port=free_port(port),
            min_replicas=replicas,
            max_replicas=replicas,
            follow_s=0.5,
            resources_per_replica={"cpu": 0.1},
            ready_timeout_s=_START_S,
        )
        with connect(cluster) as connection:
            rollout = Rollout.at(connection.dashboard_url, cluster, lambda _: None)
            rollout.deploy(settings, None)
            home = House(settings, registry, versions, rollout)
            until("all replicas run", home.is_whole, _START_S)
            yield home
            rollout.stop_at_last()
