"""A head that keeps what it must know in a Redis: it loses its power, or the Redis goes; both come back, and no answer is lost.

The last test ends the cluster.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import Cluster, started
from tests.cluster.hosts import NETWORK
from tests.cluster.traffic import RATE, Traffic, are_in, door, lose_the_head, raylets
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2_400)]

# The laptop is the third host, and has the Redis.
REDIS = f"{NETWORK}.3"
# With what Ray begins the name of all that it keeps there for the cluster of this name.
KEPT = "RAYlab@"
AWAY_S = 30
# `TIMES=20` measures the figure of docs/RELIABILITY.md again.
TIMES = int(os.environ.get("TIMES", "1"))
# One replica on each: a host has two CPUs.
DEPLOY = ("serving", "deploy", "--set", "serving.resources_per_replica.cpu=2")


def start_redis(cluster: Cluster) -> None:
    """Start it with what it knew before."""
    keeps = ("--save", "", "--appendonly", "yes", "--dir", "/tmp", "--pidfile", "/tmp/redis.pid")
    words = ("redis-server", "--bind", REDIS, "--protected-mode", "no", *keeps, "--daemonize", "yes")
    assert cluster.laptop.run(*words).returncode == 0


@pytest.fixture(scope="module")
def cluster(make_checkpoint_in: Callable[..., Path]) -> Iterator[Cluster]:
    with started(["one", "two"], f"head_store: redis\nredis_address: {REDIS}:6379", before=start_redis) as found:
        make_checkpoint_in(found.laptop.shared / "checkpoint")
        found.must("training", "publish", "--checkpoint", "/srv/checkpoint", "--promote")
        found.must(*DEPLOY)
        found.open_doors()
        yield found


def test_the_head_lost_for_a_while_costs_no_answer(cluster: Cluster) -> None:
    told = lose_the_head(cluster, "two")
    assert told["lost"] == []
    assert told["asked"] > RATE * 20
    # Its door went with its power.
    cluster.open_door("one")


@pytest.mark.parametrize("time_", range(TIMES))
def test_the_redis_lost_for_a_while_costs_no_answer_and_nobody_has_to_bring_the_head_back(cluster: Cluster, time_: int) -> None:
    before = raylets(cluster)
    with Traffic(cluster, RATE, door(cluster, "one"), door(cluster, "two")) as traffic:
        assert cluster.laptop.run("sh", "-c", "kill -9 $(cat /tmp/redis.pid)").returncode == 0
        began = time.monotonic()
        until("the control service has ended", lambda: not _runs(cluster, "gcs_server"), 20)
        refused = cluster.run(*DEPLOY)
        print(f"deploy after {time.monotonic() - began:.0f} s: {refused.stderr}")
        assert refused.returncode == 2
        assert "Ray's control service does not answer" in refused.stderr
        time.sleep(max(AWAY_S - (time.monotonic() - began), 0.0))  # so long the Redis is away
        start_redis(cluster)
        until("both hosts are in again", lambda: are_in(cluster, 2), 600)
        print(f"both in after {time.monotonic() - began:.0f} s")
        cluster.must(*DEPLOY)
        # The autoscaler, which begins anew with it, leaves a host that was there all the time as it is.
        until("it begins anew", lambda: _runs(cluster, "autoscaler/_private/monitor.py"), 60)
        told = traffic.end()
    print(f"Redis lost, {time_ + 1} of {TIMES}: {told}, all well {time.monotonic() - began:.0f} s after")
    assert told["lost"] == []
    assert told["asked"] > RATE * AWAY_S
    assert raylets(cluster) == before


def _runs(cluster: Cluster, part: str) -> bool:
    return cluster.nodes["one"].run("pgrep", "-f", part).returncode == 0


def test_down_leaves_nothing_in_redis(cluster: Cluster) -> None:
    before = _keys(cluster)
    assert any(key.startswith(KEPT) for key in before), before
    cluster.must("cluster", "down")
    after = _keys(cluster)
    # Else the next cluster of that name would begin with the work of this one.
    assert not any(key.startswith(KEPT) for key in after), after


def _keys(cluster: Cluster) -> list[str]:
    done = cluster.laptop.run("redis-cli", "-h", REDIS, "--scan")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
