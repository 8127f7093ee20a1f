"""A head that keeps what it must know in a Redis: it loses its power, comes back, and no answer is lost."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import Cluster, started
from tests.cluster.hosts import NETWORK
from tests.cluster.traffic import RATE, Traffic, door, until

pytestmark = pytest.mark.slow

# The laptop is the third host, and has the Redis.
REDIS = f"{NETWORK}.3"


@pytest.fixture(scope="module")
def cluster(make_checkpoint_in: Callable[..., Path]) -> Iterator[Cluster]:
    def before(cluster: Cluster) -> None:
        words = ("redis-server", "--bind", REDIS, "--protected-mode", "no", "--save", "", "--daemonize", "yes")
        assert cluster.laptop.run(*words).returncode == 0

    with started(["one", "two"], f"head_store: redis\nredis_address: {REDIS}:6379", before=before) as found:
        make_checkpoint_in(found.laptop.shared / "checkpoint")
        found.must("training", "publish", "--checkpoint", "/srv/checkpoint", "--promote")
        # One on each: a host has two CPUs.
        found.must("serving", "deploy", "--set", "serving.resources_per_replica.cpu=2")
        found.open_doors()
        yield found


def test_the_head_lost_for_a_while_costs_no_answer(cluster: Cluster) -> None:
    traffic = Traffic(cluster, RATE, door(cluster, "two"))
    cluster.nodes["one"].lose()
    time.sleep(20)  # so long the head is away
    cluster.nodes["one"].start()
    assert "bringing back lab" in cluster.must("cluster", "up")
    until("all replicas run again", lambda: "running" in cluster.run("serving", "status").stdout.splitlines()[0], 240)
    told = traffic.end()
    print(f"head lost: {told}")
    assert told["lost"] == []
    assert told["asked"] > RATE * 20
