"""A head that keeps what it must know in a Redis: it loses its power, comes back, and no answer is lost."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import Cluster, started
from tests.cluster.hosts import NETWORK
from tests.cluster.traffic import RATE, lose_the_head

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
    told = lose_the_head(cluster, "two")
    assert told["lost"] == []
    assert told["asked"] > RATE * 20
