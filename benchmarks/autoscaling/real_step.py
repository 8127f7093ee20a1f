"""Four times as many requests at once, on real replicas: our policy and Serve's own in one run, and the model on the same requests.

    python benchmarks/autoscaling/real_step.py --out RESULTS

Each gets a Ray of its own with a version of random weights on one replica, at most two, and the same requests on one schedule: few, four
times as many, few again. Prints how long it took until answers came within the objective again, what failed, and when the second replica
had gone. The model is given what the first run measured (what batches cost, how long a replica took to start) and has to tell its p95 and
replica-seconds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from beside import OVER_HTTP
from made import make_texts, write_bodies, write_version
from model import Machine, Model, Outcome, Reports
from ray.serve.config import AutoscalingConfig
from simulate_autoscaling import Controller, Policy
from wire import Sent

from cluster.connection import connect
from cluster.session import free_port
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from serving.rollout import Rollout
from serving.scaling.policy import Backlog
from serving.settings import AutoscalingSettings, ServingSettings
from training.registry import Registry

TEXTS = 512
TARGET_MS, MAX_QUEUE_S = 1_000.0, 15.0
OURS = AutoscalingSettings(target_p95_ms=TARGET_MS, downscale_delay_s=60.0)
# AutoscalingConfig's own defaults.
SERVES = AutoscalingSettings(
    policy="requests",
    target_ongoing_requests=2.0,
    upscale_delay_s=30.0,
    downscale_delay_s=600.0,
    look_back_period_s=30.0,
    metrics_interval_s=10.0,
)
# Answers of so long are looked at together, and the objective is kept again when it is in so many of them.
_BIN_S, _BINS_IN_A_ROW = 5.0, 3


@dataclass
class Step:
    """One run.

    Attributes:
        sent: Every request, from the first one's start.
        replicas: (second, running, all), at every change.
        begins_s, ends_s: Of the time with many requests.
    """

    begins_s: float
    ends_s: float
    sent: list[Sent] = field(default_factory=list)
    replicas: list[tuple[float, int, int]] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Requests without an answer."""
        return sum(one.status != 200 for one in self.sent)

    def p95_s(self, begins_s: float, ends_s: float) -> float:
        """Of the answers to what left in some time."""
        found = sorted(one.latency_s for one in self.sent if begins_s <= one.left_s < ends_s and one.status == 200)
        return found[min(len(found) - 1, int(0.95 * len(found)))] if found else float("nan")

    def back_after_s(self) -> float:
        """Seconds from the step until the p95 had kept to the objective for some bins in a row; nan where it never did."""
        starts = np.arange(self.begins_s, self.ends_s - _BINS_IN_A_ROW * _BIN_S, _BIN_S)
        kept = (start for start in starts if all(self._keeps(start + one * _BIN_S) for one in range(_BINS_IN_A_ROW)))
        return float(next(kept, float("nan")) - self.begins_s)

    def _keeps(self, begins_s: float) -> bool:
        return self.p95_s(begins_s, begins_s + _BIN_S) <= TARGET_MS / 1000

    def replica_s(self, until_s: float) -> float:
        """Seconds of all replicas, also of those that start."""
        ends = [*self.replicas, (until_s, 0, 0)]
        return sum(count * (min(after, until_s) - at) for (at, _, count), (after, _, _) in pairwise(ends) if at < until_s)

    def first_s(self, running: int, after_s: float) -> float | None:
        """When so many ran for the first time after a moment."""
        return next((at for at, count, _ in self.replicas if at >= after_s and count == running), None)


def measure(
    folder: Path, shape: str, precision: str, rate: float, seconds: tuple[float, float, float], scaling: AutoscalingSettings
) -> Step:
    """Serve and send."""
    cluster = ClusterSettings(storage=str(folder / "storage"), num_cpus=4, num_gpus=0, object_store_bytes=100_000_000)
    # On two cores a replica that starts takes half of them from the one that answers: nobody is refused meanwhile.
    settings = ServingSettings.model_validate(
        {"port": free_port(18_000), "max_replicas": 2, "precision": precision, "max_queue_s": MAX_QUEUE_S, "autoscaling": scaling}
    )
    with connect(cluster) as connection:
        rollout = Rollout.at(connection.dashboard_url, cluster, lambda _: None)
        rollout.deploy(settings, None)
        step = Step(seconds[0], seconds[0] + seconds[1])
        begun, ended = time.perf_counter(), threading.Event()

        def watch() -> None:
            while not ended.wait(0.5):
                found = rollout.status().replicas
                now = (found.get("RUNNING", 0), sum(found.values()))
                if not step.replicas or step.replicas[-1][1:] != now:
                    step.replicas.append((time.perf_counter() - begun, *now))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for part, (much, lasts_s) in enumerate(zip((1, 4, 1), seconds, strict=True)):
                offset = time.perf_counter() - begun
                command = [sys.executable, OVER_HTTP / "wire.py", "--port", settings.port, "--bodies", folder / "1.jsonl"]
                command += ["--seconds", lasts_s, "--rate", much * rate, "--seed", part]
                told = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout
                step.sent += [Sent(*one)._replace(left_s=one[0] + offset) for one in json.loads(told)]
                if part == 0:
                    step.begins_s, step.ends_s = time.perf_counter() - begun, time.perf_counter() - begun + seconds[1]
        finally:
            ended.set()
            watcher.join()
        rollout.stop()
    return step


