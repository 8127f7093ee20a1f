"""cluster.state: what is made of the dashboard's answers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster import dashboard, served
from cluster import state as module
from cluster.searches import Searches
from cluster.settings import ClusterSettings
from cluster.state import state
from cluster.storage import Storage


def _dashboard(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any]) -> None:
    @contextmanager
    def reach(settings: ClusterSettings) -> Iterator[str]:
        yield "http://head:8265"

    monkeypatch.setattr(module, "reach", reach)
    monkeypatch.setattr(module, "ask", lambda url, path, patience_s: answers[path])
    monkeypatch.setattr(dashboard, "ask", lambda url, path, patience_s: answers[path])


def _search(
    storage: Storage, name: str, events: list[tuple[Any, ...]], *, begun: str, job: str | None = None, result: bool = False
) -> None:
    storage.write_bytes(f"searches/{name}/search.json", json.dumps({"begun": begun}).encode())
    for number, (kind, trial, report, end) in enumerate(events, start=1):
        event = {"kind": kind, "trial": {"name": trial}} | ({"report": report} if report else {}) | ({"state": end} if end else {})
        storage.write_bytes(f"searches/{name}/ledger/{number:06}.json", json.dumps(event).encode())
    storage.write_bytes(f"searches/{name}/ledger/000099.json", b"torn")
    if job:
        storage.write_bytes(f"searches/{name}/jobs/{job}", b"")
    if result:
        storage.write_bytes(f"searches/{name}/result.json", b"{}")


def test_the_state_tells_nodes_resources_jobs_searches_and_applications(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nodes = [
        {"state": "ALIVE", "node_ip": "10.0.0.2", "node_name": "10.0.0.2", "resources_total": {"CPU": 2.0, "GPU": 1.0, "memory": 9.0}},
        {"state": "ALIVE", "node_ip": "10.0.0.1", "is_head_node": True, "resources_total": {"CPU": 4.0}},
        {"state": "DEAD", "node_ip": "10.0.0.3", "resources_total": {"CPU": 8.0}},
        # It came back since.
        {"state": "DEAD", "node_ip": "10.0.0.2", "resources_total": {"CPU": 8.0}},
    ]
    job = {
        "submission_id": "job-1",
        "metadata": {"name": "search", "owner": "me@here"},
        "status": "RUNNING",
        "start_time": 1000,
        "entrypoint": "python",
    }
    replicas = [{"state": "RUNNING", "replica_id": "a", "node_ip": "10.0.0.2"}, {"state": "STARTING", "replica_id": "b", "node_ip": None}]
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
    raylets = [{"nodeManagerAddress": f"10.0.0.{number}", "metricsExportPort": 9} for number in (1, 2)]
    disks = [
        {"/": {"percent": 99.0, "free": 1}, "/tmp/ray": {"percent": 20.0, "free": 9}},
        {"/": {"percent": 95.4, "free": 3 * 2**30}},
        None,
    ]
    told_nodes = [
        {"raylet": raylet, "ip": raylet["nodeManagerAddress"], "disk": disk} for raylet, disk in zip(raylets, disks, strict=False)
    ]
    answers["/nodes?view=summary&nocache=1"] = {"data": {"summary": [*told_nodes, {"raylet": {}}]}}
    _dashboard(monkeypatch, answers)
    line = 'ray_twohead_{}{{replica="a"}} {}\n'
    page = line.format("version", 3.0) + line.format("requests_per_second", 7.04) + line.format("queued_seconds", 0.5)
    asked: list[str] = []
    monkeypatch.setattr(served, "_page", lambda address: asked.append(address) or page)
    storage = Storage(str(tmp_path))
    _search(storage, "old", [("ended", "trial-0", {"score": 0.4}, "finished")], result=True, begun="2026-01-01T00:00:00+00:00")
    events = [
        ("proposed", "trial-0", None, None),
        ("epoch", "trial-0", {"score": 0.5}, None),
        ("epoch", "trial-1", {"score": 0.7}, None),
        ("ended", "trial-0", {"score": 0.6}, "finished"),
        ("ended", "trial-2", {"score": 0.9}, "diverged"),
    ]
    _search(storage, "new", events, job="job-2", begun="2026-01-02T00:00:00+00:00")
    found = state(ClusterSettings(address="http://head:8265"), Searches(storage))
    assert (found["address"], found["nodes"], found["started_at_s"]) == ("http://head:8265", 2, None)
    assert found["resources"] == {"CPU": {"used": 1.5, "total": 6.0}, "GPU": {"used": 0.0, "total": 1.0}}
    assert [job["id"] for job in found["jobs"]] == ["job-2", "job-1", "job-0"]
    told = {"id": "job-1", "name": "search", "owner": "me@here", "state": "RUNNING", "started_at_s": 1.0, "entrypoint": "python"}
    assert found["jobs"][1] == told | {"best": None}
    assert found["jobs"][0]["best"] == 0.7
    assert [host["address"] for host in found["hosts"]] == ["10.0.0.1", "10.0.0.2"]
    assert found["hosts"][1]["resources"] == {"CPU": 2.0, "GPU": 1.0}
    assert [(one["name"], one["done"], one["running"], one["failed"], one["best"], one["is_running"]) for one in found["searches"]] == [
        ("new", 2, 1, 1, 0.7, True),
        ("old", 1, 0, 0, 0.4, False),
    ]
    full = "node 10.0.0.2: the disk that Ray writes to is 95 % full, 3.0 GiB are free; jobs and searches there fail until there is room"
    assert found["warnings"] == ["node 10.0.0.3 is lost", full, "search new: 1 trials failed", "twohead/Heads: 1 of 2 replicas run"]
    heads = {"running": 1, "target": 2, "versions": [3], "requests_per_second": 7.0, "queued_seconds": 0.5}
    assert found["applications"] == {"twohead": {"status": "DEPLOYING", "message": "", "replicas": {"Heads": heads}}}
    assert asked == ["10.0.0.2:9"]


def test_the_state_is_known_before_ray_has_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers = {
        "/api/v0/nodes": {"data": {"result": {"result": [{"state": "ALIVE", "node_ip": "10.0.0.1", "resources_total": {"CPU": 2.0}}]}}},
        "/api/cluster_status": {"data": {"clusterStatus": None}},
        "/api/jobs/": [],
        "/api/serve/applications/": {"applications": {}},
        "/nodes?view=summary&nocache=1": {"data": {"summary": []}},
    }
    _dashboard(monkeypatch, answers)
    found = state(ClusterSettings(address="http://head:8265"), Searches(Storage(str(tmp_path))))
    assert found["resources"] == {"CPU": {"used": 0.0, "total": 2.0}}
