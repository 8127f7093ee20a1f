"""Which replicas there are and how busy their engines are, from the server's own metrics.

Figures reach `/metrics` in steps of some ten seconds. Counts of replicas are late by that, and how busy an engine was is taken between the
first and the last step that were seen, so that an idle time before the load is not in it. Servers that are not ours have no such metrics,
and nothing is told of them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Reading the page costs a replica some of its time.
READ_EVERY_S = 2.0
_COMPUTE = re.compile(r'^twohead_compute_s(?:_total)?\{[^}]*\breplica="([^"]*)"[^}]*\} (\S+)$', re.MULTILINE)
_HEALTHY = re.compile(r'^serve_deployment_replica_healthy\{[^}]*\breplica="([^"]*)"[^}]*\} 1(?:\.0)?$', re.MULTILINE)


@dataclass(frozen=True)
class Reading:
    """What `/metrics` said.

    Attributes:
        at_s: Since the start.
        healthy: Replicas.
        compute_s: Replica → seconds its engine was busy since it started.
    """

    at_s: float
    healthy: frozenset[str]
    compute_s: dict[str, float]


def read_page(at_s: float, page: str) -> Reading:
    """Read a page of Prometheus's text format."""
    return Reading(at_s, frozenset(_HEALTHY.findall(page)), {replica: float(seconds) for replica, seconds in _COMPUTE.findall(page)})


def counts(readings: Sequence[Reading]) -> list[tuple[float, int]]:
    """Return when the number of replicas was first seen to be another: (seconds since the start, replicas)."""
    changes: list[tuple[float, int]] = []
    for one in readings:
        if one.healthy and (not changes or changes[-1][1] != len(one.healthy)):
            changes.append((one.at_s, len(one.healthy)))
    return changes


def busy_shares(readings: Sequence[Reading]) -> dict[str, float]:
    """Return each replica's share of time in which its engine was busy; those seen to move less than twice are left out."""
    steps: dict[str, list[tuple[float, float]]] = {}
    known = dict(readings[0].compute_s) if readings else {}
    for one in readings:
        for replica, seconds in one.compute_s.items():
            if seconds != known.get(replica):
                known[replica] = seconds
                steps.setdefault(replica, []).append((one.at_s, seconds))
    return {replica: (moves[-1][1] - moves[0][1]) / (moves[-1][0] - moves[0][0]) for replica, moves in steps.items() if len(moves) > 1}
