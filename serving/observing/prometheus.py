"""A configuration with which Prometheus reads a server's `/metrics`. It does not know what stands there.

Source: https://prometheus.io/docs/prometheus/latest/configuration/configuration/#scrape_config
"""

from typing import Any

import yaml

from serving.settings import ServingSettings

# Ray's exporters hear of figures every ten seconds; asking more often shows the same.
_INTERVAL = "10s"
# Prometheus looks for it beside its configuration, and takes it without the end of its line.
_KEY_FILE = "twohead.key"
_KEY_NOTE = f"# The key lies in a file beside this one: python -m serving keys create --name prometheus --scope read > {_KEY_FILE}\n"


def write_scrape_config(settings: ServingSettings) -> str:
    """Return the configuration as YAML: one job, which asks the server's door for the figures of all replicas."""
    job: dict[str, Any] = {
        "job_name": "twohead",
        "scrape_interval": _INTERVAL,
        "metrics_path": "/metrics",
        "static_configs": [{"targets": [settings.url_from_here.removeprefix("http://")]}],
    }
    if settings.require_keys:
        job["authorization"] = {"credentials_file": _KEY_FILE}
    note = _KEY_NOTE if settings.require_keys else ""
    return note + yaml.safe_dump({"scrape_configs": [job]}, sort_keys=False)
