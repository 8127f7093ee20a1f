"""Brings the application into a Ray cluster and changes it there, through Serve's REST interface.

Other applications of the cluster are left as they are. Changing the number of replicas restarts none; what restarts them
starts the new ones first. It does not know how a replica answers.
"""

import http
import json
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, Self, TypeVar

from cluster.errors import ClusterError
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from serving.app import APPLICATION, CODE_ROOT, DEPLOYMENT, Config, render, replica_environment
from serving.settings import Arguments, ServingSettings
from serving.status import Status, deployed, progress, read_status, reason

Say = Callable[[str], None]
T = TypeVar("T")

POLL_S = 0.25
_TRIAL_BYTES = 4


class _LateError(ClusterError):
    """Serve's REST interface failed by itself (HTTP 5xx), which passes where something in the cluster was only late."""


class ServeClient(Protocol):
    """What is used of Ray's client of Serve's REST interface."""

    def get_serve_details(self) -> Config:
        """Describe what runs."""
        ...

    def deploy_applications(self, config: Config) -> None:
        """Make these applications, and no others, run."""
        ...

    def delete_applications(self) -> None:
        """End Serve."""
        ...

    def _upload_working_dir_if_needed(self, runtime_env: Config) -> None:
        """Upload a local folder, and put its URI in its place."""
        ...


def _required(details: Config) -> Config:
    application = deployed(details)
    if application is None:
        raise ClusterError("nothing is deployed on this cluster", "python -m serving deploy")
    return application


class Rollout:
    """Serve in one cluster.

    Args:
        client: Of the cluster's Serve.
        cluster: The section `cluster`.
        say: Takes a line of progress.
    """

    def __init__(self, client: ServeClient, cluster: ClusterSettings, say: Say) -> None:
        self._client = client
        self._cluster = cluster
        self._say = say

    @classmethod
    def at(cls, dashboard_url: str, cluster: ClusterSettings, say: Say) -> Self:
        """Reach Serve behind a dashboard that `cluster.connection` found.

        Raises:
            ClusterError: The dashboard does not answer.
        """
        from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

        with _explained("the dashboard"):
            return cls(ServeSubmissionClient(dashboard_url), cluster, say)

    def deploy(self, settings: ServingSettings, version: int | None) -> None:
        """Bring the application into service and wait until it answers.

        Where a trial begins beside what runs, there may be as many replicas as before: that is `scale`'s to change.

        Args:
            settings: How to serve.
            version: A published version to stay with; None follows `settings.name`.

        Raises:
            ClusterError: The port is taken, a replica cannot start, nothing answers in time, or somebody deployed something else meanwhile.
        """
        place, trusted = Storage(self._cluster.storage).uri, self._cluster.trusted_keys
        trial = secrets.token_hex(_TRIAL_BYTES) if settings.canary or settings.shadow else ""
        arguments = Arguments(storage=place, version=version, trusted_keys=trusted, trial=trial, settings=settings)
        started = time.monotonic()
        runtime_env = self._runtime_env(settings)
        details = self._in_time(self._details, settings, started)
        self._check_port(settings, details)
        config = render(self._with_bounds_of(details, settings) if trial else settings, arguments, runtime_env)
        _begin_with_what_runs(config, details)
        self._put_and_wait(_beside_others(config, details), settings, arguments.dump(), started)

    def end_trial(self, settings: ServingSettings) -> None:
        """Take the candidate out of what is deployed, change nothing else, and wait until it answers.

        Args:
            settings: Where that is, and how long it may take.

        Raises:
            ClusterError: Nothing is deployed, or see `deploy`.
        """
        started = time.monotonic()
        details = self._in_time(self._details, settings, started)
        # Not what the file says: it may have changed since, and the replicas' bounds too.
        application: Config = _required(details)["deployed_app_config"]
        args: Config = application["args"]
        application["args"] = args | {"trial": "", "settings": args["settings"] | {"canary": None, "shadow": None}}
        config = _same_doors(details) | {"applications": [application]}
        _begin_with_what_runs(config, details)
        self._put_and_wait(_beside_others(config, details), settings, application["args"], started)

    def scale(self, minimum: int, maximum: int) -> Status:
        """Change between how many replicas the application runs; none is restarted.

        Raises:
            ClusterError: It is not deployed.
        """
        details = self._details()
        application = _required(details)
        config: Config = application["deployed_app_config"]
        for deployment in config["deployments"]:
            if deployment["name"] == DEPLOYMENT:
                # It goes on with the replicas it has, as far as these bounds allow.
                deployment["autoscaling_config"] |= {"min_replicas": minimum, "max_replicas": maximum, "initial_replicas": None}
        self._put(_beside_others(_same_doors(details) | {"applications": [config]}, details))
        return self.status()

    def status(self) -> Status:
        """Tell what runs.

        Raises:
            ClusterError: It is not deployed.
        """
        details = self._details()
        application = _required(details)
        return read_status(application, details)

    def is_deployed(self) -> bool:
        """Tell whether the application is in this cluster."""
        return deployed(self._details()) is not None

    def stop(self) -> bool:
        """Take the application away, after the requests in it are answered.

        Returns:
            Whether there was one.
        """
        details = self._details()
        if deployed(details) is None:
            return False
        others = _others(details)
        with _explained("Serve"):
            if others:
                self._client.deploy_applications(_same_doors(details) | {"applications": others})
            else:
                self._client.delete_applications()
        return True

    def _details(self) -> Config:
        with _explained("Serve"):
            return self._client.get_serve_details()

    def _put(self, config: Config) -> None:
        with _explained("Serve"):
            self._client.deploy_applications(config)

    def _put_and_wait(self, config: Config, settings: ServingSettings, ours: Config, started: float) -> None:
        self._in_time(lambda: self._put(config), settings, started)
        self._wait(settings, ours, started)

    def _in_time(self, call: Callable[[], T], settings: ServingSettings, started: float) -> T:
        """Call again what failed since something was late, and say so; until `settings.ready_timeout_s` after `started`."""
        told = ""
        while True:
            try:
                return call()
            except _LateError as error:
                # Serve gives its proxies a minute to start, which a busy machine may exceed; they go on starting.
                if time.monotonic() - started > settings.ready_timeout_s:
                    raise
                if error.message != told:
                    self._say(f"{error.message}; asked again")
                    told = error.message
                time.sleep(POLL_S)

    def _runtime_env(self, settings: ServingSettings) -> dict[str, Any]:
        env: dict[str, Any] = {"working_dir": f"local://{CODE_ROOT}"}
        if not self._cluster.is_local:
            env = {"working_dir": str(CODE_ROOT), "excludes": list(self._cluster.exclude)}
            self._client._upload_working_dir_if_needed(env)
            env.pop("excludes", None)
        return env | {"env_vars": replica_environment(settings)}

    def _check_port(self, settings: ServingSettings, details: Config) -> None:
        if details.get("proxies"):
            options = details["http_options"]
            if (options["host"], options["port"]) != (settings.host, settings.port):
                raise ClusterError(
                    f"Serve listens on {options['host']}:{options['port']} here and cannot move to {settings.host}:{settings.port}",
                    "python -m serving stop, then deploy again; or keep its address in serving.host and serving.port",
                )
        elif self._cluster.is_local and not _is_free(settings):
            # Serve itself reports an application as ready whose port belongs to somebody else.
            found = f"{settings.host}:{settings.port} is taken by another process"
            raise ClusterError(found, "stop it, or choose another port: --set serving.port=8001")

    def _with_bounds_of(self, details: Config, settings: ServingSettings) -> ServingSettings:
        """Go on between as many replicas as there may be now, and say so where the settings say otherwise."""
        application = deployed(details)
        if application is None:
            return settings
        now = application["deployed_app_config"]["deployments"][0]["autoscaling_config"]
        least, most = now["min_replicas"], now["max_replicas"]
        if (least, most) != (settings.min_replicas, settings.max_replicas):
            self._say(f"replicas stay from {least} to {most}, as they are deployed: a trial does not change that, `scale` does")
        return settings.model_copy(update={"min_replicas": least, "max_replicas": most})

    def _wait(self, settings: ServingSettings, ours: Config, started: float) -> None:
        import httpx

        told = ""
        with httpx.Client(base_url=settings.url, timeout=5.0, trust_env=False) as client:
            while True:
                details = self._in_time(self._details, settings, started)
                application = _required(details)
                _raise_if_replaced(application, ours)
                status = read_status(application, details)
                _raise_if_failed(status)
                if status.state == "RUNNING" and (not self._cluster.is_local or _answers(client)):
                    return
                waited_s = time.monotonic() - started
                if waited_s > settings.ready_timeout_s:
                    why = status.message or f"Serve says {status.state}, {status.running} replicas run"
                    found = f"{settings.url} does not answer after {waited_s:.0f} s: {why}"
                    raise ClusterError(found, "`python -m cluster status` shows what is free")
                if (line := progress(status)) != told:
                    self._say(line)
                    told = line
                time.sleep(POLL_S)