def costs(sent: list[Sent]) -> tuple[float, float, int]:
    """Fit what a batch costs by itself and for each token, from what answers tell; and the tokens of the largest."""
    told = {_timing(one.timing) for one in sent if one.status == 200}
    tokens, seconds = (np.array(column) for column in zip(*((tokens, compute) for compute, tokens, _ in told), strict=True))
    # Least relative error: small batches are many.
    weights = 1 / seconds
    own, token = np.linalg.lstsq(np.stack([weights, tokens * weights], axis=1), np.ones(len(seconds)), rcond=None)[0]
    return max(float(own), 0.0), float(token), int(tokens.max())


def _timing(header: str) -> tuple[float, float, float]:
    """Return seconds in the engine, tokens of the batch, and seconds in the queue."""
    parts = dict(part.strip().split(";", 1) for part in header.split(","))
    compute, tokens, queue = (float(parts[name].split("=")[1].strip('"')) for name in ("compute", "tokens", "queue"))
    return compute / 1000, tokens, queue / 1000


def predict(step: Step, tokens: list[int], scaling: AutoscalingSettings, until_s: float) -> Outcome:
    """Let the model answer the same requests, with what the run measured."""
    started = step.first_s(2, step.begins_s)
    wanted = next((at for at, _, count in step.replicas if at >= step.begins_s and count == 2), None)
    if started is None or wanted is None:
        raise RuntimeError("no second replica came")
    answered = [one for one in step.sent if one.status == 200]
    # By when the answer came: what left earlier may have been computed then.
    own_s, token_s, batch_tokens = costs([one for one in answered if not wanted <= one.left_s + one.latency_s <= started])
    meanwhile = {_timing(one.timing)[:2] for one in answered if wanted <= one.left_s + one.latency_s <= started}
    # The engine never waited for work then, and still stood still at times.
    slows = (started - wanted) / sum(own_s + token_s * size for _, size in meanwhile)
    front_s = statistics.median(one.latency_s - sum(_timing(one.timing)[::2]) for one in answered)
    start_s = started - wanted
    print(
        f"measured: a batch {1000 * own_s:.1f} ms and {1000 * token_s:.3f} ms a token, at most {batch_tokens} tokens; "
        f"a start {start_s:.1f} s, in which batches take {slows:.2f} times as long"
    )
    machine = Machine(own_s, token_s, batch_tokens, front_s, max_queue_s=MAX_QUEUE_S, start_s=start_s, start_spread=0.0, start_slows=slows)
    config = AutoscalingConfig(
        min_replicas=1, max_replicas=2, upscale_delay_s=0.0, downscale_delay_s=0.0, look_back_period_s=5.0, metrics_interval_s=1.0
    )
    policy = Policy("ours", Backlog(TARGET_MS, scaling.downscale_delay_s, scaling.idle_s), config)

    def traffic() -> Iterator[tuple[float, list[int]]]:
        for one in sorted(step.sent):
            yield one.left_s, [tokens[one.body]]
        yield until_s, [3]

    return Model(machine, traffic(), Controller(policy), Reports(5.0, 1.0), (1, 2), 1, 0).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="base")
    parser.add_argument("--precision", default="int8", help="of the encoder; where int8 is slow, float32 with fewer requests")
    parser.add_argument("--rate", type=float, default=6.0, help="requests a second before the step")
    parser.add_argument("--seconds", type=float, nargs=3, default=(60.0, 150.0, 120.0), help="before, in and after it")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="step-"))
    texts = make_texts(TEXTS)
    write_bodies(folder / "1.jsonl", texts, 1)
    registry = Registry(Storage(str(folder / "storage")))
    registry.promote(registry.publish(write_version(folder, options.shape)))
    until_s = sum(options.seconds)
    print("| policy | requests | failed | within the objective again after | p95 before, at its end | replica-s | down to one after |")
    print("|---|---|---|---|---|---|---|")
    steps = {}
    for name, scaling in (("ours", OURS), ("Serve's default", SERVES)):
        step = steps[name] = measure(folder, options.shape, options.precision, options.rate, tuple(options.seconds), scaling)
        down = step.first_s(1, step.ends_s)
        row = (
            name, len(step.sent), step.failed, f"{step.back_after_s():.0f} s",
            f"{1000 * step.p95_s(0, step.begins_s):.0f}, {1000 * step.p95_s(step.ends_s - 60, step.ends_s):.0f} ms",
            f"{step.replica_s(until_s):.0f}", "not in this run" if down is None else f"{down - step.ends_s:.0f} s",
        )  # fmt: skip
        print(f"| {' | '.join(map(str, row))} |", flush=True)
    real = steps["ours"]
    model = predict(real, [len(text.split()) + 2 for text in texts], OURS, until_s)
    print(f"p95 of all answers {1000 * real.p95_s(0, until_s):.0f} ms, the model says {1000 * model.p95_s():.0f}")
    print(f"replica-seconds {real.replica_s(until_s):.0f}, the model says {model.replica_s:.0f}")
    (options.out / "step.json").write_text(json.dumps({name: vars(step) for name, step in steps.items()}), encoding="utf-8")


if __name__ == "__main__":
    main()
