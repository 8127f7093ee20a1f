"""Brings the application into a Ray cluster and changes it there, through Serve's REST interface.

Other applications of the cluster are left as they are. Changing the number of replicas restarts none; what restarts them
starts the new ones first. It does not know how a replica answers.
"""

import http
import json
import secrets
import socket
import time
from contextlib import suppress
from typing import Any, Self

from cluster.errors import ClusterError
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from serving.app import APPLICATION, CODE_ROOT, DEPLOYMENT, Config, render, replica_environment
from serving.serve_rest import PATIENCE_S, Say, ServeClient, ServeRest, client_at
from serving.settings import Arguments, ServingSettings
from serving.status import Status, closed_doors, deployed, present, progress, read_status

POLL_S = 0.25
_TRIAL_BYTES = 4


class _OtherwiseError(ClusterError):
    """What runs is not what was seen, or is not there."""


def _required(details: Config) -> Config:
    application = deployed(details)
    if application is None:
        raise _OtherwiseError("nothing is deployed on this cluster", "python -m serving deploy")
    return application


class Rollout:
    """Serve in one cluster.

    Args:
        client: Of the cluster's Serve.
        cluster: The section `cluster`.
        say: Takes a line of progress.
    """

    def __init__(self, client: ServeClient, cluster: ClusterSettings, say: Say) -> None:
        self._serve = ServeRest(client, say)
        self._cluster = cluster
        self._say = say

    @classmethod
    def at(cls, dashboard_url: str, cluster: ClusterSettings, say: Say) -> Self:
        """Reach Serve behind a dashboard that `cluster.connection` found.

        Raises:
            ClusterError: The dashboard does not answer.
        """
        return cls(client_at(dashboard_url, say), cluster, say)

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
        runtime_env = self._runtime_env(settings)
        started = time.monotonic()
        until = started + settings.ready_timeout_s
        details = self._serve.details(until)
        self._check_port(settings, details)
        config = render(self._with_bounds_of(details, settings) if trial else settings, arguments, runtime_env)
        _begin_with_what_runs(config, details)
        self._serve.put(lambda now: _beside_others(config, now), until)
        self._wait(settings, arguments.dump(), started)

    def end_trial(self, settings: ServingSettings) -> None:
        """Take the candidate out of what is deployed, change nothing else, and wait until it answers.

        Args:
            settings: Where that is, and how long it may take.

        Raises:
            ClusterError: Nothing is deployed, or see `deploy`.
        """

        def without_trial(now: Config) -> Config:
            # Not what the file says: it may have changed since, and the replicas' bounds too.
            application: Config = _required(now)["deployed_app_config"]
            args: Config = application["args"]
            application["args"] = args | {"trial": "", "settings": args["settings"] | {"canary": None, "shadow": None}}
            config = _same_doors(now) | {"applications": [application]}
            _begin_with_what_runs(config, now)
            return _beside_others(config, now)

        started = time.monotonic()
        put = self._serve.put(without_trial, started + settings.ready_timeout_s)
        (ours,) = (one for one in put["applications"] if one["name"] == APPLICATION)
        self._wait(settings, ours["args"], started)

    def scale(self, minimum: int, maximum: int) -> Status:
        """Change between how many replicas the application runs; none is restarted.

        Raises:
            ClusterError: It is not deployed.
        """

        def scaled(now: Config) -> Config:
            config: Config = _required(now)["deployed_app_config"]
            for deployment in config["deployments"]:
                if deployment["name"] == DEPLOYMENT:
                    # It goes on with the replicas it has, as far as these bounds allow.
                    deployment["autoscaling_config"] |= {"min_replicas": minimum, "max_replicas": maximum, "initial_replicas": None}
            return _beside_others(_same_doors(now) | {"applications": [config]}, now)

        self._serve.put(scaled)
        return self.status()

    def status(self) -> Status:
        """Tell what runs.

        Raises:
            ClusterError: It is not deployed.
        """
        details = self._serve.details()
        application = _required(details)
        return read_status(application, details)

    def is_deployed(self) -> bool:
        """Tell whether the application is in this cluster."""
        return deployed(self._serve.details()) is not None

    def stop(self) -> bool:
        """Take the application away, after the requests in it are answered, and wait until it is gone.

        Returns:
            Whether there was one.

        Raises:
            ClusterError: The dashboard does not answer, or the application is not gone in time.
        """
        first = present(self._serve.details())
        if first is None:
            return False
        until = time.monotonic() + _grace_s(first) + PATIENCE_S
        while application := present(details := self._serve.details()):
            if time.monotonic() > until:
                raise ClusterError("what is served is still ending", "`python -m cluster status` tells when it is gone")
            # Once more, too, while nothing has changed: Serve ignores an end for which its controller is late, and says nothing.
            if application.get("deployed_app_config"):
                self._take_away(details, first)
            else:
                time.sleep(POLL_S)
        return True

    def stop_at_last(self) -> None:
        """Stop at the end of a command whose own outcome counts: what goes wrong is only said."""
        try:
            self.stop()
        except ClusterError as error:
            self._say(f"warning: {error.message} ({error.hint})")

    def _take_away(self, details: Config, first: Config) -> None:
        def without_ours(now: Config) -> Config:
            _require_unchanged(now, first)
            return _beside_others(_same_doors(now) | {"applications": []}, now)

        def require_alone(now: Config) -> None:
            _require_unchanged(now, first)
            if _has_others(now):
                raise _OtherwiseError("others came meanwhile")

        # Each decides by what is there at the moment, and where that is no more what was seen, who calls looks anew.
        with suppress(_OtherwiseError):
            if _has_others(details):
                self._serve.put(without_ours)
            else:
                self._serve.delete(require_alone)

    def _runtime_env(self, settings: ServingSettings) -> dict[str, Any]:
        env: dict[str, Any] = {"working_dir": f"local://{CODE_ROOT}"}
        if not self._cluster.is_local:
            env = {"working_dir": str(CODE_ROOT), "excludes": list(self._cluster.exclude)}
            self._serve.upload(env)
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

        until = started + settings.ready_timeout_s
        told = ""
        with httpx.Client(base_url=settings.url, timeout=5.0, trust_env=False) as client:
            while True:
                details = self._serve.details(until)
                application = _required(details)
                _raise_if_replaced(application, ours)
                status = read_status(application, details)
                _raise_if_failed(status)
                # Elsewhere the address may not lead there from here.
                closed = "" if self._cluster.is_local else closed_doors(application, details)
                if status.state == "RUNNING" and (_answers(client) if self._cluster.is_local else not closed):
                    return
                if time.monotonic() > until:
                    found = f"{settings.url} does not answer after {time.monotonic() - started:.0f} s: {_why(status, closed, settings)}"
                    raise ClusterError(found, "`python -m cluster status` shows what is free")
                if (line := progress(status)) != told:
                    self._say(line)
                    told = line
                time.sleep(POLL_S)


