"""Lays out what a cluster has and does for one screen. It knows what `state` returns, and asks nobody."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cluster.console import table

JOBS_SHOWN = 5
SEARCHES_SHOWN = 5
HOSTS_SHOWN = 16
ENTRYPOINT_WIDTH = 60


def screen(found: Mapping[str, Any]) -> str:
    """Lay out what `state` found, without a final newline."""
    since = f", since {ago(found['started_at_s'])}" if found["started_at_s"] else ""
    used = ", ".join(f"{name} {amount['used']:g} of {amount['total']:g} in use" for name, amount in found["resources"].items())
    parts = [f"{found['address']}{since}\n{found['nodes']} node{'' if found['nodes'] == 1 else 's'}, {used}"]
    parts += [f"warning: {warning}" for warning in found["warnings"]]
    if len(found["hosts"]) > 1:
        parts.append(_hosts(found["hosts"]))
    parts.append(job_table(found["jobs"][:JOBS_SHOWN]) if found["jobs"] else "no jobs")
    if found["searches"]:
        parts.append(_searches(found["searches"][:SEARCHES_SHOWN]))
    parts.append(_applications(found["applications"]))
    return "\n\n".join(parts)


def job_table(jobs: Sequence[Mapping[str, Any]]) -> str:
    """Lay out jobs, as `state` or `Job` has them."""
    rows = [
        (job["id"], job["name"], job["owner"], job["state"], ago(job["started_at_s"]), job.get("best"), _short(job["entrypoint"]))
        for job in jobs
    ]
    return table(("JOB", "NAME", "OWNER", "STATE", "STARTED", "BEST", "COMMAND"), rows, right=(5,))


def ago(at_s: float | None) -> str:
    """Write how long ago something was, in its largest unit."""
    if at_s is None:
        return "–"
    seconds = max(0, int(time.time() - at_s))
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {name} ago"
    return f"{seconds} s ago"


def _hosts(hosts: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            host["name"],
            host["address"],
            "head" if host["is_head"] else "",
            *(f"{host['resources'].get(name, 0):g}" for name in ("CPU", "GPU")),
        )
        for host in hosts[:HOSTS_SHOWN]
    ]
    more = f"\nand {len(hosts) - HOSTS_SHOWN} more" if len(hosts) > HOSTS_SHOWN else ""
    return table(("NODE", "ADDRESS", "", "CPU", "GPU"), rows, right=(3, 4)) + more


def _searches(searches: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            one["name"],
            "running" if one["is_running"] else "ended",
            _since(one["begun"]),
            *(one[key] for key in ("done", "running", "failed", "best")),
        )
        for one in searches
    ]
    return table(("SEARCH", "STATE", "BEGUN", "TRIALS DONE", "RUNNING", "FAILED", "BEST"), rows, right=(3, 4, 5, 6))


def _applications(applications: Mapping[str, Any]) -> str:
    rows = [
        (
            f"{name}/{deployment}",
            application["status"],
            ", ".join(map(str, told["versions"])),
            told["running"],
            told["target"],
            *(None if told[key] is None else f"{told[key]:g}" for key in ("requests_per_second", "queued_seconds")),
        )
        for name, application in applications.items()
        for deployment, told in application["replicas"].items()
    ]
    titles = ("DEPLOYMENT", "STATUS", "VERSION", "RUNNING", "WANTED", "REQUESTS/S", "QUEUED S")
    return table(titles, rows, right=(3, 4, 5, 6)) if rows else "nothing is served"


def _since(begun: str) -> str:
    try:
        return ago(datetime.fromisoformat(begun).replace(tzinfo=UTC).timestamp())
    except ValueError:
        return "–"


def _short(entrypoint: str) -> str:
    line = " ".join(entrypoint.split())
    return line if len(line) <= ENTRYPOINT_WIDTH else f"{line[: ENTRYPOINT_WIDTH - 1]}…"
