"""Checks a configuration for Ray's own cluster launcher, without asking any cloud.

Ray's validator goes first. It lets through what only shows when machines are paid for: misspelt keys below `provider`, keys and files
that are not there, more nodes wanted than allowed, and a cluster that wants no token. It cannot see whether images and commands are right.
"""

import copy
import importlib
import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from cluster.errors import SettingsError
from cluster.machines.completing import completed
from cluster.machines.known import TOKEN_PLACE, expanded
from cluster.settings import ClusterSettings

_HINT = "these are Ray's own keys: see the cluster YAML reference of Ray"
_AT = "cluster.launcher"
# What the launcher of each provider reads (ray.autoscaler._private, 2.60); keys that begin with an underscore are Ray's own notes.
_EVERYWHERE = {"type", "use_internal_ips", "cache_stopped_nodes", "disable_node_updaters", "disable_launch_config_check"}
_PROVIDER_KEYS = {
    "local": {"head_ip", "worker_ips", "external_head_ip"},
    "aws": {"region", "availability_zone", "key_pair", "security_group", "cloudwatch", "aws_credentials"},
    "gcp": {"region", "availability_zone", "project_id", "gcp_credentials"},
}
_TOKEN_MODE = "RAY_AUTH_MODE=token"  # noqa: S105  # how a command asks for it


def check_launcher(settings: ClusterSettings) -> dict[str, Any]:
    """Check the configuration of `cluster.launcher`, and complete it.

    Returns:
        As it goes to `ray up`.

    Raises:
        SettingsError: With every finding of Ray's schema, or the first of its other checks, or every one of ours.
    """
    launcher = complete(settings)
    _let_ray_check(launcher)
    ours = [*_provider_findings(launcher), *_file_findings(launcher), *_count_findings(launcher), *_token_findings(launcher)]
    if ours:
        raise SettingsError("\n       ".join(ours), "examples that pass are in cluster/examples")
    return launcher


def complete(settings: ClusterSettings) -> dict[str, Any]:
    """Complete the configuration of `cluster.launcher` without asking what it names: to end machines whose files are gone, too.

    Raises:
        SettingsError: With every finding of Ray's schema.
    """
    # Ray's own checks stop at the first finding, and fall over values of a wrong type, as ours do: so its schema goes first.
    if findings := _schema_findings(settings.launcher or {}):
        raise SettingsError("\n       ".join(findings), _HINT)
    return completed(settings)


def _let_ray_check(launcher: dict[str, Any]) -> None:
    ray_util: Any = importlib.import_module("ray.autoscaler._private.util")
    click: Any = importlib.import_module("click")
    try:
        # It prints what it fills in and finds; the finding comes with the error too.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            ray_util.validate_config(ray_util.prepare_config(copy.deepcopy(launcher)))
    except KeyError as error:
        raise SettingsError(f"{_AT}: the key {error} is missing", _HINT) from None
    # What Ray's checks raise for a bad configuration; anything else is a defect and must show.
    except (ValueError, TypeError, NotImplementedError, click.ClickException) as error:
        raise SettingsError(f"{_AT}: {error}", _HINT) from None


def _schema_findings(launcher: dict[str, Any]) -> list[str]:
    import ray.autoscaler

    validator: Any = importlib.import_module("jsonschema").Draft7Validator
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    errors = sorted(validator(schema).iter_errors(launcher), key=lambda error: [str(part) for part in error.absolute_path])
    return [".".join([_AT, *(str(part) for part in error.absolute_path)]) + f": {error.message}" for error in errors]


def _provider_findings(launcher: dict[str, Any]) -> Iterator[str]:
    provider = launcher["provider"]
    if (known := _PROVIDER_KEYS.get(provider["type"])) is None:
        return
    if "coordinator_address" in provider:
        # Whose hosts it lends is not known beforehand, so nobody could end what runs there.
        yield f"{_AT}.provider.coordinator_address: hosts that a coordinator lends are not supported; name them by head_ip and worker_ips"
    for key in sorted(provider.keys() - known - _EVERYWHERE - {"coordinator_address"}):
        if not key.startswith("_"):
            yield f"{_AT}.provider.{key} is not read by provider {provider['type']}, which reads {', '.join(sorted(known))}"


def _file_findings(launcher: dict[str, Any]) -> Iterator[str]:
    auth = launcher.get("auth", {})
    for key in ("ssh_private_key", "ssh_public_key"):
        if key in auth and not expanded(auth[key]).is_file():
            yield f"{_AT}.auth.{key} is {auth[key]}, but there is no such file"
    for place, source in launcher.get("file_mounts", {}).items():
        # `up` makes the token where there is none.
        if place != TOKEN_PLACE and not expanded(source).exists():
            yield f"{_AT}.file_mounts: {place} comes from {source}, which is not there"


def _count_findings(launcher: dict[str, Any]) -> Iterator[str]:
    most = launcher.get("max_workers", 2)
    kinds = launcher.get("available_node_types", {})
    for name, kind in kinds.items():
        fewest, own = kind.get("min_workers", 0), kind.get("max_workers", most)
        if fewest > own:
            yield f"{_AT}.available_node_types.{name}.min_workers is {fewest}, but max_workers is {own}"
    # Hosts that are named are always wanted.
    wanted = sum(kind.get("min_workers", 0) for kind in kinds.values()) + len(launcher["provider"].get("worker_ips", ()))
    if "max_workers" in launcher and wanted > most:
        yield f"{_AT}.max_workers is {most}, but {wanted} are always wanted"


def _token_findings(launcher: dict[str, Any]) -> Iterator[str]:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in launcher.get(key, []) if "ray start" in command]
        if not starts or not all(_TOKEN_MODE in command for command in starts):
            yield f"{_AT}.{key} must start Ray with {_TOKEN_MODE}, or everybody who reaches the cluster runs commands on it"
