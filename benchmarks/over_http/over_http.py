"""What does HTTP cost, and what happens when too much comes?

    python benchmarks/over_http/over_http.py --shape base --rounds 3

A version of random weights (two heads, ten classes each) is served by one replica with one thread, and asked about texts of log-normal
length (median 50 tokens, sigma .8, at most 512). Measured against the same engine in a process of its own, which tokenises and computes
the same texts in batches of the size the replica uses: texts a second and CPU seconds a text, 32 texts a request and one a request, rounds
taking turns. The server's CPU is that of all its processes, Ray's and HAProxy's too; those who ask are not counted. There may be more
replicas, which share a GPU, and more who ask.

With one text a request, requests then arrive at random: at 80 % of what was answered before, for latencies; at twice and five times that
much, for what is still answered; and one by one right after that, until an answer is as quick as before. Beside the latencies stands what
waiting alone comes to (`queueing`). What all processes use while nobody asks is printed too: it is in every figure, and weighs more the
slower the answers come, so that part is told beside each.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from made import SHAPES, make_texts, write_bodies, write_version
from queueing import p99s_of_no_loss
from wire import Sent

from cluster.connection import connect
from cluster.session import free_port
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from serving.client import Client
from serving.rollout import Rollout
from serving.settings import ServingSettings
from training.registry import Registry

HERE = Path(__file__).parent
TEXTS = 512
CONCURRENCY = {1: 32, 32: 4}
RECOVERY_S = 15.0


@dataclass(frozen=True)
class Reading:
    """One side in one round.

    Attributes:
        texts_per_s: Answered, by the clock.
        cpu_ms: Of a text.
    """

    texts_per_s: float
    cpu_ms: float


def bare(folder: Path, precision: str, batch_tokens: int, seconds: float) -> None:
    """Print the reading of the engine alone; runs in a process of its own."""
    from serving.predictor import Predictor

    predictor = Predictor.load(folder, 1, 1, precision)
    texts = make_texts(TEXTS)
    batches, tokens = [list[str]()], 0
    for text in texts:
        length = len(text.split()) + 2
        if batches[-1] and tokens + length > batch_tokens:
            batches, tokens = [*batches, []], 0
        batches[-1].append(text)
        tokens += length

    def compute() -> None:
        for batch in batches:
            predictor.compute(predictor.tokenize(batch))

    compute()
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() < wall + seconds:
        compute()
        count += len(texts)
    print(json.dumps([count / (time.perf_counter() - wall), 1000 * (time.process_time() - cpu) / count]))


class Served:
    """A version behind HTTP, in a Ray of its own.

    Args:
        url: Where.
        port: The same.
        bodies: Folder of the requests.
        askers: Processes that ask, each with its share of the rate or of the callers.
    """

    def __init__(self, url: str, port: int, bodies: Path, askers: int) -> None:
        self.port = port
        self._bodies = bodies
        self._askers = askers
        with Client(url) as client:
            self.facts = client.version()
        self._seen: dict[int, float] = {}

    def cpu_s(self) -> float:
        """CPU seconds so far of all that this process started; who asks has ended by then."""
        for process in psutil.Process().children(recursive=True):
            # One that is ending has used what it had when it was last seen.
            with suppress(psutil.NoSuchProcess):
                self._seen[process.pid] = sum(process.cpu_times()[:2])
        return sum(self._seen.values())

    def send(
        self, together: int, seconds: float, *, callers: int = 1, rate: float = 0.0, then_one_by_one_s: float | None = None
    ) -> list[Sent]:
        """Send requests with so many texts each, from other processes: at a rate, or from callers who wait for each answer."""
        askers = min(self._askers, callers) if not rate else self._askers
        command = [sys.executable, HERE / "wire.py", "--port", self.port, "--bodies", self._bodies / f"{together}.jsonl"]
        command += ["--seconds", seconds, *(["--rate", rate / askers] if rate else ["--concurrency", callers // askers])]
        running = [
            # One of them goes on alone.
            [*command, "--seed", seed, *(["--then-one-by-one", then_one_by_one_s] if then_one_by_one_s and seed == 0 else [])]
            for seed in range(askers)
        ]
        started = [subprocess.Popen([str(word) for word in one], stdout=subprocess.PIPE, text=True) for one in running]
        told = [process.communicate()[0] for process in started]
        if any(process.returncode for process in started):
            raise RuntimeError("one who asks failed")
        return [Sent(*one) for document in told for one in json.loads(document)]

    def reading(self, together: int, seconds: float) -> Reading:
        """Keep the server busy."""
        cpu = self.cpu_s()
        sent = self.send(together, seconds, callers=CONCURRENCY[together] * self._askers)
        if failed := [one.status for one in sent if one.status != 200]:
            raise RuntimeError(f"not answered: {Counter(failed)}")
        texts = len(sent) * together
        return Reading(texts / max(one.left_s + one.latency_s for one in sent), 1000 * (self.cpu_s() - cpu) / texts)


def print_idle(served: Served, seconds: float) -> float:
    """Print and return the CPU seconds a second that are used while nobody asks."""
    cpu, begun = served.cpu_s(), time.perf_counter()
    time.sleep(seconds)  # the time itself is what is measured
    cores = (served.cpu_s() - cpu) / (time.perf_counter() - begun)
    print(f"while nobody asks all processes together use {cores:.2f} of a core", flush=True)
    return cores


def quantile(values: list[float], share: float) -> float:
    """Return a quantile, of sorted values the next one above."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def print_cost(served: Served, measure_bare: Callable[[], Reading], idle: float, rounds: int, seconds: float) -> float:
    """Print HTTP against the engine alone; returns single texts answered per second."""
    found: dict[str, list[Reading]] = {"engine alone": [], "32 texts a request": [], "1 text a request": []}
    for _ in range(rounds):
        found["engine alone"].append(measure_bare())
        found["32 texts a request"].append(served.reading(32, seconds))
        found["1 text a request"].append(served.reading(1, seconds))
    alone = Reading(*(statistics.median(getattr(one, name) for one in found["engine alone"]) for name in ("texts_per_s", "cpu_ms")))
    print("| side | texts/s | ratio | CPU ms a text | more than the engine | of it, while nobody asks too |\n|---|---|---|---|---|---|")
    for name, readings in found.items():
        speed, cpu = (statistics.median(getattr(one, what) for one in readings) for what in ("texts_per_s", "cpu_ms"))
        more, always = cpu - alone.cpu_ms, 0.0 if name == "engine alone" else 1000 * idle / speed
        print(f"| {name} | {speed:.1f} | {speed / alone.texts_per_s:.3f} | {cpu:.2f} | {more:.2f} | {always:.2f} |", flush=True)
    return statistics.median(one.texts_per_s for one in found["1 text a request"])


