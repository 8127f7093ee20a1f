"""A working folder with settings, and the command line in it."""

import http.client
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.dashboard import PATIENCE_S, ask
from cluster.facts import Facts, read_facts
from cluster.session import applied_to_ray, client_environment
from cluster.settings import ClusterSettings

SOURCE = Path(__file__).parents[1]
SMALL = "cluster: {num_cpus: 2, object_store_bytes: 100000000, dashboard_port: %d}"


@dataclass
class Place:
    """A working folder with settings, and the command line in it."""

    folder: Path

    def run(self, *words: str, module: str = "cluster") -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TWOHEAD_"))}
        command = [sys.executable, "-W", "default", "-m", module, *words]
        environment |= {"PYTHONPATH": str(SOURCE), "RAY_worker_niceness": "0"}
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300, check=False)

    @property
    def settings(self) -> ClusterSettings:
        return ClusterSettings(storage=str(self.folder / ".twohead"))

    def facts(self) -> Facts:
        facts = read_facts(self.settings)
        assert facts
        return facts


def request(facts: Facts, method: str, path: str, body: str = "", **headers: str) -> int:
    connection = http.client.HTTPConnection(urlsplit(facts.dashboard_url).netloc, timeout=PATIENCE_S)
    with closing(connection):
        connection.request(method, path, body, {"Content-Type": "application/json"} | headers)
        return connection.getresponse().status


def told_with_token(facts: Facts, path: str) -> Any:
    """Return the JSON that the dashboard answers to whoever has the token, without a command of its own for it."""
    with applied_to_ray(client_environment(facts.session.token_path)):
        return ask(facts.dashboard_url, path, PATIENCE_S)
