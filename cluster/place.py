"""Where in a cluster a job's own process runs, and what is set aside for it. It asks nobody what there is."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import JobError

# The label in which Ray keeps a node's type in `cluster.launcher`, or its group of pods.
NODE_TYPE = "ray.io/node-group"
# Ray takes Kubernetes' words for labels: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set
_WORD = r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_LABEL = re.compile(rf"(?:(?P<key>(?:[a-z0-9.-]+/)?{_WORD})=)?(?P<value>{_WORD})")


@dataclass(frozen=True)
class Place:
    """Where a job runs; on the head with nothing set aside, where nothing is said.

    Attributes:
        labels: Which its node must have.
        cpus: Set aside for it while it runs.
        gpus: Set aside for it while it runs.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    cpus: float = 0.0
    gpus: float = 0.0

    def fits(self, labels: Mapping[str, str]) -> bool:
        """Tell whether a node with these labels will do."""
        return all(labels.get(key) == value for key, value in self.labels.items())


def read_place(on: Iterable[str], cpus: float, gpus: float) -> Place:
    """Read where a job is to run.

    Args:
        on: Each the name of a node type, or `LABEL=VALUE`.
        cpus: To set aside.
        gpus: To set aside.

    Raises:
        JobError: One is no label.
    """
    labels = {}
    for text in on:
        found = _LABEL.fullmatch(text)
        if found is None:
            raise JobError(f"--on {text}: must be a node type like trials, or a label like market=spot", "`status --json` lists all labels")
        labels[found["key"] or NODE_TYPE] = found["value"]
    return Place(labels, cpus, gpus)


def missing(place: Place, nodes: Iterable[Mapping[str, str]], launcher: Mapping[str, Any] | None) -> str:
    """Tell what a job waits for, where no node fits yet; "" where one does.

    Args:
        place: Where the job is to run.
        nodes: The labels of each node that is there.
        launcher: `cluster.launcher`, which says what types of nodes there may be.

    Raises:
        JobError: There never will be such a node.
    """
    if any(place.fits(labels) for labels in nodes):
        return ""
    wanted = place.labels.get(NODE_TYPE)
    types = sorted((launcher or {}).get("available_node_types") or {})
    if wanted and types and wanted not in types:
        raise JobError(f"--on {wanted}: is no node type of cluster.launcher, which has {', '.join(types)}")
    return "no node has " + " and ".join(f"{key}={value}" for key, value in place.labels.items()) + " yet: the job waits for one"
