"""Empties a node before it goes: nothing new starts there, and what is served moves to others.

It does not know how the node goes afterwards, nor what is served.
"""

import shlex
import time
from collections.abc import Callable, Iterator
from typing import Any

from cluster.connection import reach
from cluster.dashboard import PATIENCE_S, ask, list_nodes, list_state
from cluster.errors import ClusterError
from cluster.machines import notice, ray_up
from cluster.settings import ClusterSettings

_POLL_S = 1.0
_REPLICA = "ServeReplica"


def drain(settings: ClusterSettings, name: str, within_s: int, say: Callable[[str], None]) -> None:
    """Have a node's replicas move to others, and wait for that.

    Args:
        settings: The section `cluster`, with a launcher.
        name: Of the node, or its address.
        within_s: After so long it may go whatever runs there.
        say: Gets a line of progress.

    Raises:
        ClusterError: There is no such node, it is the head, or replicas are still there in the end, or do not answer on the others yet.
    """
    if settings.launcher is None:
        raise ClusterError(
            "only machines of cluster.launcher are drained from here",
            f"elsewhere, on the node itself: {shlex.join(notice.drain_command(within_s))}",
        )
    with reach(settings) as url:
        node = _find(list_nodes(url, PATIENCE_S), name)
        ray_up.drain(settings, node["node_id"], within_s)
        say(f"{name} takes nothing new; its replicas move …")
        deadline = time.monotonic() + within_s
        while missing := _looked(url, node["node_id"]):
            if time.monotonic() > deadline:
                raise ClusterError(f"{name}: after {within_s} s {missing}", "is there room for its replicas elsewhere?")
            time.sleep(_POLL_S)
    say(f"nothing is served from {name} any more; a trial there goes on elsewhere from its last epoch once the node is gone")


def _find(nodes: list[dict[str, Any]], name: str) -> dict[str, Any]:
    alive = [node for node in nodes if node["state"] == "ALIVE"]
    found = [node for node in alive if name in (node["node_ip"], node.get("node_name"))]
    if not found:
        there = ", ".join(sorted(node["node_ip"] for node in alive))
        raise ClusterError(f"node {name!r}: is unknown; there is {there}", "`python -m cluster status` lists names and addresses")
    if found[0].get("is_head_node"):
        raise ClusterError(f"node {name!r}: is the head, which cannot go", "see cluster.head_store for how it is lost and comes back")
    return found[0]


def _looked(url: str, node_id: str) -> str:
    """Look once; a cluster that is busy moving may be late with one answer."""
    try:
        return _missing(url, node_id)
    except ClusterError as error:
        return error.message


def _missing(url: str, node_id: str) -> str:
    """Tell what the node still waits for; nothing where it may go."""
    if there := _replicas(url, node_id):
        return f"{there} replicas are still there"
    # A replica that has moved to a node without one is not asked there before Serve's own door is open.
    serve = ask(url, "/api/serve/applications/")
    if serve.get("proxy_location") != "EveryNode":
        return ""
    proxies = serve.get("proxies") or {}
    used = {replica["node_id"] for replica in _replicas_of(serve) if replica["node_id"] not in (None, node_id)}
    closed = [other for other in used if (proxies.get(other) or {}).get("status") != "HEALTHY"]
    return f"{len(closed)} nodes with replicas do not answer yet" if closed else ""


def _replicas_of(serve: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for application in serve["applications"].values():
        for deployment in application["deployments"].values():
            yield from deployment["replicas"]


def _replicas(url: str, node_id: str) -> int:
    wanted = {"node_id": node_id, "state": "ALIVE"}
    filters = "".join(f"&filter_keys={key}&filter_predicates=%3D&filter_values={value}" for key, value in wanted.items())
    actors = list_state(url, f"actors?limit=10000{filters}")
    return sum(actor["class_name"].startswith(_REPLICA) for actor in actors)
