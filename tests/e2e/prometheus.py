"""Debian's Prometheus, with the configurations that the commands print, and what it answers to a dashboard's queries."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
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
        return self._found("query", query, {})

    def silent(self, dashboards: Sequence[str], since: float) -> set[str]:
        """Return the titles of panels that Grafana would draw without a line for one of their queries.

        Args:
            dashboards: As JSON.
            since: Unix time at which what is drawn begins. A range is asked for, as Grafana asks, and not one moment: between two
                answers of a busy target no series may have the two values that a rate takes.
        """
        drawn = {"start": f"{since:.3f}", "end": f"{time.time():.3f}", "step": "1"}
        panels = [panel for dashboard in dashboards for panel in json.loads(dashboard)["panels"]]
        queries = [
            (panel["title"], target["expr"].replace("$__rate_interval", RATE_INTERVAL)) for panel in panels for target in panel["targets"]
        ]
        return {title for title, query in queries if not self._found("query_range", query, drawn)}

    def _found(self, how: str, query: str, moments: Mapping[str, str]) -> list[dict[str, Any]]:
        asked = {"query": query, **moments}
        told = httpx.get(f"{self._url}/api/v1/{how}", params=asked, trust_env=False, timeout=30.0).json()
        assert told["status"] == "success", (query, told)
        found: list[dict[str, Any]] = told["data"]["result"]
        return found


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
