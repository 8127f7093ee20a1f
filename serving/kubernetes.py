"""Makes a manifest for KubeRay: a cluster that serves, and who may reach it.

A pod's own loopback address is reached by nobody else, so Serve listens on the pod's, and a network policy lets in only pods that are
labelled for it. It does not know whether Kubernetes takes what it made: nothing is asked.

Source: KubeRay's API reference, https://ray-project.github.io/kuberay/reference/api/ (RayServiceSpec), read 2026-11.
"""

from typing import Any

from cluster.kubernetes import FOLDER, NAME, Manifest, cluster_spec, manifest, network_policy, to_yaml
from cluster.settings import ClusterSettings
from serving.app import render, replica_environment
from serving.settings import Arguments, ServingSettings

# Pods that carry it may ask.
CLIENT_LABEL = f"{NAME}-client"
_COMMENT = """\
# Pods labelled {label}: "true" in this namespace may ask, and nobody else, where the network keeps network policies.
# Others come through a proxy with TLS that carries the label. {keys}
"""


def ray_service(cluster: ClusterSettings, serving: ServingSettings, version: int | None = None) -> Manifest:
    """Make a cluster that serves.

    Args:
        cluster: The section `cluster`.
        serving: The section `serving`.
        version: A published version to stay with; None follows `serving.name`.

    Raises:
        SettingsError: See `cluster_spec`.
    """
    spec = cluster_spec(cluster)
    # A URI by now. What speaks its protocol must be in the image, and need not be here.
    arguments = Arguments(storage=cluster.storage, version=version, trusted_keys=cluster.trusted_keys, settings=serving)
    environment = {"working_dir": f"local://{FOLDER}", "env_vars": replica_environment(serving)}
    config: dict[str, Any] = render(serving, arguments, environment)
    config["http_options"] = {"host": "0.0.0.0", "port": serving.port}  # noqa: S104  # of the pod, behind the network policy
    service = {
        "serveConfigV2": to_yaml(config),
        # The head runs no replica, and is the one pod that must not be busy.
        "excludeHeadPodFromServeSvc": True,
        # Changed settings of the cluster make a second one, and requests move when it answers.
        "upgradeStrategy": {"type": "NewCluster"},
        "rayClusterConfig": spec,
    }
    return manifest("RayService", NAME, cluster) | {"spec": service}


def write_ray_service(cluster: ClusterSettings, serving: ServingSettings, version: int | None = None) -> str:
    """Return the manifests as YAML: the service, and who may reach it; see `ray_service`."""
    parts = (ray_service(cluster, serving, version), network_policy(cluster, serving.port, CLIENT_LABEL))
    keys = "Each replica asks for a key." if serving.require_keys else "No key is asked for: set serving.require_keys to true."
    return _COMMENT.format(label=CLIENT_LABEL, keys=keys) + "---\n".join(map(to_yaml, parts))
