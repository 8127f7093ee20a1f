"""Serve's REST interface in memory, for tests of what is deployed through it."""

import copy
from typing import Any

from cluster.session import free_port
from cluster.settings import ClusterSettings
from serving.app import APPLICATION
from serving.rollout import Rollout
from serving.settings import ServingSettings
from tests.ports import port_shift

OTHER = {"name": "other", "import_path": "other:app", "route_prefix": "/other"}
# As Ray's client says what its server failed of, with a full stop after the whole answer.
LATE = """Request failed with status code 500: Traceback (most recent call last):
  File "ray/serve/_private/api.py", line 223, in serve_start_async
TimeoutError: HTTP proxies not available after 60s.
."""


class FakeServe:
    """Serve's REST interface in memory; everything deployed runs at once, with `min_replicas` replicas."""

    def __init__(self, *others: dict[str, Any], status: str = "RUNNING", message: str = "") -> None:
        self.applications = {other["name"]: copy.deepcopy(other) for other in others}
        self.http_options: dict[str, Any] = {}
        self.status, self.message = status, message
        self.puts: list[dict[str, Any]] = []
        self.is_ended = False
        self.wanted = 0
        self.error: Exception | None = None
        self.late = {"get": 0, "put": 0, "delete": 0}
        self.comes_meanwhile: dict[str, Any] | None = None
        self.undeclared: dict[str, Any] = {}
        self.capacity: float | None = None
        self.door = "HEALTHY"
        self.missed_ends = 0
        self.ending = 0
        self.deployed_at = 1.0
        self.is_deployed_anew = False
        self.goes_after_a_put = False

    def get_serve_details(self) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        self._be_late("get")
        details: dict[str, Any] = {"applications": {name: self._described(config) for name, config in self.applications.items()}}
        details["applications"] |= self.undeclared
        if self.ending and APPLICATION not in self.applications:
            # While an application ends, Serve does not tell any more as what it was deployed.
            self.ending -= 1
            ending = {"status": "DELETING", "message": "", "last_deployed_time_s": 1.0, "deployed_app_config": None, "deployments": {}}
            details["applications"][APPLICATION] = ending
        if self.http_options:
            details |= {
                "proxies": {"node": {"status": self.door}},
                "proxy_location": "EveryNode",
                "http_options": self.http_options,
                "grpc_options": {},
                "target_capacity": self.capacity,
            }
        return copy.deepcopy(details)

    def _be_late(self, method: str) -> None:
        if self.late[method]:
            self.late[method] -= 1
            raise RuntimeError(LATE)

    def _described(self, config: dict[str, Any]) -> dict[str, Any]:
        running = sum(deployment["autoscaling_config"]["min_replicas"] for deployment in config.get("deployments", ()))
        replicas = [{"state": "RUNNING", "node_id": "node"}] * running
        deployments = {"Replica": {"replicas": replicas, "message": self.message, "target_num_replicas": self.wanted}}
        told = {"status": self.status, "message": "Failed to update.", "last_deployed_time_s": self.deployed_at}
        return told | {"deployed_app_config": config, "deployments": deployments}

    def deploy_applications(self, config: dict[str, Any]) -> None:
        self.puts.append(copy.deepcopy(config))
        if self.goes_after_a_put:
            self.applications, self.http_options = {}, {}
        self._be_late("put")
        self.http_options = self.http_options or config["http_options"]
        self.applications = {application["name"]: application for application in config["applications"]}

    def delete_applications(self) -> None:
        if self.comes_meanwhile:
            self.applications[self.comes_meanwhile["name"]] = self.comes_meanwhile
        self._be_late("delete")
        if self.missed_ends:
            # Serve says nothing where its controller is late.
            self.missed_ends -= 1
            self.deployed_at += self.is_deployed_anew
            return
        self.is_ended = True
        self.applications = {}

    def _upload_working_dir_if_needed(self, runtime_env: dict[str, Any]) -> None:
        runtime_env["working_dir"] = "gcs://code.zip"


def settings_of_a_free_port() -> ServingSettings:
    # None that the system gives to others meanwhile.
    return ServingSettings(port=free_port(19_600 + port_shift()), max_replicas=4)


def made(serve: FakeServe, **cluster: Any) -> Rollout:
    return Rollout(serve, ClusterSettings(storage="/registry", **cluster), lambda line: None)
