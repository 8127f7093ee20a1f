"""What does the second question cost? One version with two heads against two servers with one head each.

    python benchmarks/over_http/two_heads.py --shape minilm --precision int8 --rounds 3

Versions of random weights, texts of log-normal length (median 50 tokens), 32 a request; a server of one replica with one thread, which
swaps from the one version to the other, rounds taking turns. Both questions about a text are two requests to two servers with one head:
each costs what the one measured here costs, so a text costs twice that. CPU seconds are those of all the server's processes.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from made import SHAPES, make_texts, write_bodies, write_version
from over_http import TEXTS, Reading, Served

from cluster.connection import connect
from cluster.session import free_port
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from serving.client import Client
from serving.rollout import Rollout
from serving.settings import ServingSettings
from training.registry import Registry

HEADS = (2, 1)
SWAP_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="base")
    parser.add_argument("--precision", default="float32", help="float32, int8 or bfloat16 (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of one reading")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="heads-") as folder:
        found = measure(options, Path(folder))
    cpu, speed = (
        {heads: statistics.median(getattr(one, what) for one in found[heads]) for heads in HEADS} for what in ("cpu_ms", "texts_per_s")
    )
    print("| side | texts/s with both answers | CPU ms a text |\n|---|---|---|")
    print(
        f"| one server, two heads | {speed[2]:.1f} | {cpu[2]:.2f} |\n| two servers, one head each | {speed[1] / 2:.1f} | {2 * cpu[1]:.2f} |"
    )
    print(f"texts per CPU second, one server against two: {2 * cpu[1] / cpu[2]:.2f}")


def measure(options: argparse.Namespace, folder: Path) -> dict[int, list[Reading]]:
    """Return readings by number of heads."""
    write_bodies(folder / "32.jsonl", make_texts(TEXTS), 32)
    registry = Registry(Storage(str(folder / "storage")))
    versions = {heads: registry.publish(write_version(folder / f"{heads}", options.shape, heads)) for heads in HEADS}
    registry.promote(versions[HEADS[0]])
    settings = ServingSettings(port=free_port(18_300), max_replicas=1, precision=options.precision, follow_s=0.2)
    cluster = ClusterSettings(storage=str(folder / "storage"), num_cpus=2, object_store_bytes=100_000_000)
    found: dict[int, list[Reading]] = {heads: [] for heads in HEADS}
    with connect(cluster) as connection:
        rollout = Rollout.at(connection.dashboard_url, cluster, lambda _: None)
        rollout.deploy(settings, None)
        served = Served(settings.url, settings.port, folder, 1)
        for _ in range(options.rounds):
            for heads in HEADS:
                registry.promote(versions[heads])
                wait_for(settings.url, versions[heads])
                served.reading(32, 2.0)
                found[heads].append(served.reading(32, options.seconds))
        rollout.stop()
    return found


def wait_for(url: str, version: int) -> None:
    """Wait until a version answers."""
    until = time.monotonic() + SWAP_S
    with Client(url) as client:
        while client.version().version != version:
            if time.monotonic() > until:
                raise RuntimeError(f"version {version} did not answer within {SWAP_S:g} s")
            time.sleep(0.1)


if __name__ == "__main__":
    main()