def _beside_others(config: Config, details: Config) -> Config:
    """Add the cluster's other applications, which a declarative deployment would take away."""
    return config | {"applications": [*_others(details), *config["applications"]]}


def _others(details: Config) -> list[Config]:
    applications = details.get("applications", {}).items()
    return [facts["deployed_app_config"] for name, facts in applications if name != APPLICATION and facts.get("deployed_app_config")]


def _same_doors(details: Config) -> Config:
    kept = {key: details[key] for key in ("proxy_location", "http_options", "grpc_options") if details.get(key)}
    return kept | {"logging_config": {"enable_access_log": False}}


def _begin_with_what_runs(config: Config, details: Config) -> None:
    """Where it is told how many replicas to begin with, let these be as many as are wanted now."""
    running = (deployed(details) or {}).get("deployments", {}).get(DEPLOYMENT, {}).get("target_num_replicas", 0)
    for application in config["applications"]:
        for deployment in application["deployments"]:
            scaling = deployment["autoscaling_config"]
            if first := scaling.get("initial_replicas"):
                scaling["initial_replicas"] = min(max(first, running), scaling["max_replicas"])


def _raise_if_replaced(application: Config, ours: Config) -> None:
    # Serve knows no owner of a deployment: the last one to say something is obeyed.
    if application["deployed_app_config"]["args"] != json.loads(json.dumps(ours)):
        found = "somebody deployed something else meanwhile, which takes this one's place"
        raise ClusterError(found, "`python -m serving status` shows what is served; deploy again to have this")


def _raise_if_failed(status: Status) -> None:
    if status.state == "DEPLOY_FAILED":
        raise ClusterError(f"the replicas cannot start: {status.message}", "`python -m serving check` looks at settings and version")


def _answers(client: Any) -> bool:
    import httpx

    try:
        return bool(client.get("/health/ready").status_code == http.HTTPStatus.OK)
    except httpx.TransportError:
        return False


def _is_free(settings: ServingSettings) -> bool:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((settings.host, settings.port))
        except OSError:
            return False
    return True


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what Ray's client raises into our own error."""
    import requests

    try:
        yield
    except (RuntimeError, ConnectionError, requests.RequestException) as error:
        found = reason(str(error)) or type(error).__name__
        # Ray's client tells a status by words only.
        kind = _LateError if str(error).startswith("Request failed with status code 5") else ClusterError
        raise kind(f"{what}: {found}", "`python -m cluster status` tells what is running") from error
