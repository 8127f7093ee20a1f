"""This project's server with one version, started as `over_http.py` starts it; `peers.py` starts it.

python our_server.py VERSION PORT PRECISION
"""

import signal
import sys
import tempfile
from pathlib import Path

from cluster.connection import connect
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from serving.rollout import Rollout
from serving.settings import ServingSettings
from training.registry import Registry


def main() -> None:
    version, port, precision = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    with tempfile.TemporaryDirectory(prefix="ours-") as folder:
        registry = Registry(Storage(folder))
        registry.promote(registry.publish(version))
        settings = ServingSettings.model_validate({"port": port, "max_replicas": 1, "precision": precision})
        cluster = ClusterSettings(storage=folder, num_cpus=2, num_gpus=0, object_store_bytes=100_000_000)
        with connect(cluster) as connection:
            rollout = Rollout.at(connection.dashboard_url, cluster, lambda _: None)
            rollout.deploy(settings, None)
            try:
                # Ray's handler of SIGTERM raises SystemExit.
                signal.pause()
            finally:
                rollout.stop()


if __name__ == "__main__":
    main()
