"""Tells what a running cluster has and does: nodes, resources, jobs, searches, served applications, and what is wrong.

Asks the dashboard's REST interface and reads the storage, so it starts nothing and works from outside the cluster. It does not know how a
cluster is started.
"""

from typing import Any

from cluster.connection import reach
from cluster.dashboard import PATIENCE_S, ask, list_nodes
from cluster.facts import read_facts
from cluster.machines.known import read_known
from cluster.runtime_env import shown_bytes
from cluster.searches import Search, Searches, best_by_job
from cluster.served import Figures, exporters, read_figures, summed
from cluster.settings import ClusterSettings

# From here on Ray puts nothing more on a disk, and whoever wants it to waits or fails.
_FULL_PERCENT = 95.0


def state(settings: ClusterSettings, searches: Searches) -> dict[str, Any]:
    """Ask a running cluster what it has and does.

    Args:
        settings: The section `cluster`.
        searches: Of its storage.

    Returns:
        `address`, `started_at_s` (None for a cluster that `up` did not start), `nodes` alive, `resources` (CPU and GPU → used, total),
        `hosts` (name, address, is_head, resources, labels), `jobs` newest first, `searches` newest first, `applications` of Serve
        (name → status, message, replicas by deployment: running, target and what `served.summed` returns), `warnings`.

    Raises:
        ClusterError: No cluster is running, or it does not answer.
    """
    started_at_s = _started_at_s(settings)
    with reach(settings) as url:
        known_nodes = list_nodes(url, PATIENCE_S)
        usage = ask(url, "/api/cluster_status", PATIENCE_S)["data"]["clusterStatus"] or {}
        jobs = ask(url, "/api/jobs/", PATIENCE_S)
        applications = ask(url, "/api/serve/applications/", PATIENCE_S)["applications"]
        summaries = ask(url, "/nodes?view=summary&nocache=1", PATIENCE_S)["data"]["summary"]
        figures = _figures(summaries, applications)
    alive = [node for node in known_nodes if node["state"] == "ALIVE"]
    told_jobs = sorted((_job(job) for job in jobs if job["submission_id"]), key=lambda job: -(job["started_at_s"] or 0))
    active = {job["id"] for job in told_jobs if job["state"] in ("PENDING", "RUNNING")}
    known = searches.all()
    told_searches, best = [_search(one, active) for one in known], best_by_job(known)
    told_applications = {name: _application(found, figures) for name, found in applications.items()}
    return {
        "address": url,
        "started_at_s": started_at_s,
        "nodes": len(alive),
        "resources": _resources(alive, usage.get("loadMetricsReport", {}).get("usage", {})),
        "hosts": sorted((_host(node) for node in alive), key=lambda host: (not host["is_head"], host["name"])),
        "jobs": [job | {"best": best.get(job["id"])} for job in told_jobs],
        "searches": told_searches,
        "applications": told_applications,
        "warnings": [*_lost(known_nodes, alive), *_full(summaries), *_failing(told_searches), *_unserved(told_applications)],
    }


def _started_at_s(settings: ClusterSettings) -> float | None:
    found = read_facts(settings) if settings.is_local else read_known(settings)
    return found.started_at_s if found else None


def _host(node: dict[str, Any]) -> dict[str, Any]:
    total = node["resources_total"]
    return {
        "name": node.get("node_name") or node["node_ip"],
        "address": node["node_ip"],
        "is_head": bool(node.get("is_head_node")),
        "resources": {name: total[name] for name in ("CPU", "GPU") if total.get(name)},
        "labels": node.get("labels") or {},
    }


def _search(search: Search, active: set[str]) -> dict[str, Any]:
    is_running = bool(active.intersection(search.jobs)) or (not search.jobs and not search.has_result)
    return {
        "name": search.name,
        "begun": search.begun,
        "jobs": list(search.jobs),
        "done": len(search.trials) - search.open,
        "running": search.open if is_running else 0,
        "failed": search.failed,
        "best": search.best,
        "is_running": is_running,
    }


def _lost(nodes: list[dict[str, Any]], alive: list[dict[str, Any]]) -> list[str]:
    there = {node["node_ip"] for node in alive}
    gone = sorted({node["node_ip"] for node in nodes if node["state"] == "DEAD"} - there)
    return [f"node {address} is lost" for address in gone]


def _full(summaries: list[dict[str, Any]]) -> list[str]:
    """Name the nodes whose disk has no room for what Ray keeps: logs, jobs' folders, spilled objects."""
    found = []
    for node in summaries:
        # By place, whose name the dashboard garbles: the root, and Ray's own folder, which counts and is the longer name.
        disks = node.get("disk")
        disk = disks[max(disks)] if disks else None
        if disk and disk["percent"] >= _FULL_PERCENT:
            free = f"{disk['percent']:.0f} % full, {shown_bytes(disk['free'])} are free"
            found.append(f"node {node['ip']}: the disk that Ray writes to is {free}; jobs and searches there fail until there is room")
    return found


def _failing(searches: list[dict[str, Any]]) -> list[str]:
    return [f"search {one['name']}: {one['failed']} trials failed" for one in searches if one["is_running"] and one["failed"]]


def _unserved(applications: dict[str, Any]) -> list[str]:
    found = []
    for name, application in applications.items():
        if application["status"] not in ("RUNNING", "DEPLOYING", "DELETING"):
            found.append(f"application {name} is {application['status']}: {application['message']}".rstrip(": "))
        for deployment, replicas in application["replicas"].items():
            if replicas["running"] < replicas["target"]:
                found.append(f"{name}/{deployment}: {replicas['running']} of {replicas['target']} replicas run")
    return found


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
    told = job["metadata"] or {}
    return {
        "id": job["submission_id"],
        "name": told.get("name"),
        "owner": told.get("owner"),
        "state": job["status"],
        "started_at_s": started_at_s,
        "entrypoint": job["entrypoint"],
    }


def _figures(summaries: list[dict[str, Any]], applications: dict[str, Any]) -> Figures:
    replicas = [one for found in applications.values() for deployment in found["deployments"].values() for one in deployment["replicas"]]
    if not replicas:
        return {}
    return read_figures(exporters(summaries, {one["node_ip"] for one in replicas if one.get("node_ip")}))


def _application(found: dict[str, Any], figures: Figures) -> dict[str, Any]:
    deployments = {
        name: {
            "running": sum(replica["state"] == "RUNNING" for replica in deployment["replicas"]),
            "target": deployment["target_num_replicas"],
            **summed((replica["replica_id"] for replica in deployment["replicas"]), figures),
        }
        for name, deployment in found["deployments"].items()
    }
    return {"status": found["status"], "message": found["message"], "replicas": deployments}
