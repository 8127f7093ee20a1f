"""The application as Ray Serve sees it: what it imports, what it hands to every replica, and how it runs them.

Serve's own schema accepts misspelt keys silently, so its whole configuration is rendered here from checked settings. Arguments
are part of the code's version: when they change, Serve replaces the replicas. So only what a replica really uses is among
them, and scaling is not.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.observing.logs import serve_logging
from serving.settings import CODE_VARIABLE, Arguments, ServingSettings

if TYPE_CHECKING:
    from ray.serve import Application

APPLICATION = "twohead"
DEPLOYMENT = "Replica"
IMPORT_PATH = "serving.app:build"
POLICY_PATH = "serving.scaling.policy:Backlog"
CODE_ROOT = Path(__file__).resolve().parent.parent

Config = dict[str, Any]

# A replica that is taken away gets this long beyond the longest request.
_DRAIN_MARGIN_S = 5.0
_PACKAGES = ("cluster", "training", "serving")


def build(arguments: dict[str, Any]) -> "Application":
    """Make the application; Serve calls this by its import path."""
    from ray import serve

    from serving.replica import Replica

    checked = Arguments.model_validate(arguments)
    deployment: Any = serve.deployment(serve.ingress()(Replica), name=DEPLOYMENT)
    application: Application = deployment.bind(checked.dump())
    return application


def render(settings: ServingSettings, arguments: Arguments, runtime_env: dict[str, Any]) -> Config:
    """Describe the application in Serve's terms (`ServeDeploySchema`).

    Args:
        settings: How to serve.
        arguments: What each replica gets.
        runtime_env: Where replicas find the code.
    """
    application = {
        "name": APPLICATION,
        "route_prefix": "/",
        "import_path": IMPORT_PATH,
        "runtime_env": runtime_env,
        "args": arguments.dump(),
        "logging_config": serve_logging(settings),
        "deployments": [_deployment(settings)],
    }
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": settings.host, "port": settings.port},
        "logging_config": {"enable_access_log": False},
        "applications": [application],
    }


def _deployment(settings: ServingSettings) -> Config:
    return {
        "name": DEPLOYMENT,
        "max_ongoing_requests": settings.max_ongoing_requests,
        # New replicas answer before old ones go, and a broken version of the code never gets requests.
        "max_surge_percent": 100,
        "autoscaling_config": _autoscaling(settings),
        # With Serve's default backoff, requests stall while the number of replicas falls to one.
        "request_router_config": {"initial_backoff_s": 0.005, "backoff_multiplier": 1.5, "max_backoff_s": 0.02},
        "health_check_period_s": 5.0,
        # One that stands still is missed three times and then replaced.
        "health_check_timeout_s": 10.0,
        "graceful_shutdown_wait_loop_s": 0.5,
        "graceful_shutdown_timeout_s": settings.deadline_ms / 1000 + _DRAIN_MARGIN_S,
        "ray_actor_options": {"num_cpus": settings.resources_per_replica.cpu, "num_gpus": settings.resources_per_replica.gpu},
    }


def _autoscaling(settings: ServingSettings) -> Config:
    chosen = settings.autoscaling
    config: Config = {
        "min_replicas": settings.min_replicas,
        "max_replicas": settings.max_replicas,
        "target_ongoing_requests": chosen.target_ongoing_requests,
        "upscale_delay_s": chosen.upscale_delay_s,
        "downscale_delay_s": chosen.downscale_delay_s,
        "downscale_to_zero_delay_s": chosen.idle_s,
        "look_back_period_s": chosen.look_back_period_s,
        # Ray calls this one deprecated, but the variables it names instead are read nowhere in 2.60.
        "metrics_interval_s": chosen.metrics_interval_s,
    }
    if not settings.min_replicas:
        # A deployment has to show once that it answers. Given, it is begun anew with so many at every change, however many are needed.
        config["initial_replicas"] = 1
    if chosen.policy == "requests":
        return config
    own = {"target_p95_ms": chosen.target_p95_ms, "hold_s": chosen.downscale_delay_s, "idle_s": chosen.idle_s}
    # It holds what was needed itself: Serve's delay would begin anew whenever it is.
    return config | {
        "downscale_delay_s": 0.0,
        "downscale_to_zero_delay_s": 0.0,
        "policy": {"policy_function": POLICY_PATH, "policy_kwargs": own},
    }


def replica_environment(settings: ServingSettings) -> dict[str, str]:
    """Return the variables of a replica's process."""
    return {
        "OMP_NUM_THREADS": str(settings.threads),
        # Threads that spin while they wait take the cores from other replicas.
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        # A new deployment of changed code must replace the replicas, though the folder's name stays.
        CODE_VARIABLE: code_digest(),
    }


def code_digest() -> str:
    """Return a digest of our own source files."""
    digest = hashlib.sha256()
    files = (path for package in _PACKAGES for path in (CODE_ROOT / package).rglob("*") if path.is_file() and path.suffix != ".pyc")
    for path in sorted(files):
        digest.update(path.relative_to(CODE_ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
