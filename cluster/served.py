"""Reads what replicas publish of themselves: versions, requests a second, seconds of work that wait.

Ray collects figures on an exporter per node, which hears of them every ten seconds and asks for no token. Only nodes with replicas are
asked; one that cannot be reached from here is left out. It does not know how a replica counts.
"""

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# What is read, under the names that Ray gives figures of applications; all are gauges.
VERSION, REQUESTS, QUEUED = "ray_twohead_version", "ray_twohead_requests_per_second", "ray_twohead_queued_seconds"

_TIMEOUT_S = 2.0
_AT_ONCE = 16
_LINE = re.compile(rf"^({VERSION}|{REQUESTS}|{QUEUED})\{{(.*)\}} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')

Figures = dict[str, dict[str, float]]


def read_figures(addresses: Iterable[str]) -> Figures:
    """Ask exporters.

    Args:
        addresses: Host and port of each.

    Returns:
        Replica → figure → value.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        pages = list(pool.map(_page, sorted(set(addresses))))
    found: Figures = {}
    for name, labels, value in (line for page in pages for line in _LINE.findall(page)):
        replica = dict(_LABEL.findall(labels)).get("replica", "")
        found.setdefault(replica, {})[name] = float(value)
    return found


def summed(replicas: Iterable[str], figures: Figures) -> dict[str, Any]:
    """Put together what the replicas of a deployment say.

    Returns:
        `versions` that answer; `requests_per_second` of all; `queued_seconds` of the one with most work. Of the last two None, where nobody
        has said anything.
    """
    known = [figures[replica] for replica in replicas if replica in figures]
    requests = [one[REQUESTS] for one in known if REQUESTS in one]
    return {
        "versions": sorted({int(one[VERSION]) for one in known if one.get(VERSION)}),
        "requests_per_second": round(sum(requests), 1) if requests else None,
        "queued_seconds": max((round(one[QUEUED], 2) for one in known if QUEUED in one), default=None),
    }


def exporters(nodes: Iterable[Mapping[str, Any]], addresses: Iterable[str]) -> list[str]:
    """Find the exporters on nodes.

    Args:
        nodes: As the dashboard describes them at `/nodes?view=summary`.
        addresses: Of the nodes that are wanted.
    """
    wanted = set(addresses)
    told = (node.get("raylet") or {} for node in nodes)
    found = [(one.get("nodeManagerAddress"), one.get("metricsExportPort")) for one in told]
    return [f"{address}:{port}" for address, port in found if address in wanted and port]


def _page(address: str) -> str:
    import httpx

    try:
        answer = httpx.get(f"http://{address}/metrics", timeout=_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError:
        return ""
    return answer.text if answer.is_success else ""