def _why(status: Status, closed: str, settings: ServingSettings) -> str:
    if status.state == "RUNNING" and closed:
        return f"{closed}; is port {settings.port} of their machines taken?"
    return status.message or f"Serve says {status.state}, {status.running} replicas run"


def _grace_s(application: Config) -> float:
    deployments = (application.get("deployed_app_config") or {}).get("deployments", ())
    return max((one.get("graceful_shutdown_timeout_s") or 0.0 for one in deployments), default=0.0)


def _require_unchanged(details: Config, first: Config) -> None:
    # A PUT of anybody that names our application sets the time anew.
    if _required(details)["last_deployed_time_s"] != first["last_deployed_time_s"]:
        found = "somebody changed or put back what is deployed meanwhile, and it stays"
        raise ClusterError(found, "`python -m serving status` shows what is served")


def _has_others(details: Config) -> bool:
    return any(name != APPLICATION and facts["status"] != "DELETING" for name, facts in details["applications"].items())


def _beside_others(config: Config, details: Config) -> Config:
    """Add the cluster's other applications, which a declarative deployment would take away."""
    # Where somebody lowered all applications' capacity, it stays so: what is left out is set back.
    capacity = {"target_capacity": details["target_capacity"]} if details.get("target_capacity") is not None else {}
    return config | capacity | {"applications": [*_others(details), *config["applications"]]}


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
