"""What Grafana and Prometheus get for a cluster's machines."""

import json
import re

import pytest
import yaml

from cluster.__main__ import main

# Told by an exporter on a machine without GPU, and asked of a real one by the tests of `cluster up`.
TOLD = {
    "ray_actors", "ray_cluster_active_nodes", "ray_finished_jobs_total", "ray_node_cpu_utilization", "ray_node_disk_utilization_percentage",
    "ray_node_mem_total", "ray_node_mem_used", "ray_node_network_receive_speed", "ray_node_network_send_speed", "ray_object_store_memory",
    "ray_resources", "ray_running_jobs",
}  # fmt: skip
# Told where there is one of them, or was; of GPUs by ray.dashboard.modules.reporter.reporter_agent.
TOLD_OF_SOME = {"ray_node_gpus_utilization", "ray_node_gram_used", "ray_placement_groups"}


def test_the_dashboard_asks_for_what_exporters_tell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "grafana"]) == 0
    panels = json.loads(capsys.readouterr().out)["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert {name for query in queries for name in re.findall(r"\bray_\w+", query)} == TOLD | TOLD_OF_SOME
    assert all(query.count("(") == query.count(")") for query in queries)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len({panel["id"] for panel in panels}) == len(panels)


def test_prometheus_reads_rays_own_list_of_exporters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "prometheus"]) == 0
    (job,) = yaml.safe_load(capsys.readouterr().out)["scrape_configs"]
    assert job["file_sd_configs"] == [{"files": ["/tmp/ray/prom_metrics_service_discovery.json"]}]


def test_prometheus_asks_kubernetes_where_the_cluster_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "prometheus", "--set", "cluster.address=http://head:8265", "--set", "cluster.kubernetes.namespace=ml"]) == 0
    (job,) = yaml.safe_load(capsys.readouterr().out)["scrape_configs"]
    assert job["kubernetes_sd_configs"] == [{"role": "pod", "namespaces": {"names": ["ml"]}}]
    assert [rule["action"] for rule in job["relabel_configs"]] == ["keep", "keep"]
