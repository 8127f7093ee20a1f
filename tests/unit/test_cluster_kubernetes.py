"""Manifests for KubeRay: every key is one of its kind, and what the settings say is in them."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.console import run_command
from cluster.errors import SettingsError
from cluster.kubernetes import FOLDER, cluster_spec, dockerfile, network_policy, ray_cluster, ray_job, to_yaml
from cluster.settings import ClusterSettings, validate_section
from serving.__main__ import make_parser as serving_parser
from serving.kubernetes import ray_service
from serving.settings import ServingSettings

ROOT = Path(__file__).parents[2]
# KubeRay's and Kubernetes's own field names (https://github.com/ray-project/kuberay, docs/reference/api.md; https://kubernetes.io/docs/reference).
AMOUNTS: dict[str, Any] = {"requests": {"*": str}, "limits": {"*": str}}
CONTAINER = {
    "name": str, "image": str, "resources": AMOUNTS, "env": [{"name": str, "value": str}],
    "securityContext": {"allowPrivilegeEscalation": bool, "runAsNonRoot": bool, "runAsUser": int},
    "ports": [{"name": str, "containerPort": int}], "lifecycle": {"preStop": {"exec": {"command": [str]}}},
}  # fmt: skip
TOLERATION = {"key": str, "operator": str, "value": str, "effect": str, "tolerationSeconds": int}
POD_SPEC = {"containers": [CONTAINER], "nodeSelector": {"*": str}, "tolerations": [TOLERATION], "terminationGracePeriodSeconds": int}
POD = {"metadata": {"labels": {"*": str}}, "spec": POD_SPEC}
CLUSTER_SPEC = {
    "rayVersion": str,
    "authOptions": {"mode": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {"version": str, "idleTimeoutSeconds": int},
    "gcsFaultToleranceOptions": {"redisAddress": str, "backend": str, "storage": {"size": str}},
    "headGroupSpec": {"rayStartParams": {"*": str}, "template": POD},
    "workerGroupSpecs": [
        {"groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "rayStartParams": {"*": str}, "template": POD}
    ],
}
JOB_SPEC = {
    "entrypoint": str,
    "runtimeEnvYAML": str,
    "rayClusterSpec": CLUSTER_SPEC,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "backoffLimit": int,
}
SERVICE_SPEC = {
    "serveConfigV2": str,
    "excludeHeadPodFromServeSvc": bool,
    "upgradeStrategy": {"type": str},
    "rayClusterConfig": CLUSTER_SPEC,
}
PEER = {"podSelector": {"matchLabels": {"*": str}}, "namespaceSelector": {"*": str}}
POLICY_SPEC = {
    "podSelector": {"matchLabels": {"*": str}},
    "policyTypes": [str],
    "ingress": [{"from": [PEER], "ports": [{"protocol": str, "port": int}]}],
}
META = {"name": str, "namespace": str}
KINDS = {
    "RayCluster": {"apiVersion": str, "kind": str, "metadata": META, "spec": CLUSTER_SPEC},
    "RayJob": {"apiVersion": str, "kind": str, "metadata": META, "spec": JOB_SPEC},
    "RayService": {"apiVersion": str, "kind": str, "metadata": META, "spec": SERVICE_SPEC},
    "NetworkPolicy": {"apiVersion": str, "kind": str, "metadata": META, "spec": POLICY_SPEC},
}


def strangers(tree: Any, fields: Any, at: str = "") -> list[str]:
    """Name every key that its kind does not have, and every value of another type."""
    if isinstance(fields, dict):
        if not isinstance(tree, dict):
            return [at]
        known = {key: fields.get(key, fields.get("*")) for key in tree}
        return [
            found
            for key, value in tree.items()
            for found in (strangers(value, known[key], f"{at}.{key}") if known[key] else [f"{at}.{key}"])
        ]
    if isinstance(fields, list):
        return [found for one in tree for found in strangers(one, fields[0], at)] if isinstance(tree, list) else [at]
    return [] if type(tree) is fields else [at]


def make(**kubernetes: Any) -> ClusterSettings:
    own = {key: kubernetes.pop(key) for key in ("head_store", "redis_address") if key in kubernetes}
    return validate_section(ClusterSettings, {"cluster": {"storage": "s3://bucket/twohead", "kubernetes": kubernetes, **own}}, "cluster")


FULL = {
    "image": "registry/twohead:1",
    "namespace": "ml",
    "head": {"cpu": 3, "memory_gib": 6},
    "head_store": "embedded",
    "groups": {
        "trials": {
            "cpu": 8, "memory_gib": 32, "gpu": 1, "most": 16, "node_selector": {"pool": "spot"},
            "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
        },
        "replicas": {"fewest": 2, "most": 8},
    },
}  # fmt: skip


@pytest.mark.parametrize("kubernetes", [{}, FULL, FULL | {"head_store": "redis", "redis_address": "redis:6379"}])
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_key_is_one_of_its_kind(kind: str, kubernetes: dict[str, Any]) -> None:
    settings = make(**kubernetes)
    makers = {
        "RayCluster": lambda: ray_cluster(settings),
        "RayJob": lambda: ray_job(settings, ["python", "-m", "training", "tune"]),
        "RayService": lambda: ray_service(settings, ServingSettings()),
        "NetworkPolicy": lambda: network_policy(settings, 8000, "client"),
    }
    made = makers[kind]()
    tree = yaml.safe_load(to_yaml(made))
    assert tree == made
    assert tree["kind"] == kind
    assert strangers(tree, KINDS[kind]) == []


def test_a_misspelt_key_would_be_found() -> None:
    tree = ray_cluster(make())
    tree["spec"]["workerGroupSpecs"][0]["minReplica"] = tree["spec"]["workerGroupSpecs"][0].pop("minReplicas")
    tree["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] = 1
    at = ".spec.headGroupSpec.template.spec.containers.image"
    assert strangers(tree, KINDS["RayCluster"]) == [at, ".spec.workerGroupSpecs.minReplica"]


def test_what_is_set_is_in_it() -> None:
    spec = cluster_spec(make(**FULL))
    trials, replicas = spec["workerGroupSpecs"]
    (container,) = trials["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "1"}
    assert trials["template"]["spec"]["nodeSelector"] == {"pool": "spot"}
    assert trials["template"]["spec"]["tolerations"] == FULL["groups"]["trials"]["tolerations"]
    assert [(one["minReplicas"], one["maxReplicas"]) for one in (trials, replicas)] == [(0, 16), (2, 8)]
    assert {"name": "TWOHEAD_STORAGE", "value": "s3://bucket/twohead"} in container["env"]
    assert {"name": "RAY_grpc_client_keepalive_timeout_ms", "value": "5000"} in container["env"]
    assert {"name": "RAY_SERVE_PROXY_USE_GRPC", "value": "1"} in container["env"]
    # What leaves a pod is waited for before the pod is ended.
    leave_s = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert trials["template"]["spec"]["terminationGracePeriodSeconds"] > leave_s
    assert spec["gcsFaultToleranceOptions"] == {"backend": "rocksdb", "storage": {"size": "5Gi"}}
    assert ray_cluster(make(**FULL))["metadata"]["namespace"] == "ml"


def test_every_cluster_wants_a_token_and_its_head_runs_no_work() -> None:
    for spec in (cluster_spec(make()), ray_job(make(), ["true"])["spec"]["rayClusterSpec"]):
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_a_job_runs_its_words_in_the_image() -> None:
    words = ["python", "-m", "training", "tune", "--name", "a b"]
    spec = ray_job(make(), words)["spec"]
    assert shlex.split(spec["entrypoint"]) == words
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"working_dir": f"local://{FOLDER}"}
    with pytest.raises(SettingsError, match="there is no command"):
        ray_job(make(), [])


# Ray 2.60's own models do the first; the second is about a key without which it scales only every 10 s.
@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field in AutoscalingConfig is deprecated:DeprecationWarning")
def test_a_service_is_one_that_serve_takes_and_that_only_labelled_pods_reach(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ray.serve.schema import ServeDeploySchema

    settings = tmp_path / "settings.yaml"
    settings.write_text("cluster: {storage: 's3://bucket/twohead'}\nserving: {port: 8100, min_replicas: 2, max_replicas: 5}\n")
    assert run_command(serving_parser(), ("render", "rayservice", "--config", str(settings), "--version", "7")) == 0
    service, policy = yaml.safe_load_all(capsys.readouterr().out)
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    assert application["runtime_env"]["working_dir"] == f"local://{FOLDER}"
    assert (application["args"]["version"], application["args"]["storage"]) == (7, "s3://bucket/twohead")
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8100}
    assert application["deployments"][0]["autoscaling_config"]["max_replicas"] == 5
    # Serve has no keys: everybody else is kept out by the network.
    labels = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    own, clients = policy["spec"]["ingress"]
    assert own["from"][0]["podSelector"]["matchLabels"] == labels
    assert clients == {"from": [{"podSelector": {"matchLabels": {"twohead-client": "true"}}}], "ports": [{"protocol": "TCP", "port": 8100}]}
    assert run_command(serving_parser(), ("render", "grafana", "--version", "7")) == 2
    assert "--version 7: says nothing about grafana" in capsys.readouterr().err


@pytest.mark.parametrize("storage", [".twohead", "/data", "file:///data"])
def test_a_folder_that_no_other_pod_has_is_no_storage(storage: str) -> None:
    with pytest.raises(SettingsError, match=r"cluster\.storage is .*a folder that a pod has for itself"):
        cluster_spec(ClusterSettings(storage=storage))


@pytest.mark.parametrize(
    ("kubernetes", "expected"),
    [
        (
            {"head_store": "redis"},
            "cluster.redis_address is null, but must be given where head_store is redis, and nowhere else",
        ),
        ({"redis_address": "a:1"}, "must be given where head_store is redis, and nowhere else"),
        ({"groups": {}}, "cluster.kubernetes.groups"),
        ({"groups": {"Trials": {}}}, "cluster.kubernetes.groups.Trials"),
        ({"groups": {"trials": {"fewest": 5, "most": 2}}}, "cluster.kubernetes.groups.trials.most is 2, but must be at least fewest (5)"),
        ({"groups": {"trials": {"gpus": 1}}}, "cluster.kubernetes.groups.trials.gpus is not a setting"),
        ({"namespace": "A b"}, "cluster.kubernetes.namespace"),
    ],
)
def test_wrong_settings_are_named(kubernetes: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError) as raised:
        make(**kubernetes)
    assert expected in raised.value.message.replace("must be different: ", "")


def test_the_image_copies_what_is_there() -> None:
    recipe = dockerfile(make(image="registry/twohead:1"))
    copied = [word for line in recipe.splitlines() if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert "registry/twohead:1" in recipe
    assert f"WORKDIR {FOLDER}" in recipe
    assert recipe.rstrip().endswith("USER ray")


def test_the_command_prints_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cluster.__main__ import main

    settings = tmp_path / "settings.yaml"
    settings.write_text("cluster: {storage: s3://bucket/x, kubernetes: {image: mine}}\n", encoding="utf-8")
    assert main(["render", "raycluster", "--config", str(settings)]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["kind"] == "RayCluster"
    assert main(["render", "rayjob", "--config", str(settings), "--", "python", "-m", "training", "tune"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["spec"]["entrypoint"] == "python -m training tune"
    assert main(["render", "dockerfile", "--config", str(settings)]) == 0
    assert "--tag mine" in capsys.readouterr().out
    assert main(["render", "rayjob", "--config", str(settings)]) == 2
    assert "there is no command" in capsys.readouterr().err