def compute_ms(sent: Sent) -> float:
    """Return what the batch took that a text was answered with."""
    found = re.search(r"compute;dur=([0-9.]+)", sent.timing)
    return float(found.group(1)) if found else float("nan")


def print_load(served: Served, capacity: float, seconds: float, alone: Sequence[Sent]) -> None:
    """Print latencies at 80 %, and what is answered when more comes than can be."""
    # With so many callers nearly all batches are full.
    batch_ms = statistics.median(compute_ms(one) for one in served.send(1, seconds / 2, callers=CONCURRENCY[1]) if one.status == 200)
    own_ms = 1000 * quantile([one.latency_s for one in alone], 0.99)
    print(
        f"a full batch takes {batch_ms:.0f} ms, texts alone at most {own_ms:.0f} (p99): two batches and own {2 * batch_ms + own_ms:.0f} ms"
    )
    lengths = [len(text.split()) + 2 for text in make_texts(TEXTS)]
    without = p99s_of_no_loss(lengths, capacity, 0.8, served.facts.batch_tokens, seconds)
    low, middle, high = (1000 * quantile(without, share) for share in (0.05, 0.5, 0.95))
    print(
        f"at 0.8 x a server that loses nothing, in order of arrival, has a p99 of {middle:.0f} ms"
        f" ({low:.0f} to {high:.0f} in nine of ten readings as long as these)"
    )
    columns = ["arriving", "answered/s", "of capacity", "refused", "late", "other"]
    columns += ["p50 ms", "p99 ms", "p50 of refusals, ms", "slowest refusal, ms"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for share in (0.8, 2.0, 5.0):
        sent = served.send(1, seconds, rate=share * capacity)
        counts = Counter(one.status if one.status in (200, 503, 504) else 0 for one in sent)
        good, refusals = ([1000 * one.latency_s for one in sent if one.status == status] for status in (200, 503))
        rate = len(good) / max(seconds, *(one.left_s + one.latency_s for one in sent if one.status == 200))
        told = [f"{share:.1f} x", f"{rate:.1f}", f"{rate / capacity:.2f}", *(str(counts[status]) for status in (503, 504, 0))]
        waits = [quantile(good, 0.5), quantile(good, 0.99), quantile(refusals, 0.5), max(refusals, default=0.0)]
        told += [f"{found:.0f}" for found in waits]
        print(f"| {' | '.join(told)} |", flush=True)


def print_recovery(served: Served, capacity: float, seconds: float, alone: Sequence[Sent]) -> None:
    """Print how long after five times its capacity single texts are answered as quickly as before."""
    before = max(one.latency_s for one in alone)
    sent = served.send(1, seconds, rate=5 * capacity, then_one_by_one_s=RECOVERY_S)
    after = [one for one in sent if one.left_s > seconds]
    late = [one.left_s + one.latency_s for one in after if one.status != 200 or one.latency_s > 2 * before]
    told = f"{max(late, default=seconds) - seconds:.1f} s after the flood the last slow answer came"
    print(f"{told}; slow is twice the {1000 * before:.0f} ms of the slowest text alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="base")
    parser.add_argument("--precision", default="float32", help="float32, int8 or bfloat16 (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of one reading")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--askers", type=int, default=1, help="processes that ask, 32 callers each")
    parser.add_argument("--gpu", type=float, default=0.0, help="of a replica; several may share one")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch-tokens", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(options.bare, options.precision, options.batch_tokens, options.seconds)
        return
    with tempfile.TemporaryDirectory(prefix="http-") as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> None:
    version = write_version(folder, options.shape)
    for together in CONCURRENCY:
        write_bodies(folder / f"{together}.jsonl", make_texts(TEXTS), together)
    registry = Registry(Storage(str(folder / "storage")))
    registry.promote(registry.publish(version))
    more: dict[str, Any] = {"resources_per_replica": {"gpu": options.gpu}} if options.gpu else {}
    count = options.replicas
    settings = ServingSettings(port=free_port(18_300), min_replicas=count, max_replicas=count, precision=options.precision, **more)
    cluster = ClusterSettings(
        storage=str(folder / "storage"), num_cpus=count + 1, num_gpus=int(options.gpu > 0), object_store_bytes=100_000_000
    )
    with connect(cluster) as connection:
        rollout = Rollout.at(connection.dashboard_url, cluster, lambda _: None)
        rollout.deploy(settings, None)
        served = Served(settings.url, settings.port, folder, options.askers)
        print(f"{options.shape} on {served.facts.device}, {served.facts.dtype}, batches of {served.facts.batch_tokens} tokens", flush=True)
        command = [sys.executable, __file__, "--bare", str(version), "--precision", options.precision, "--seconds", str(options.seconds)]
        command += ["--batch-tokens", str(served.facts.batch_tokens)]

        def measure_bare() -> Reading:
            return Reading(*json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]))

        idle = print_idle(served, options.seconds)
        capacity = print_cost(served, measure_bare, idle, options.rounds, options.seconds)
        # Of all lengths: a long text takes several times what most do.
        alone = served.send(1, 2 * options.seconds)
        print_load(served, capacity, 2 * options.seconds, alone)
        print_recovery(served, capacity, options.seconds, alone)
        rollout.stop()


if __name__ == "__main__":
    main()
