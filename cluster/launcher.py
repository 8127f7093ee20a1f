"""Starts and ends the one-machine cluster of `cluster up`.

The cluster listens on 127.0.0.1 only and wants a token for everything but Serve's answers; `up` proves that before it
says so. Nothing is found by name: only processes that carry the session's mark are ended, never another Ray. It does
not know what runs on the cluster.
"""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from cluster.connection import ADDRESS_VARIABLE
from cluster.dashboard import ask, list_nodes, prove_closed
from cluster.errors import ClusterError
from cluster.facts import FACTS_FILE, Facts, alone, facts_folder, read_facts, write_facts
from cluster.processes import name_of
from cluster.session import Session, applied_to_ray, client_environment, free_port, new_session
from cluster.settings import ClusterSettings

START_TIMEOUT_S = 120.0
TOKEN_FILE = "token"  # noqa: S105  # the name of a file
_POLL_S = 0.2
_FOLDER_HINT = "cluster.storage must be a folder that you can write"
# What Ray says of a node that was not up after 30 s, a figure that nobody can set (2.60), and of a dashboard after its minute. Of one that
# ended by itself it says the return code, too; the dashboard's log follows.
_TOO_SLOW = re.compile(r"The current node timed out during startup.*|Failed to start the dashboard\s*$", re.MULTILINE)
_LASTING = ("gcs_server", "raylet")


@dataclass(frozen=True)
class Launch:
    """What `up` found or did.

    Attributes:
        facts: The running cluster.
        is_new: Whether this call started it.
    """

    facts: Facts
    is_new: bool


class _SlowStartError(ClusterError):
    """Ray gave its start up, on a machine that was busy for so long."""


def up(settings: ClusterSettings, say: Callable[[str], None] = print) -> Launch:
    """Start a cluster on this machine, or find the one that runs.

    Args:
        settings: The section `cluster`.
        say: Gets one line a step.

    Raises:
        ClusterError: It did not start, or would have let strangers in; then nothing of it is left.
    """
    if not settings.is_local:
        raise ClusterError(
            f"cluster.address is {settings.address}, but `up` starts a cluster on this machine",
            "set cluster.address to local, or describe the machines in cluster.launcher: cluster/examples has some",
        )
    with alone(facts_folder(settings), _FOLDER_HINT):
        facts = _facts_of_this_machine(settings)
        if facts and facts.is_alive():
            return Launch(facts, is_new=False)
        if facts:
            say("clearing away what is left of a cluster that died")
            _remove(settings, facts)
        try:
            return Launch(_begin(settings, say), is_new=True)
        except _SlowStartError:
            say("Ray was not up in the time that it gives itself; trying once more …")
            return Launch(_begin(settings, say), is_new=True)


def down(settings: ClusterSettings) -> int | None:
    """End the cluster that `up` started and remove its folder, its token and its facts.

    Returns:
        How many processes were ended; None when there was no cluster.

    Raises:
        ClusterError: It runs on another machine, or a process cannot be ended.
    """
    if not facts_folder(settings).is_dir():
        return None
    with alone(facts_folder(settings), _FOLDER_HINT):
        facts = _facts_of_this_machine(settings)
        return None if facts is None else _remove(settings, facts)


def _facts_of_this_machine(settings: ClusterSettings) -> Facts | None:
    facts = read_facts(settings)
    if facts and facts.host != socket.gethostname():
        raise ClusterError(
            f"the cluster of {facts_folder(settings)} was started on {facts.host}, but this is {socket.gethostname()}",
            f"end it there with `down`, or set another cluster.storage here; if {facts.host} is gone, delete {FACTS_FILE}",
        )
    return facts


def _remove(settings: ClusterSettings, facts: Facts) -> int:
    ended = facts.session.end()
    facts.session.token_path.unlink(missing_ok=True)
    (facts_folder(settings) / FACTS_FILE).unlink(missing_ok=True)
    return ended


def _begin(settings: ClusterSettings, say: Callable[[str], None]) -> Facts:
    session = new_session(facts_folder(settings) / TOKEN_FILE)
    draft = Facts("", "", str(session.folder), str(session.token_path), (), socket.gethostname(), time.time())
    # Written before anything starts: what a killed `up` leaves behind is then found by the next one.
    write_facts(settings, draft)
    try:
        return _start(settings, session, say)
    except BaseException:
        # Also after Ctrl-C what came up so far must not stay.
        _remove(settings, draft)
        raise


def _start(settings: ClusterSettings, session: Session, say: Callable[[str], None]) -> Facts:
    port = free_port(settings.dashboard_port)
    if port != settings.dashboard_port:
        say(f"port {settings.dashboard_port} is taken; using {port}")
    say("starting Ray …")
    dashboard_url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_TIMEOUT_S
    _run_ray_start(settings, session, port)
    with applied_to_ray(client_environment(session.token_path)):
        _wait_for_node(dashboard_url, deadline)
    prove_closed(dashboard_url)
    address = (session.ray_folder / "ray_current_cluster").read_text(encoding="utf-8").strip()
    pids = tuple(process.pid for process in session.processes() if name_of(process) in _LASTING)
    facts = Facts(address, dashboard_url, str(session.folder), str(session.token_path), pids, socket.gethostname(), time.time())
    write_facts(settings, facts)
    return facts


def _run_ray_start(settings: ClusterSettings, session: Session, port: int) -> None:
    # Port 0 lets Ray take a free one; its own defaults are fixed ports, on which two clusters would clash.
    options: dict[str, object] = {
        "port": 0,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": port,
        "include-dashboard": "true",
        "dashboard-agent-listen-port": 0,
        "ray-client-server-port": free_port(port + 1),
        "min-worker-port": 0,
        "max-worker-port": 0,
        "object-store-memory": settings.object_store_bytes,
        "temp-dir": session.ray_folder,
    }
    options |= {} if settings.num_cpus is None else {"num-cpus": settings.num_cpus}
    options |= {} if settings.num_gpus is None else {"num-gpus": settings.num_gpus}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *(f"--{name}={value}" for name, value in options.items())]
    environment = {name: value for name, value in os.environ.items() if name != ADDRESS_VARIABLE} | session.environment()
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=START_TIMEOUT_S, start_new_session=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ClusterError(f"`ray start` did not end within {START_TIMEOUT_S:.0f} s", "is the machine overloaded?") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        slow = _TOO_SLOW.search(said)
        why = slow[0].strip() if slow else (said.splitlines() or ["no output"])[-1]
        kind = _SlowStartError if slow else ClusterError
        raise kind(f"`ray start` ended with exit code {done.returncode}: {why}", "see README.md, or start it by hand")


def _wait_for_node(url: str, deadline: float) -> None:
    last = "no answer yet"
    while time.monotonic() < deadline:
        try:
            if any(node["state"] == "ALIVE" for node in list_nodes(url)):
                ask(url, "/api/jobs/")
                return
        except (ClusterError, KeyError, TypeError) as error:
            last = str(error)
        time.sleep(_POLL_S)
    raise ClusterError(f"{url}: the cluster was not ready within {START_TIMEOUT_S:.0f} s ({last})", "is the machine overloaded?")
