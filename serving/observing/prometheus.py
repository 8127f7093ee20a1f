"""A configuration with which Prometheus reads a server's `/metrics`. It does not know what stands there.

Source: https://prometheus.io/docs/prometheus/latest/configuration/configuration/#scrape_config
"""

import yaml

from serving.settings import ServingSettings

# Ray's exporters hear of figures every ten seconds; asking more often shows the same.
_INTERVAL = "10s"


def write_scrape_config(settings: ServingSettings) -> str:
    """Return the configuration as YAML: one job, which asks the server's door for the figures of all replicas."""
    address = settings.url.removeprefix("http://")
    job = {
        "job_name": "twohead",
        "scrape_interval": _INTERVAL,
        "metrics_path": "/metrics",
        "static_configs": [{"targets": [address]}],
    }
    return yaml.safe_dump({"scrape_configs": [job]}, sort_keys=False)
