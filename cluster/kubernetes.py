"""Makes manifests for KubeRay from the settings: a cluster, a job with a cluster of its own, and the image both run.

Every cluster wants Ray's token, which KubeRay makes and hands out; pods come and go with Ray's autoscaler; the head runs no work. What a
pod writes is gone with it, so that storage must be a URI. It does not know what runs in a cluster, nor whether Kubernetes takes what it
made: nothing is asked.

Source: KubeRay's API reference, https://github.com/ray-project/kuberay (docs/reference/api.md), read 2026-11; `authOptions` needs
KubeRay 1.5.1.
"""

import importlib.metadata
import json
import shlex
from collections.abc import Sequence
from typing import Any

from cluster.errors import SettingsError
from cluster.session import BETWEEN_MACHINES, LOOPBACK_VARIABLE, SETTLED
from cluster.settings import STORAGE_VARIABLE, ClusterSettings, GroupSettings, PodSettings

Manifest = dict[str, Any]

API_VERSION = "ray.io/v1"
NAME = "twohead"
# Where KubeRay has every pod tell its figures.
METRICS_PORT = 8080
# Where the image has the project.
FOLDER = "/opt/twohead"

_LABELS = {"app.kubernetes.io/name": NAME}
_PORTS = (("gcs", 6379), ("dashboard", 8265), ("serve", 8000))
# So long a pod that goes waits for its replicas to move, and then for its processes to end.
_LEAVE_S, _END_S = 90, 30
# A job that ended can be looked at for so long.
_KEEP_JOB_S = 3_600

_DOCKERFILE = """\
# The image of all pods: Ray, this project and its settings. Build it in the project's folder:
#   python -m cluster render dockerfile > Dockerfile && docker build --tag {image} .
FROM python:3.11-slim
# A compiler makes the engine's own loops when a replica starts; KubeRay's probes call wget.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev wget && rm -rf /var/lib/apt/lists/*
WORKDIR {folder}
COPY requirements.lock pyproject.toml README.md ./
RUN pip install --no-cache-dir "$(grep -o '^torch==[^ ]*' requirements.lock)" && pip install --no-cache-dir --no-deps -r requirements.lock
COPY cluster cluster
COPY training training
COPY serving serving
COPY ray_config.yaml ./
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && useradd --create-home --uid 1000 ray
USER ray
"""


def cluster_spec(settings: ClusterSettings) -> Manifest:
    """Describe a cluster (`RayClusterSpec`).

    Raises:
        SettingsError: Its pods could not share the storage.
    """
    chosen = settings.kubernetes
    if "://" not in settings.storage or settings.storage.startswith("file://"):
        raise SettingsError(
            f"cluster.storage is {settings.storage}, a folder that a pod has for itself",
            "name a store that all reach, like s3://bucket/twohead",
        )
    spec: Manifest = {
        "rayVersion": importlib.metadata.version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": chosen.idle_s},
        "headGroupSpec": {
            # Ray would put work there, and take the head down with it.
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104  # of the pod
            "template": _pod("head", chosen.head, settings),
        },
        "workerGroupSpecs": [_group(name, group, settings) for name, group in chosen.groups.items()],
    }
    if settings.head_store == "embedded":
        spec["gcsFaultToleranceOptions"] = {"backend": "rocksdb", "storage": {"size": f"{chosen.head_store_gib}Gi"}}
    elif settings.head_store == "redis":
        spec["gcsFaultToleranceOptions"] = {"redisAddress": settings.redis_address}
    return spec


def ray_cluster(settings: ClusterSettings) -> Manifest:
    """Make a cluster that stays; see `cluster_spec`."""
    return manifest("RayCluster", NAME, settings) | {"spec": cluster_spec(settings)}


