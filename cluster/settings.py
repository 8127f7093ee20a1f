"""Reads ray_config.yaml, and holds the section `cluster`.

One file has three sections, `cluster`, `training` and `serving`, each validated by the folder of that
name; this module knows only that they exist. Every finding is listed, not just the first. It does not
know what the other sections mean.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from cluster.errors import SettingsError
from cluster.uris import password_fault

DEFAULT_FILE = Path("ray_config.yaml")
SECTIONS = ("cluster", "training", "serving")
# A job runs in a copy of the working directory, where a relative storage path would mean another place:
# `submit` hands the absolute one over in this variable.
STORAGE_VARIABLE = "TWOHEAD_STORAGE"
# Of findings whose messages leave out what was found.
_UNSHOWN = "unshown"
# The id of the job that a process works for, if it works for one.
JOB_VARIABLE = "TWOHEAD_JOB"


class Section(BaseModel):
    """Base of every part of the settings: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class PodSettings(Section):
    """What one pod of a Ray cluster gets.

    Attributes:
        cpu: CPUs.
        memory_gib: Memory; it may not use more.
        gpu: GPUs.
        node_selector: Labels of the nodes it may run on.
        tolerations: Taints it may run in spite of, as Kubernetes has them; nodes that may be taken away at any time often have one.
    """

    cpu: int = Field(default=2, ge=1)
    memory_gib: int = Field(default=8, ge=1)
    gpu: int = Field(default=0, ge=0)
    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, str | int], ...] = ()

    @field_validator("tolerations")
    @classmethod
    def _are_kubernetes_own(cls, value: tuple[dict[str, str | int], ...]) -> tuple[dict[str, str | int], ...]:
        for one in value:
            for key, found in one.items():
                if isinstance(found, int) != (key == "tolerationSeconds"):
                    raise ValueError(f"{key} must be {'a whole number' if key == 'tolerationSeconds' else 'text'}, not {found!r}")
        return value


class GroupSettings(PodSettings):
    """Pods that come and go together with work for them.

    Attributes:
        fewest: So many are always there.
        most: At most.
    """

    fewest: int = Field(default=0, ge=0)
    most: int = Field(default=4, ge=1, validate_default=True)

    @field_validator("most")
    @classmethod
    def _not_below_fewest(cls, value: int, info: ValidationInfo) -> int:
        if value < (fewest := info.data.get("fewest", 0)):
            raise ValueError(f"must be at least fewest ({fewest})")
        return value


