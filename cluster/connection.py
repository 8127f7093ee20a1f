"""Decides where Ray is, and connects a command to it.

In this order: the cluster of the job that this process is (`RAY_ADDRESS`); the cluster that `cluster up` started on
this machine; a private Ray for the length of the command. A running cluster elsewhere (`cluster.address: http://...`)
is reached over HTTP only, so commands that need a Ray driver are submitted to it as jobs. It does not know what is done
with Ray, and never prints a token.
"""

import importlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.dashboard import PATIENCE_S, ask, prove_closed, require_control_service
from cluster.errors import ClusterError
from cluster.facts import read_facts
from cluster.machines.known import read_known, token_file
from cluster.runtime_env import runtime_env, survey
from cluster.session import LOOPBACK_VARIABLE, SETTLED, TOKEN_VARIABLE, applied_to_ray, client_environment, private_session
from cluster.settings import ClusterSettings

ADDRESS_VARIABLE = "RAY_ADDRESS"
# What Ray's client for jobs takes in place of the address that it is given; it comes before `RAY_ADDRESS`, which it takes as well.
_JOBS_VARIABLE = "RAY_API_SERVER_ADDRESS"


@dataclass(frozen=True)
class Connection:
    """A Ray that this process is connected to.

    Attributes:
        address: Host and port of Ray's own control service.
        dashboard_url: Where the REST interfaces of Jobs and Serve are, like `http://127.0.0.1:8265`.
        is_private: Whether it was started for this command and ends with it.
    """

    address: str
    dashboard_url: str
    is_private: bool


def is_in_job() -> bool:
    """Tell whether this process runs inside a Ray cluster already, as a job's driver does."""
    return bool(os.environ.get(ADDRESS_VARIABLE))


@contextmanager
def connect(settings: ClusterSettings, *, working_dir: Path | None = None, log_to_driver: bool = False) -> Iterator[Connection]:
    """Connect this process to Ray as a driver, for the length of the block.

    Ray sets its own handler of SIGTERM here (it raises `SystemExit`, and clearing away may take its time): install yours inside the block.

    Args:
        settings: The section `cluster`.
        working_dir: Folder to ship to Ray's processes. By default they read this machine's files; hand them absolute
            paths, because those of `cluster up` stand in the folder where it was called. Not shipped again inside a job.
        log_to_driver: Whether lines that Ray's processes print appear in this one's output.

    Raises:
        ClusterError: Ray cannot be reached or started, or the cluster of the settings takes jobs only.
    """
    import ray

    if ray.is_initialized():
        yield _described(is_private=False)
        return
    env = None if working_dir is None else runtime_env(settings, survey(settings, working_dir))
    if is_in_job():
        with _driver(address=os.environ[ADDRESS_VARIABLE], log_to_driver=log_to_driver):
            yield _described(is_private=False)
    elif not settings.is_local:
        raise ClusterError(
            f"the cluster is {_address(settings) or 'not up'}, but this command needs to run inside it",
            "submit it: python -m cluster submit -- python -m ... (or set cluster.address to local, and cluster.launcher to null)",
        )
    elif (facts := read_facts(settings)) and facts.is_alive():
        here = applied_to_ray(client_environment(facts.session.token_path))
        with here, _driver(address=facts.address, log_to_driver=log_to_driver, runtime_env=env):
            yield _described(is_private=False)
    else:
        with _private(settings, log_to_driver=log_to_driver, runtime_env=env) as connection:
            yield connection


@contextmanager
def reach(settings: ClusterSettings) -> Iterator[str]:
    """Give the dashboard's URL of a running cluster, for REST clients, without becoming a driver.

    Inside the block Ray's REST clients send the cluster's token, to that cluster and to nobody else, and are quiet.

    Raises:
        ClusterError: No cluster is running, or it does not answer.
    """
    import ray  # noqa: F401  # sets its logger up

    logging.getLogger("ray").setLevel(logging.WARNING)
    if not settings.is_local:
        address = _address(settings)
        if address is None:
            raise ClusterError("the machines of cluster.launcher are not up", "start them: python -m cluster up")
        with applied_to_ray({**_remote_environment(settings), **_straight_to(address)}):
            ask(address, "/api/version", PATIENCE_S)
            require_control_service(address)
            yield address
        return
    facts = read_facts(settings)
    if facts is None or not facts.is_alive():
        raise ClusterError("no cluster is running on this machine for this storage", "start one: python -m cluster up")
    with applied_to_ray({**client_environment(facts.session.token_path), **_straight_to(facts.dashboard_url)}):
        yield facts.dashboard_url


@contextmanager
def _private(settings: ClusterSettings, **options: Any) -> Iterator[Connection]:
    with private_session() as session, applied_to_ray(session.environment()):
        limits = {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus, "object_store_memory": settings.object_store_bytes}
        # Port 0: 8265 stays free for `cluster up`.
        place = {"_temp_dir": str(session.ray_folder), "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0}
        with _driver(address="local", **limits, **place, **options):
            connection = _described(is_private=True)
            prove_closed(connection.dashboard_url)
            yield connection


@contextmanager
def _driver(**options: Any) -> Iterator[None]:
    import ray

    try:
        _init(options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        # A Ray that came half up would stay.
        ray.shutdown(wait_for_processes=True)
        raise ClusterError(
            f"Ray at {options['address']}: {_first_line(error)}", "`python -m cluster status` tells what is running"
        ) from error
    try:
        yield
    finally:
        ray.shutdown(wait_for_processes=True)


def _init(options: dict[str, Any]) -> None:
    import ray

    for is_last in (False, True):
        try:
            ray.init(logging_level=logging.WARNING, **options)
        except Exception as error:
            # Ray gives its own processes 30 s to start, which a busy machine may need, and says so with a bare Exception.
            if type(error) is not Exception:
                raise
            if is_last:
                raise RuntimeError(str(error)) from error
            ray.shutdown(wait_for_processes=True)
        else:
            _have_time_to_end()
            return


def _have_time_to_end() -> None:
    """Let Python alone handle SIGTERM.

    Ray's native handler calls Ray's own in Python, but has the process aborted three seconds after (2.60): on a busy machine in the middle
    of clearing away.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _described(*, is_private: bool) -> Connection:
    import ray

    worker: Any = importlib.import_module("ray._private.worker")
    dashboard = worker.get_dashboard_url()
    return Connection(ray.get_runtime_context().gcs_address, f"http://{dashboard}" if dashboard else "", is_private)


def _address(settings: ClusterSettings) -> str | None:
    if settings.address != "local":
        return settings.address
    known = read_known(settings)
    return known.dashboard_url if known else None


def _straight_to(url: str) -> dict[str, str]:
    # Ray's clients would heed a proxy, which got to see the token, and a `.netrc`, whose password would go in the token's place.
    straight = ",".join(filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), urlsplit(url).hostname]))
    return {_JOBS_VARIABLE: url, "no_proxy": straight, "NO_PROXY": straight, "NETRC": os.devnull}


def _remote_environment(settings: ClusterSettings) -> dict[str, str]:
    # Ray never turns its token on by itself for an explicit address.
    kept = {name: value for name, value in SETTLED.items() if name != LOOPBACK_VARIABLE}
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", TOKEN_VARIABLE))
    if not named and (own := token_file(settings)) and own.exists():
        return {**kept, TOKEN_VARIABLE: str(own)}
    has_token = named or (Path.home() / ".ray" / "auth_token").exists()
    return {**kept, "RAY_AUTH_MODE": "token" if has_token else "disabled"}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
