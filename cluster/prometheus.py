"""A configuration with which Prometheus reads what every node's exporter tells: machines, jobs, actors. It does not know what they mean.

Ray's control service keeps a file with the address of each exporter, for Prometheus on the same machine; on Kubernetes its own list of
pods is asked. The exporters want no token.

Sources: https://prometheus.io/docs/prometheus/latest/configuration/configuration/ (`file_sd_configs`, `kubernetes_sd_configs`); Ray's file
and the label `ray.io/cluster` are those of Ray 2.60 and KubeRay 1.5.
"""

from typing import Any

import yaml

from cluster.facts import read_facts
from cluster.kubernetes import METRICS_PORT, NAME
from cluster.settings import ClusterSettings

# Exporters hear of figures every ten seconds; asking more often shows the same.
_INTERVAL = "10s"
_FILE = "prom_metrics_service_discovery.json"
_RAYS_FOLDER = "/tmp/ray"  # noqa: S108  # where Ray itself puts it on machines that its launcher starts


def scrape_config(settings: ClusterSettings) -> str:
    """Return the configuration as YAML, for Prometheus on the head.

    Where `cluster.address` is neither of this machine nor of those of `cluster.launcher`, it is for Prometheus in Kubernetes.
    """
    job: dict[str, Any] = {"job_name": "ray", "scrape_interval": _INTERVAL}
    at_head = settings.is_local or settings.launcher is not None
    return yaml.safe_dump({"scrape_configs": [job | (_by_file(settings) if at_head else _by_pods(settings))]}, sort_keys=False)


def _by_file(settings: ClusterSettings) -> dict[str, Any]:
    facts = read_facts(settings) if settings.is_local else None
    return {"file_sd_configs": [{"files": [f"{facts.session.ray_folder if facts else _RAYS_FOLDER}/{_FILE}"]}]}


def _by_pods(settings: ClusterSettings) -> dict[str, Any]:
    kept = {
        "__meta_kubernetes_pod_label_ray_io_cluster": f"{NAME}.*",
        "__meta_kubernetes_pod_container_port_number": str(METRICS_PORT),
    }
    return {
        "kubernetes_sd_configs": [{"role": "pod", "namespaces": {"names": [settings.kubernetes.namespace]}}],
        "relabel_configs": [{"source_labels": [label], "regex": value, "action": "keep"} for label, value in kept.items()],
    }
