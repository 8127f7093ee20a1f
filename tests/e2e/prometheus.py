"""Debian's Prometheus, with the configurations that the commands print, and what it answers to a dashboard's queries."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from cluster.session import free_port
from tests.missing import is_missing
from tests.ports import port_shift
from tests.waiting import until

# What Grafana takes where a source is asked every ten seconds and drawn as finely: four times as long.
RATE_INTERVAL = "40s"


class Prometheus:
    """One that runs.

    Args:
        port: It listens there, on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self._url}/-/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Return the series that it has now for a query."""
        told = httpx.get(f"{self._url}/api/v1/query", params={"query": query}, trust_env=False, timeout=30.0).json()
        assert told["status"] == "success", (query, told)
        found: list[dict[str, Any]] = told["data"]["result"]
        return found

    def silent(self, dashboards: Sequence[str]) -> set[str]:
        """Return the titles of panels of which a query has no series."""
        panels = [panel for dashboard in dashboards for panel in json.loads(dashboard)["panels"]]
        queries = [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]
        return {title for title, query in queries if not self.ask(query.replace("$__rate_interval", RATE_INTERVAL))}


@contextmanager
def prometheus(folder: Path, *configurations: str) -> Iterator[Prometheus]:
    """Run one that asks what the configurations say, for the length of the block.

    Args:
        folder: For what it writes.
        configurations: As YAML; their jobs are put together.
    """
    if not (program := shutil.which("prometheus")):
        is_missing("there is no prometheus to read what is rendered for one; install Debian's package `prometheus`")
    jobs = [job for text in configurations for job in yaml.safe_load(text)["scrape_configs"]]
    (folder / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": jobs}), encoding="utf-8")
    port = free_port(18_900 + port_shift())
    words = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    process = subprocess.Popen([*words, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"])
    try:
        found = Prometheus(port)
        until("Prometheus is ready", found.is_ready)
        yield found
    finally:
        process.terminate()
        process.wait()
