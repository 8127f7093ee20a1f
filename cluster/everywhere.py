"""Makes sure that every node reads and writes the storage, before work begins that would fail there hours later.

It does not know what is stored.
"""

import uuid
from typing import Any

from cluster.errors import StorageError
from cluster.storage import Storage

FOLDER = "checks"
# A node that is busy still begins a task that reserves nothing.
PATIENCE_S = 120.0
_NAMED = 5


def check_everywhere(storage: Storage) -> int:
    """Write a file here and read it on every node, and the other way round.

    Args:
        storage: As it was opened here; nodes open it by its URI.

    Returns:
        How many nodes were asked; none where this one is all there is.

    Raises:
        StorageError: Which nodes do not see what was written here, and why.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node for node in found if node["Alive"]]
    if len(nodes) < 2:
        return 0
    folder = f"{FOLDER}/{uuid.uuid4().hex}"
    content = uuid.uuid4().hex.encode()
    storage.write_bytes(f"{folder}/here", content)
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    try:
        asked = {
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                storage.uri, folder, node["NodeID"], content
            ): node
            for node in nodes
        }
        ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE_S)
        answers = [(_shown(node), _why(storage, f"{folder}/{node['NodeID']}", answer, content)) for answer, node in asked.items()]
    finally:
        storage.child(folder).remove()
    if bad := [f"{name}: {why}" for name, why in answers if why]:
        raise StorageError(
            f"storage {storage.uri}: {len(bad)} of {len(nodes)} nodes do not share it ({'; '.join(bad[:_NAMED])})",
            "cluster.storage must be a folder that every machine mounts, or a store that all reach, like s3://bucket/twohead",
        )
    return len(nodes)


def _look(uri: str, folder: str, node: str, content: bytes) -> str:
    """Read on a node what was written elsewhere, and write something there; return why it could not."""
    try:
        storage = Storage(uri)
        if storage.read_bytes(f"{folder}/here") != content:
            return "reads something else"
        storage.write_bytes(f"{folder}/{node}", content)
    except StorageError as error:
        return error.message
    return ""


def _why(storage: Storage, path: str, answer: Any, content: bytes) -> str:
    import ray

    try:
        if why := ray.get(answer, timeout=0):
            return str(why)
        return "" if storage.read_bytes(path) == content else "writes something else"
    except ray.exceptions.GetTimeoutError:
        return f"did not answer within {PATIENCE_S:.0f} s"
    except (ray.exceptions.RayError, StorageError) as error:
        return next(iter(str(error).splitlines()), type(error).__name__)


def _shown(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
