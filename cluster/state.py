"""Tells what a running cluster has and does: nodes, resources, jobs, served applications.

Asks the dashboard's REST interface only, so it starts nothing and works from outside the cluster. It does not know
how a cluster is started.
"""

from typing import Any

from cluster.connection import reach
from cluster.dashboard import ask
from cluster.facts import read_facts
from cluster.settings import ClusterSettings


def state(settings: ClusterSettings) -> dict[str, Any]:
    """Ask a running cluster what it has and does.

    Returns:
        `address`, `started_at_s` (None for a cluster that `up` did not start), `nodes` alive, `resources` (CPU and GPU
        → used, total), `jobs` newest first, `applications` of Serve (name → status, message, replicas by deployment).

    Raises:
        ClusterError: No cluster is running, or it does not answer.
    """
    facts = read_facts(settings) if settings.is_local else None
    with reach(settings) as url:
        nodes = ask(url, "/api/v0/nodes")["data"]["result"]["result"]
        usage = ask(url, "/api/cluster_status")["data"]["clusterStatus"] or {}
        jobs = ask(url, "/api/jobs/")
        applications = ask(url, "/api/serve/applications/")["applications"]
    alive = [node for node in nodes if node["state"] == "ALIVE"]
    return {
        "address": url,
        "started_at_s": facts.started_at_s if facts else None,
        "nodes": len(alive),
        "resources": _resources(alive, usage.get("loadMetricsReport", {}).get("usage", {})),
        "jobs": sorted((_job(job) for job in jobs if job["submission_id"]), key=lambda job: -(job["started_at_s"] or 0)),
        "applications": {name: _application(found) for name, found in applications.items()},
    }


def _resources(nodes: list[dict[str, Any]], usage: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    # The usage report is empty in the first seconds of a cluster's life: then the nodes tell what there is.
    found: dict[str, dict[str, float]] = {}
    for name in ("CPU", "GPU"):
        total = sum(node["resources_total"].get(name, 0.0) for node in nodes)
        used = usage.get(name, [0.0, total])[0]
        if total or name == "CPU":
            found[name] = {"used": used, "total": total}
    return found


def _job(job: dict[str, Any]) -> dict[str, Any]:
    started_at_s = job["start_time"] / 1000 if job["start_time"] else None
    name = (job["metadata"] or {}).get("name")
    return {
        "id": job["submission_id"], "name": name, "state": job["status"], "started_at_s": started_at_s, "entrypoint": job["entrypoint"],
    }  # fmt: skip


def _application(found: dict[str, Any]) -> dict[str, Any]:
    deployments = {
        name: {
            "running": sum(replica["state"] == "RUNNING" for replica in deployment["replicas"]),
            "target": deployment["target_num_replicas"],
        }
        for name, deployment in found["deployments"].items()
    }
    return {"status": found["status"], "message": found["message"], "replicas": deployments}
