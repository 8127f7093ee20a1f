"""Our policy for the number of replicas against Ray Serve's, on traffic that changes, in a model with a clock of its own.

    python benchmarks/autoscaling/simulate_autoscaling.py --out RESULTS

Both are called as Serve's controller calls them, through Serve's own code for delays and factors: ours is the class that ships, Serve's
the function that ships with its defaults, and once with settings that suit short requests. Beside them stands who knows the traffic and
asks at once for what it needs: nobody can do better without replicas to spare, because they take time to start. Prints, for each shape and
size, how many requests were refused or answered after the objective, and how many replica-hours that took; draws waits and replicas.
"""

import argparse
import gc
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from drawing import draw
from model import Machine, Model, Outcome, Reports
from ray.serve import autoscaling_policy
from ray.serve.config import AutoscalingConfig, AutoscalingContext
from traffic import SHAPES, Shape, requests

from serving.scaling.policy import ASKED, SPEED, WAITING, Backlog, replicas_for

TARGET_MS = 1_000.0
# Of BERT-base in int8 on a core of the machine of LOG.md.
MACHINE = Machine(own_s=0.015, token_s=0.00058, batch_tokens=538)


@dataclass(frozen=True)
class Size:
    """How large: the most replicas, the work at the peak in replicas, texts in a request."""

    most: int
    peak: float
    texts: int
    start_s: float


SIZES = {"to 8": Size(8, 5.0, 1, 12.0), "to 100": Size(100, 60.0, 4, 30.0), "to 1,000": Size(1_000, 600.0, 8, 60.0)}


@dataclass(frozen=True)
class Policy:
    """A policy and Serve's settings around it."""

    name: str
    decide: Callable[[Any], Any]
    config: AutoscalingConfig


def policies(size: Size) -> list[Policy]:
    """Ours, Serve's with its defaults, and Serve's with settings for short requests."""
    bounds = {"min_replicas": 1, "max_replicas": size.most}
    serves = autoscaling_policy.default_autoscaling_policy
    ours = Backlog(target_p95_ms=TARGET_MS, hold_s=240.0, idle_s=300.0)
    quick = {"upscale_delay_s": 0.0, "downscale_delay_s": 0.0, "look_back_period_s": 5.0, "metrics_interval_s": 1.0}
    tuned = quick | {"upscale_delay_s": 3.0, "downscale_delay_s": 60.0}
    return [
        Policy("ours", ours, AutoscalingConfig(**bounds, **quick)),
        Policy("Serve's defaults", serves, AutoscalingConfig(**bounds)),
        Policy("Serve's, quick", serves, AutoscalingConfig(**bounds, **tuned, target_ongoing_requests=max(16 // size.texts, 1))),
    ]


class Controller:
    """Calls a policy as Serve's controller does."""

    def __init__(self, policy: Policy) -> None:
        self._config = policy.config
        self._policy = autoscaling_policy._apply_autoscaling_config(policy.decide)
        self._state: dict[str, Any] = {}

    def __call__(self, model: Model) -> int:
        """Decide about a model."""
        running = model.running
        since = model.now - self._config.look_back_period_s

        def ongoing() -> float:
            told = [[one.value for one in replica.pushed.get("requests", ()) if one.timestamp >= since] for replica in running]
            return sum(sum(values) / len(values) for values in told if values) + len(model.held)

        context = AutoscalingContext(
            deployment_id=None, deployment_name="", app_name="", current_num_replicas=len(running), target_num_replicas=model.target,
            running_replicas=[], total_num_requests=ongoing, total_queued_requests=float(len(model.held)), aggregated_metrics=None,
            raw_metrics={name: {one.number: one.pushed[name] for one in running if name in one.pushed} for name in (WAITING, ASKED, SPEED)},
            capacity_adjusted_min_replicas=model.minimum, capacity_adjusted_max_replicas=model.maximum, policy_state=self._state,
            last_scale_up_time=None, last_scale_down_time=None, current_time=model.now, config=self._config,
        )  # fmt: skip
        # Serve's delays read the clock themselves.
        with patch.object(autoscaling_policy, "time", SimpleNamespace(time=lambda: model.now)):
            wanted, self._state = self._policy(context)
        return int(wanted)


def needed(load: float) -> int:
    """Return how many replicas some work needs, with the room that ours leaves."""
    return max(replicas_for(load), 1)


def simulate(policy: Policy | None, shape: Shape, size: Size, max_queue_s: float, seed: int) -> Outcome:
    """Run one policy on one shape; none: who knows the traffic."""
    machine = Machine(MACHINE.own_s, MACHINE.token_s, MACHINE.batch_tokens, max_queue_s=max_queue_s, start_s=size.start_s)
    config = policy.config if policy else AutoscalingConfig()
    reports = Reports(config.look_back_period_s, config.metrics_interval_s)
    decide = Controller(policy) if policy else lambda model: needed(size.peak * shape.load(model.now))
    traffic = requests(shape, size.peak * machine.tokens_per_s, size.texts, seed)
    # Neither has to catch up at the start.
    first = needed(size.peak * shape.load(0.0))
    return Model(machine, traffic, decide, reports, (1, size.most), first, seed).run()


def _case(size: str, shape: int, policy: int, max_queue_s: float, seed: int) -> Outcome:
    # Millions of objects that hold each other in no circle: looking for circles is a third of the time.
    gc.disable()
    of_size = SIZES[size]
    return simulate([*policies(of_size), None][policy], SHAPES[shape], of_size, max_queue_s, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--shapes", nargs="+", choices=[shape.name for shape in SHAPES], default=[shape.name for shape in SHAPES])
    parser.add_argument("--max-queue-s", type=float, default=4.0, help="work that may wait before a replica refuses; 4 is its default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="cases side by side")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    facts = []
    print(
        "| replicas | traffic | policy | requests | refused or late | share | replica-hours | p95 ms |\n|---|---|---|---|---|---|---|---|"
    )
    names = [*(policy.name for policy in policies(SIZES["to 8"])), "knows it"]
    shapes = [number for number, shape in enumerate(SHAPES) if shape.name in options.shapes]
    with ProcessPoolExecutor(options.processes, get_context("spawn"), max_tasks_per_child=1) as pool:
        running = {
            (name, shape): [pool.submit(_case, name, shape, number, options.max_queue_s, options.seed) for number in range(len(names))]
            for name in options.sizes
            for shape in shapes
        }
        for (name, number), cases in running.items():
            shape, outcomes = SHAPES[number], {}
            for who, case in zip(names, cases, strict=True):
                outcomes[who] = found = case.result()
                bad, hours = found.violations(TARGET_MS / 1000), found.replica_s / 3600
                told = (who, found.requests, bad, f"{bad / found.requests:.4f}", f"{hours:.2f}", f"{1000 * found.p95_s():.0f}")
                print(f"| {name} | {shape.name} | {' | '.join(map(str, told))} |", flush=True)
                facts.append(
                    {"size": name, "shape": shape.name, "policy": who, "requests": found.requests, "violations": bad, "replica_h": hours}
                )
            drawing = draw(f"{shape.name}, {name} replicas", TARGET_MS / 1000, outcomes)
            (options.out / f"{shape.name}-{name}.svg".replace(" ", "-").replace(",", "")).write_text(drawing, encoding="utf-8")
            cases.clear()
    (options.out / "autoscaling.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