class KubernetesSettings(Section):
    """What `render` makes for KubeRay.

    Attributes:
        image: Holds Ray and this project; see `render dockerfile`.
        namespace: Of all that is made.
        head: The head's pod; no trial and no replica runs there.
        groups: Name → pods that work.
        head_store_gib: Size of the head's volume, where `cluster.head_store` is `embedded`.
        idle_s: A pod without work goes after so long.
    """

    image: str = Field(default="twohead:latest", pattern=r"^\S+$")
    namespace: str = Field(default="default", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    head: PodSettings = PodSettings()
    groups: dict[Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$")], GroupSettings] = Field(
        default={"trials": GroupSettings(cpu=4, memory_gib=16), "replicas": GroupSettings(cpu=4, memory_gib=16, fewest=1)}, min_length=1
    )
    head_store_gib: int = Field(default=5, ge=1)
    idle_s: int = Field(default=120, ge=1)


class ClusterSettings(Section):
    """Where Ray is, and where files live.

    Attributes:
        address: `local`, or the dashboard of a running cluster (`http://head:8265`).
        storage: Folder or any fsspec URI for searches, versions and names.
        trusted_keys: Ed25519 public keys, each the one line between the first and the last of its PEM file. With any of them, only
            versions that one of them signed are promoted, scored with and served.
        num_cpus: CPUs a local Ray offers; null means all of this machine.
        num_gpus: GPUs a local Ray offers; null means all of this machine.
        dashboard_port: Port of the dashboard and the Jobs API that `cluster up` starts on loopback.
        object_store_bytes: Shared memory of a local Ray for tokenised texts.
        exclude: Patterns (as in .gitignore) that are not shipped with a job. Who gives others repeats those of private keys and secrets.
        head_store: Where the head of several machines keeps what it must know again after it was lost: `none`, `embedded` (a folder of its
            own) or `redis`. With `none` all work is lost with the head.
        redis_address: Of that Redis, `host:port`.
        launcher: Ray's own cluster-launcher configuration, word for word: `up` starts the machines that it describes.
        kubernetes: What `render` makes for KubeRay.
    """

    address: str = "local"
    storage: str = ".twohead"
    trusted_keys: tuple[Annotated[str, Field(pattern=r"^MCowBQYDK2VwAyEA[A-Za-z0-9+/]{43}=$")], ...] = ()
    num_cpus: int | None = Field(default=None, ge=1)
    num_gpus: int | None = Field(default=None, ge=0)
    dashboard_port: int = Field(default=8265, ge=1, le=65535)
    object_store_bytes: int = Field(default=500_000_000, ge=80_000_000)
    # The last three usually hold secrets, which every node would keep a copy of.
    exclude: tuple[str, ...] = (".git", ".venv", "venv", ".twohead", "__pycache__", ".*_cache", "*.pem", "*.key", ".env*")
    head_store: Literal["none", "embedded", "redis"] = "none"
    redis_address: str | None = Field(default=None, pattern=r"^[^\s:/]+:[0-9]+$", validate_default=True)
    launcher: dict[str, Any] | None = None
    kubernetes: KubernetesSettings = KubernetesSettings()

    @field_validator("storage")
    @classmethod
    def _without_a_password(cls, value: str) -> str:
        if fault := password_fault(value):
            raise PydanticCustomError(_UNSHOWN, f"{fault}; fsspec finds secrets in its own files and in the environment")
        return value

    @field_validator("address")
    @classmethod
    def _known_address(cls, value: str) -> str:
        if value != "local" and not re.match(r"https?://[^/]+$", value):
            raise ValueError("must be 'local' or the dashboard's address, like http://head:8265")
        return value

    @field_validator("redis_address")
    @classmethod
    def _where_it_is_read(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (value is not None) != (info.data.get("head_store") == "redis"):
            raise ValueError("must be given where head_store is redis, and nowhere else")
        return value

    @property
    def is_local(self) -> bool:
        """Whether this machine is the whole cluster."""
        return self.address == "local" and self.launcher is None


SectionT = TypeVar("SectionT", bound=Section)


_MERGE_TAG = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` with YAML 1.2 scalars and without silent duplicate keys.

    PyYAML follows YAML 1.1, in which `1e-5` is a string, `no` is false, `10:30` is 630 and `010` is 8. Digits after
    a leading zero stay a string here: they are a code, and a number would lose the zero.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in entries if not tag.endswith((":float", ":int", ":bool", ":timestamp"))]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            # `<<` merges another mapping, and has no value of its own.
            key = None if key_node.tag == _MERGE_TAG else self.construct_object(key_node, deep=True)
            if key is not None and key in keys:
                raise SettingsError(f"line {key_node.start_mark.line + 1}: the key {key!r} stands twice", "keep one of the two")
            keys.append(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$|^0x[0-9a-fA-F]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf)$|^\.(?:nan|NaN)$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML safely, with YAML 1.2 numbers and booleans.

    Raises:
        SettingsError: Not YAML, a key twice, or a tag that would build an object.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  # _Loader is a SafeLoader
    except SettingsError as error:
        raise SettingsError(f"{where}: {error.message}", error.hint) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        found = " ".join(str(error).split())
        raise SettingsError(f"{where}: not valid YAML: {found}") from None


def read_settings_file(path: Path = DEFAULT_FILE, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read all sections and apply `--set` overrides, without validating what they mean.

    Args:
        path: The settings file. The default one may be missing: then every setting has its default.
        overrides: `section.key=value` strings; the value is YAML.

    Raises:
        SettingsError: The file is missing, is not YAML, or has an unknown section.
    """
    tree = _read_tree(path)
    # Before what the command itself says: a job's own --set wins over what its submission hands over.
    if storage := os.environ.get(STORAGE_VARIABLE):
        tree.setdefault("cluster", {})["storage"] = storage
    for override in overrides:
        _apply(tree, override)
    if storage:
        _refuse_lost(tree["cluster"]["storage"], storage)
    return tree


def _refuse_lost(chosen: object, storage: str) -> None:
    """Refuse a folder that a job would write into the copy of the working directory that Ray gave it, and takes away.

    Raises:
        SettingsError: It is relative.
    """
    if isinstance(chosen, str) and chosen != storage and "://" not in chosen and not chosen.startswith(("/", "~")):
        raise SettingsError(
            f"--set cluster.storage={chosen}: is relative, but a job runs in a copy of the working directory, which is taken away",
            "give an absolute path or a URI",
        )


def _read_tree(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if path == DEFAULT_FILE:
            return {}
        raise SettingsError(f"{path}: no such file", "name the settings file with --config") from None
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}", "name the settings file with --config") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: {error}") from None
    tree = parse_yaml(text, str(path)) or {}
    if not isinstance(tree, dict):
        raise SettingsError(f"{path}: is a {type(tree).__name__}, but must be a mapping with the sections {_listed(SECTIONS)}")
    for name, section in tree.items():
        if name not in SECTIONS:
            raise SettingsError(f"{path}: section {name!r} is unknown, but must be one of {_listed(SECTIONS)}")
        if section is not None and not isinstance(section, dict):
            raise SettingsError(f"{path}: {name} is {section!r}, but must be a mapping")
    return {name: section or {} for name, section in tree.items()}


def _apply(tree: dict[str, Any], override: str) -> None:
    dotted, equals, raw = override.partition("=")
    names = dotted.split(".")
    if not equals or len(names) < 2 or names[0] not in SECTIONS:
        raise SettingsError(
            f"--set {override}: must look like section.key=value, with a section of {_listed(SECTIONS)}",
            "for example --set training.tuning.num_samples=40",
        )
    node = tree
    for position, name in enumerate(names[:-1]):
        child = node.get(name)
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            raise SettingsError(f"--set {override}: {'.'.join(names[: position + 1])} is {child!r} and has no keys")
        node = child
    node[names[-1]] = parse_yaml(raw, f"--set {dotted}")


def validate_section(model: type[SectionT], tree: Mapping[str, Any], name: str, where: str = str(DEFAULT_FILE)) -> SectionT:
    """Turn one section of the settings into its frozen object.

    Raises:
        SettingsError: With every finding, one line each, named by its dotted key.
    """
    try:
        return model.model_validate(tree.get(name) or {})
    except ValidationError as error:
        lines = [_finding(where, name, details) for details in error.errors(include_url=False)]
        raise SettingsError("\n       ".join(lines), "docs/settings.md names them all") from None


def _finding(where: str, section: str, details: Any) -> str:
    dotted = ".".join([section, *(str(part) for part in details["loc"])])
    if details["type"] == "extra_forbidden":
        return f"{where}: {dotted} is not a setting"
    if details["type"] == "missing":
        return f"{where}: {dotted} is missing"
    if details["type"] == _UNSHOWN:
        return f"{where}: {dotted} {details['msg']}"
    found = details["input"]
    shown = json.dumps(found) if isinstance(found, str | int | float | bool | None) and _finite(found) else type(found).__name__
    reason = details["msg"].removeprefix("Value error, ").replace("Input should", "must")
    # A validator over several keys reports on the whole section: its message names the values itself.
    return f"{where}: {dotted}: {reason}" if isinstance(found, dict) else f"{where}: {dotted} is {shown}, but {_allowed(reason)}"


def _finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _allowed(reason: str) -> str:
    lowered = reason[:1].lower() + reason[1:]
    return lowered if lowered.startswith("must") else f"must be different: {lowered}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def load_settings(path: Path = DEFAULT_FILE, overrides: Sequence[str] = ()) -> ClusterSettings:
    """Read and validate the section `cluster`.

    Raises:
        SettingsError: See `read_settings_file` and `validate_section`.
    """
    return validate_section(ClusterSettings, read_settings_file(path, overrides), "cluster", str(path))