def ray_job(settings: ClusterSettings, command: Sequence[str]) -> Manifest:
    """Make a job with a cluster of its own, which goes when the job has ended; see `cluster_spec`.

    Args:
        settings: The section `cluster`.
        command: What runs, like `python -m training tune`, in the project's folder in the image.

    Raises:
        SettingsError: There is no command, or see `cluster_spec`.
    """
    if not command:
        raise SettingsError("rayjob: there is no command", "python -m cluster render rayjob -- python -m training tune")
    spec = {
        "entrypoint": shlex.join(command),
        "runtimeEnvYAML": f"working_dir: local://{FOLDER}\n",
        "rayClusterSpec": cluster_spec(settings),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _KEEP_JOB_S,
        # A search that broke is looked at and resumed, not begun again.
        "backoffLimit": 0,
    }
    return manifest("RayJob", f"{NAME}-job", settings) | {"spec": spec}


def network_policy(settings: ClusterSettings, port: int, label: str) -> Manifest:
    """Let nobody reach our pods but each other, KubeRay's operator, and on one port the pods that are labelled for it.

    Source: https://kubernetes.io/docs/concepts/services-networking/network-policies/
    """
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}}
    ours = {"podSelector": {"matchLabels": _LABELS}}
    client = {"podSelector": {"matchLabels": {label: "true"}}}
    spec = {
        "podSelector": {"matchLabels": _LABELS},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [ours, operator]}, {"from": [client], "ports": [{"protocol": "TCP", "port": port}]}],
    }
    metadata = {"name": NAME, "namespace": settings.kubernetes.namespace}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def dockerfile(settings: ClusterSettings) -> str:
    """Make the image's recipe."""
    return _DOCKERFILE.format(image=settings.kubernetes.image, folder=FOLDER)


def to_yaml(manifest: Manifest) -> str:
    """Write a manifest, its keys in the order they were made, and texts of several lines as they are."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    # Through JSON: YAML's own references would stand for what is the same object.
    written: str = yaml.dump(json.loads(json.dumps(manifest)), Dumper=Dumper, sort_keys=False, width=1_000)
    return written


def manifest(kind: str, name: str, settings: ClusterSettings) -> Manifest:
    """Begin a manifest of one of KubeRay's kinds, which lacks its `spec`."""
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name, "namespace": settings.kubernetes.namespace}}


def _group(name: str, group: GroupSettings, settings: ClusterSettings) -> Manifest:
    return {
        "groupName": name,
        "replicas": group.fewest,
        "minReplicas": group.fewest,
        "maxReplicas": group.most,
        "rayStartParams": {},
        "template": _pod("worker", group, settings),
    }


def _environment(settings: ClusterSettings) -> dict[str, str]:
    # The token and its mode are KubeRay's.
    left = {"RAY_AUTH_MODE", LOOPBACK_VARIABLE, "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"}
    return {name: value for name, value in SETTLED.items() if name not in left} | BETWEEN_MACHINES | {STORAGE_VARIABLE: settings.storage}


def _pod(role: str, pod: PodSettings, settings: ClusterSettings) -> Manifest:
    amount: Manifest = {"cpu": str(pod.cpu), "memory": f"{pod.memory_gib}Gi"}
    if pod.gpu:
        amount["nvidia.com/gpu"] = str(pod.gpu)
    container: Manifest = {
        "name": f"ray-{role}",
        "image": settings.kubernetes.image,
        # Ray counts what it is promised: a pod that gets less would be given more work than it can do.
        "resources": {"requests": amount, "limits": amount},
        "env": [{"name": name, "value": value} for name, value in _environment(settings).items()],
        "securityContext": {"allowPrivilegeEscalation": False, "runAsNonRoot": True, "runAsUser": 1000},
    }
    if role == "head":
        container["ports"] = [{"name": name, "containerPort": port} for name, port in _PORTS]
    else:
        # Before a pod is ended, also where its machine is taken away: replicas move first.
        words = ["python", "-m", "cluster.machines.notice", "now", str(_LEAVE_S)]
        container["lifecycle"] = {"preStop": {"exec": {"command": words}}}
    spec: Manifest = {"containers": [container], "terminationGracePeriodSeconds": _LEAVE_S + _END_S}
    if pod.node_selector:
        spec["nodeSelector"] = dict(pod.node_selector)
    if pod.tolerations:
        spec["tolerations"] = [dict(one) for one in pod.tolerations]
    return {"metadata": {"labels": dict(_LABELS)}, "spec": spec}
