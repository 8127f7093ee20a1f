"""Dashboards for Grafana: how one is made of panels, and the one of a cluster's machines and work.

The figures of the latter are Ray's own, which every node's exporter tells; what is served has a dashboard of its own. A data source is
chosen in Grafana. It does not know what the work is.

Sources: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/ for the model; the names are
those that an exporter of Ray 2.60 tells.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Panel = dict[str, Any]

_SCHEMA_VERSION = 39
_COLUMNS = 2
_WIDTH, _HEIGHT = 12, 8
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_RATIO = "percentunit"


def dashboard(uid: str, title: str, panels: Sequence[Panel]) -> str:
    """Return a dashboard of panels, two in a row, as JSON."""
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    content = {
        "uid": uid,
        "title": title,
        "tags": ["twohead"],
        "schemaVersion": _SCHEMA_VERSION,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source]},
        "panels": [_placed(panel, position) for position, panel in enumerate(panels)],
    }
    return json.dumps(content, indent=2)


def panel(title: str, queries: Mapping[str, str], unit: str = "short") -> Panel:
    """Make a panel.

    Args:
        title: Above it.
        queries: What the legend says → what Prometheus is asked.
        unit: Grafana's name of it.
    """
    return {
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": _SOURCE, "expr": query, "legendFormat": label}
            for number, (label, query) in enumerate(queries.items())
        ],
    }


def cluster_dashboard() -> str:
    """Return the dashboard of a cluster's machines and work, as JSON."""
    by_state = {"{{Name}} {{State}}": 'sum by (Name, State) (ray_resources{Name=~"CPU|GPU"})'}
    memory = {"{{ip}}": "ray_node_mem_used / ray_node_mem_total"}
    store = {"{{NodeAddress}}, {{Location}}": "sum by (NodeAddress, Location) (ray_object_store_memory)"}
    placement = {"{{State}}": "sum by (State) (ray_placement_groups)"}
    panels = [
        panel("Nodes", {"alive": "max (ray_cluster_active_nodes)"}),
        panel("CPUs and GPUs, in use and free", by_state),
        panel("Jobs", {"running": "sum (ray_running_jobs)", "ended in the last hour": "sum (increase(ray_finished_jobs_total[1h]))"}),
        panel("Actors (trials, replicas, jobs) by state", {"{{Name}} {{State}}": "sum by (Name, State) (ray_actors) > 0"}),
        panel("Waiting for room: actors and placement groups", placement),
        panel("CPUs in use, by node", {"{{ip}}": "ray_node_cpu_utilization / 100"}, _RATIO),
        panel("Memory in use, by node", memory, _RATIO),
        panel("GPUs in use, by node", {"{{ip}}, GPU {{GpuIndex}}": "ray_node_gpus_utilization / 100"}, _RATIO),
        panel("Memory of GPUs, by node", {"{{ip}}, GPU {{GpuIndex}}": "ray_node_gram_used * 1e6"}, "bytes"),
        panel("Object store, by node", store, "bytes"),
        panel("Disk in use, by node", {"{{ip}}": "ray_node_disk_utilization_percentage / 100"}, _RATIO),
        panel("Network, by node", {"{{ip}}, in": "ray_node_network_receive_speed", "{{ip}}, out": "ray_node_network_send_speed"}, "Bps"),
    ]
    return dashboard("twohead-cluster", "twohead: machines and work", panels)


def _placed(panel: Panel, position: int) -> Panel:
    row, column = divmod(position, _COLUMNS)
    return panel | {"id": position + 1, "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}}
