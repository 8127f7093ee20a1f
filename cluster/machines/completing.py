"""Completes a configuration for Ray's launcher with what every cluster of ours has: a token, and a head that can come back.

What the settings say stays as it is; only what is missing is added. It does not know how machines are started.
"""

import copy
import ipaddress
import re
import shlex
from collections.abc import Mapping
from typing import Any

from cluster.front import SWITCH
from cluster.machines import keeper, notice
from cluster.machines.known import TOKEN_PLACE, token_file
from cluster.session import BETWEEN_MACHINES, LOOPBACK_VARIABLE, SETTLED
from cluster.settings import ClusterSettings

DASHBOARD_PORT = 8265
NOTICE_PLACE = "~/.twohead-notice.py"
KEEPER_PLACE = "~/.twohead-keeper.py"
# Ray's own interpreter is there for sure, `python` may be another.
HEADS_PYTHON = '"$(dirname "$(command -v ray)")/python"'
# Not the shell that says so.
END_KEEPER = "pkill -f '[.]twohead-keeper' || true"
# A machine without a way to the internet takes itself for 127.0.0.1: so it says which of its addresses leads to the head.
_OWN_ADDRESS = (
    "$(python3 -c 'import socket as s; c = s.socket(s.AF_INET, s.SOCK_DGRAM); "
    "c.connect((\"'$RAY_HEAD_IP'\", 1)); print(c.getsockname()[0])')"
)
# Each replica holds a connection for each that asks.
_FILES = "ulimit -n 65536 || true"
# A machine without power answers nothing: five times in a row, 3 s apart, after so long. Ray's 10 s make 65 s of that until it is missed.
_NOTICE = {"RAY_health_check_timeout_ms": "3000"}
# So long replicas and trials go on without a head that will come back; Ray's own minute is short for a machine that has to boot.
_PATIENCE = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
_START = re.compile(r"(?<![\w./-])ray start\b")


def completed(settings: ClusterSettings) -> dict[str, Any]:
    """Return the configuration of `cluster.launcher` as it goes to Ray.

    Every `ray start` gets the variables of a closed cluster and of `cluster.head_store`, unless it names them itself; where there is none,
    the commands that start Ray; where no token is brought along, ours. Workers in a cloud that may take them away wait for its notice; a
    head that can come back has its processes started again where they end alone.

    Raises:
        SettingsError: The cluster's name would lead out of the folder of what is known of it.
    """
    launcher: dict[str, Any] = copy.deepcopy(settings.launcher or {})
    watching: list[str] = []
    mounts = launcher["file_mounts"] = dict(launcher.get("file_mounts") or {})
    mounts.setdefault(TOKEN_PLACE, str(token_file(settings)))
    folder = TOKEN_PLACE.rpartition("/")[0]
    closed = f"chmod 700 {folder} && chmod 600 {TOKEN_PLACE}"
    launcher["setup_commands"] = [closed, *(launcher.get("setup_commands") or [])]
    provider = launcher.get("provider")
    own = _own_commands(provider) if isinstance(provider, dict) else {}
    everywhere = {name: value for name, value in SETTLED.items() if name != LOOPBACK_VARIABLE} | {SWITCH: "0"} | BETWEEN_MACHINES
    if settings.head_store != "none":
        everywhere |= _PATIENCE
    heads = everywhere | _NOTICE | _head_store(settings)
    if isinstance(provider, dict) and provider.get("type") in notice.WARNING_S:
        mounts.setdefault(NOTICE_PLACE, notice.__file__)
        watching = [f"nohup python3 {NOTICE_PLACE} {provider['type']} > ~/.twohead-notice.log 2>&1 &"]
    for key, variables in (("head_start_ray_commands", heads), ("worker_start_ray_commands", everywhere)):
        commands = launcher.get(key) or own.get(key, [])
        launcher[key] = [_with(variables, command) for command in commands] + (watching if key.startswith("worker") else [])
    if settings.head_store != "none":
        mounts.setdefault(KEEPER_PLACE, keeper.__file__)
        keeping = f"nohup python3 {KEEPER_PLACE} < /dev/null > ~/.twohead-keeper.log 2>&1 &"
        launcher["head_start_ray_commands"] = [END_KEEPER, *launcher["head_start_ray_commands"], keeping]
    return launcher


def dashboard_port(launcher: Mapping[str, Any]) -> int:
    """Return the port that the head's commands give the dashboard."""
    found = re.search(r"--dashboard-port[= ](\d+)", " ".join(map(str, launcher.get("head_start_ray_commands", []))))
    return int(found[1]) if found else DASHBOARD_PORT


def _own_commands(provider: dict[str, Any]) -> dict[str, list[str]]:
    head_ip = str(provider.get("head_ip", ""))
    here = f" --node-ip-address={head_ip}" if _is_address(head_ip) else ""
    there = f" --node-ip-address={_OWN_ADDRESS}" if provider.get("type") == "local" else ""
    options = f"--port=6379 --dashboard-host=0.0.0.0 --autoscaling-config=~/ray_bootstrap_config.yaml{here}"
    return {
        "head_start_ray_commands": ["ray stop", f"{_FILES}; ray start --head {options}"],
        "worker_start_ray_commands": ["ray stop", f"{_FILES}; ray start --address=$RAY_HEAD_IP:6379{there}"],
    }


def _head_store(settings: ClusterSettings) -> dict[str, str]:
    name = str((settings.launcher or {}).get("cluster_name", "default"))
    if settings.head_store == "embedded":
        return {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": f"$HOME/.twohead/head-{name}"}
    if settings.head_store == "redis":
        return {"RAY_REDIS_ADDRESS": str(settings.redis_address), "RAY_external_storage_namespace": name}
    return {}


def store_removal(settings: ClusterSettings) -> str:
    """Return the command for the head that takes away what it kept by `cluster.head_store`; nothing where it kept nothing.

    Else the next cluster of that name would begin with the work of this one.
    """
    store = _head_store(settings)
    if settings.head_store == "embedded":
        # In quotes: a home may have a space in its name, and half of it would be another folder.
        return f'rm -rf "{store["RAY_gcs_storage_path"]}"'
    if settings.head_store == "redis":
        host, _, port = store["RAY_REDIS_ADDRESS"].rpartition(":")
        password = "os.environ.get('RAY_REDIS_PASSWORD', '')"  # noqa: S105  # where the head has it from
        call = f"cleanup_redis_storage({host!r}, {port}, {password}, False, {store['RAY_external_storage_namespace']!r})"
        program = f"import os, sys; from ray._private.gcs_utils import cleanup_redis_storage; sys.exit({call} is False)"
        return f"{HEADS_PYTHON} -c {shlex.quote(program)}"
    return ""


def _with(variables: dict[str, str], command: str) -> str:
    # `env`, because a bare variable could not stand behind `nohup` or `sudo`.
    missing = " ".join(f"{name}={value}" for name, value in variables.items() if f"{name}=" not in command)
    return _START.sub(f"env {missing} ray start", command, count=1) if missing else command


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
