"""Replicas come when there is more work than they can do, go when there is not, and the first request after all of them went is held."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.session import free_port
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from serving.client import Client
from serving.loading.outcomes import ClosedLoop, Load, Run
from serving.loading.sending import send
from serving.loading.texts import Bodies
from serving.rollout import Rollout
from serving.settings import AutoscalingSettings, ServingSettings
from tests.ports import port_shift
from tests.waiting import until
from training.registry import Registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2_400)]

# So much that one replica is busy with some tens of them, and those who ask are not.
SLOW = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
TEXTS = ["the nurse and the teacher " * 10, "the driver " * 25]
PATIENCE_S = 400.0


@pytest.fixture(scope="module")
def rollout(tmp_path_factory: pytest.TempPathFactory, make_checkpoint_in: Callable[..., Path]) -> Iterator[tuple[Rollout, ServingSettings]]:
    from cluster.connection import connect

    folder = tmp_path_factory.mktemp("autoscaling")
    registry = Registry(Storage(str(folder / "storage")))
    registry.promote(registry.publish(make_checkpoint_in(folder / "version", 0, **SLOW)))
    cluster = ClusterSettings(storage=str(folder / "storage"), num_cpus=4, num_gpus=0, object_store_bytes=100_000_000)
    settings = ServingSettings(
        port=free_port(18_700 + port_shift()),
        max_replicas=2,
        resources_per_replica={"cpu": 0.5},
        keep_calibration=False,
        # Nobody is refused here, however busy the machine is.
        max_queue_s=60.0,
        precision="float32",
        ready_timeout_s=600.0,
        autoscaling=AutoscalingSettings(target_p95_ms=200.0, downscale_delay_s=5.0, idle_s=5.0),
    )
    with connect(cluster) as connection:
        found = Rollout.at(connection.dashboard_url, cluster, print)
        found.deploy(settings, None)
        yield found, settings
        found.stop_at_last()


def test_more_work_brings_a_replica_and_less_takes_it_away(rollout: tuple[Rollout, ServingSettings]) -> None:
    deployed, settings = rollout
    stop = threading.Event()
    runs: list[Run] = []

    def repeat() -> None:
        while not stop.is_set():
            runs.append(Run("load", Load(settings.url, ClosedLoop(24), Bodies(TEXTS), count=48, is_watched=False)))
            asyncio.run(send(runs[-1]))

    assert deployed.status().replicas == {"RUNNING": 1}
    sender = threading.Thread(target=repeat)
    sender.start()
    try:
        until("the second replica comes", lambda: deployed.status().running == 2, PATIENCE_S)
    finally:
        stop.set()
        sender.join()
    until("the second replica goes", lambda: deployed.status().replicas == {"RUNNING": 1}, PATIENCE_S)
    assert sum(len(run.answered) for run in runs) == 48 * len(runs) > 0
    assert not [run.errors for run in runs if run.errors]


def test_all_go_when_nobody_asks_and_the_next_request_waits_for_one(rollout: tuple[Rollout, ServingSettings]) -> None:
    deployed, settings = rollout
    deployed.scale(0, 2)
    until("the last replica goes", lambda: not deployed.status().replicas, PATIENCE_S)
    began = time.monotonic()
    with Client(settings.url, timeout_s=PATIENCE_S) as client:
        assert len(client.predict(TEXTS).answers) == 2
        print(f"the first request was held for {time.monotonic() - began:.1f} s")

        def one_runs() -> bool:
            # It goes when nobody asks for five seconds, which a look may take.
            return len(client.predict(TEXTS).answers) == 2 and deployed.status().running == 1

        until("one replica runs", one_runs, PATIENCE_S)
