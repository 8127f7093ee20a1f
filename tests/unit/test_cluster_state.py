"""cluster.state: what is made of the dashboard's answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cluster import state as module
from cluster.settings import ClusterSettings
from cluster.state import state


def _dashboard(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any]) -> None:
    @contextmanager
    def reach(settings: ClusterSettings) -> Iterator[str]:
        yield "http://head:8265"

    monkeypatch.setattr(module, "reach", reach)
    monkeypatch.setattr(module, "ask", lambda url, path: answers[path])


def test_the_state_tells_nodes_resources_jobs_and_applications(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"state": "ALIVE", "resources_total": {"CPU": 2.0, "GPU": 1.0, "memory": 9.0}},
        {"state": "ALIVE", "resources_total": {"CPU": 4.0}},
        {"state": "DEAD", "resources_total": {"CPU": 8.0}},
    ]
    job = {"submission_id": "job-1", "metadata": {"name": "search"}, "status": "RUNNING", "start_time": 1000, "entrypoint": "python"}
    replicas = [{"state": "RUNNING"}, {"state": "STARTING"}]
    application = {"status": "DEPLOYING", "message": "", "deployments": {"Heads": {"replicas": replicas, "target_num_replicas": 2}}}
    answers = {
        "/api/v0/nodes": {"data": {"result": {"result": nodes}}},
        "/api/cluster_status": {"data": {"clusterStatus": {"loadMetricsReport": {"usage": {"CPU": [1.5, 6.0]}}}}},
        "/api/jobs/": [
            {**job, "submission_id": "job-0", "start_time": None, "metadata": None},
            job,
            {**job, "submission_id": None},
            {**job, "submission_id": "job-2", "start_time": 2000},
        ],
        "/api/serve/applications/": {"applications": {"twohead": application}},
    }
    _dashboard(monkeypatch, answers)
    found = state(ClusterSettings(address="http://head:8265"))
    assert (found["address"], found["nodes"], found["started_at_s"]) == ("http://head:8265", 2, None)
    assert found["resources"] == {"CPU": {"used": 1.5, "total": 6.0}, "GPU": {"used": 0.0, "total": 1.0}}
    assert [job["id"] for job in found["jobs"]] == ["job-2", "job-1", "job-0"]
    assert found["jobs"][1] == {"id": "job-1", "name": "search", "state": "RUNNING", "started_at_s": 1.0, "entrypoint": "python"}
    assert found["applications"] == {"twohead": {"status": "DEPLOYING", "message": "", "replicas": {"Heads": {"running": 1, "target": 2}}}}


def test_the_state_is_known_before_ray_has_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "/api/v0/nodes": {"data": {"result": {"result": [{"state": "ALIVE", "resources_total": {"CPU": 2.0}}]}}},
        "/api/cluster_status": {"data": {"clusterStatus": None}},
        "/api/jobs/": [],
        "/api/serve/applications/": {"applications": {}},
    }
    _dashboard(monkeypatch, answers)
    assert state(ClusterSettings(address="http://head:8265"))["resources"] == {"CPU": {"used": 0.0, "total": 2.0}}
