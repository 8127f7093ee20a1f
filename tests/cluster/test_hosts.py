"""Three hosts over SSH: up, closed to strangers, a search on all of them, its best served from each, hosts and head lost, down.

The tests build on each other: each leaves the cluster to the next.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.conftest import Cluster, started
from tests.cluster.hosts import NETWORK, Host
from tests.cluster.programs import ASK, CALLS, STRANGER
from tests.cluster.traffic import RATE, Traffic, are_in, door, lose_the_head, nodes, unfinished
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2_400)]


# No trial and no replica runs on the head, as is wise where it may be lost: so it is the workers that are lost and take over.
HEAD = f"""\
head_start_ray_commands:
  - ray stop
  - >-
    ray start --head --num-cpus=0 --node-ip-address={NETWORK}.1 --port=6379 --dashboard-host=0.0.0.0
    --autoscaling-config=~/ray_bootstrap_config.yaml
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with started(["one", "two", "three"], "head_store: embedded", HEAD) as found:
        yield found


def _trained_by(cluster: Cluster) -> set[str]:
    return {report["report"]["hostname"] for report in cluster.reports("ads")}


def _require_closed(cluster: Cluster, name: str, told: dict[str, Any]) -> int:
    """Return how many of the ports keep strangers out; all do that can do more than tell figures."""
    closed = 0
    for port, said in told.items():
        if "grpc" in said:
            assert "OK" not in said["grpc"].values(), (name, port, said)
            assert "UNAUTHENTICATED" in said["grpc"].values(), (name, port, said)
        elif said["http"]["/metrics"] == 200:
            # Figures for Prometheus, which has no token; nothing else can be asked there.
            assert {said["http"][path] for path in CALLS} == {405}, (name, port, said)
            continue
        else:
            wanted = 403 if port.endswith("liar") else 401
            assert {said["http"][path] for path in (*CALLS, "/api/v0/nodes")} == {wanted}, (name, port, said)
        closed += 1
    return closed


def test_every_host_is_in_and_the_token_is_its_owners(cluster: Cluster) -> None:
    found = json.loads(cluster.must("cluster", "status", "--json"))
    assert found["nodes"] == 3
    for host in cluster.nodes.values():
        assert host.run("stat", "-c", "%a", "/root/.ray", "/root/.ray/auth_token").stdout.split() == ["700", "600"]
    assert cluster.laptop.run("stat", "-c", "%a", "/root/.twohead/clusters/lab", "/root/.twohead/clusters/lab/token").stdout.split() == [
        *("700", "600")
    ]
    assert "cluster is up already" in cluster.must("cluster", "up")


def _open_ports(host: Host) -> set[str]:
    listening = [line.split()[3] for line in host.run("ss", "-tlnH").stdout.splitlines()]
    return {address.rpartition(":")[2] for address in listening if "127.0.0.1" not in address} - {"22"}


def test_no_port_lets_a_stranger_in(cluster: Cluster) -> None:
    for name, host in cluster.nodes.items():
        ports = _open_ports(host)
        # At least the two of a raylet, two of its agent's, the one for environments; each is asked without a token and with a wrong one.
        assert _require_closed(cluster, name, cluster.python(STRANGER, host.address, *sorted(ports))) >= 5 * 2


def test_a_folder_that_the_hosts_do_not_share_is_found_before_a_trial_begins(cluster: Cluster) -> None:
    done = cluster.run(
        "cluster", "submit", "--set", "cluster.storage=/root/alone", "--", "python", "-m", "training", "tune", "--name", "ads"
    )
    assert done.returncode == 1
    assert "error: storage /root/alone: 2 of 3 nodes do not share it (" in done.stdout
    for name in ("two", "three"):
        assert f"{name} ({cluster.nodes[name].address}): /root/alone/checks/" in done.stdout
    assert not any(
        (host.disk / "root/alone/checks").exists() and list((host.disk / "root/alone/checks").iterdir()) for host in cluster.nodes.values()
    )


def test_a_host_lost_while_it_trains_costs_its_trial_an_epoch(cluster: Cluster) -> None:
    words = ("python", "-m", "training", "tune", "--name", "ads")
    job = cluster.must("cluster", "submit", "--no-wait", "--", *words).strip()
    until("a worker trains", lambda: _trained_by(cluster) != set(), 900)
    lost = min(_trained_by(cluster))
    cluster.nodes[lost].lose()
    followed = cluster.run("cluster", "logs", "-f", job)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    events = cluster.events("ads")
    ends = [(event["trial"]["name"], event["state"]) for event in events if event["kind"] == "ended"]
    assert sorted(ends) == [(f"trial-{number}", "finished") for number in range(4)]
    reports = cluster.reports("ads")
    assert _trained_by(cluster) == {"two", "three"}
    for name in (f"trial-{number}" for number in range(4)):
        epochs = [report["report"]["epoch"] for report in reports if report["trial"]["name"] == name]
        assert sorted(set(epochs)) == list(range(1, max(epochs) + 1))
        assert len(epochs) <= len(set(epochs)) + 1

    # The search may end before the host is missed, which would then be taken for one that is back.
    until("the host is missed", lambda: nodes(cluster) == 2, 120)
    cluster.nodes[lost].start()
    until("the host is taken in again", lambda: are_in(cluster, 3), 600)


def test_the_best_is_served_from_every_host(cluster: Cluster) -> None:
    assert "production → version 1" in cluster.must("training", "publish", "--promote")
    before = {name: _open_ports(host) for name, host in cluster.nodes.items()}
    cluster.must("serving", "deploy")
    # Serve's controller, its proxies and each replica have opened ports too.
    for name, host in cluster.nodes.items():
        ports = _open_ports(host) - before[name]
        assert _require_closed(cluster, name, cluster.python(STRANGER, host.address, *sorted(ports))) >= 2
    for url in cluster.open_doors():
        assert cluster.python(ASK, url) == {"version": 1, "heads": ["category", "education"]}


def test_a_host_lost_while_it_serves_costs_no_answer(cluster: Cluster) -> None:
    with Traffic(cluster, RATE, door(cluster, "two"), door(cluster, "three")) as traffic:
        cluster.nodes["two"].lose()
        noticed_s = until("the host is missed", lambda: nodes(cluster) == 2, 120)
        told = traffic.end()
    print(f"host lost: missed after {noticed_s:.0f} s, {told}")
    assert told["lost"] == []
    assert told["asked"] > RATE * 10
    cluster.nodes["two"].start()
    until("three nodes", lambda: are_in(cluster, 3), 600)


def test_a_host_drained_and_then_lost_costs_no_answer(cluster: Cluster) -> None:
    cluster.open_door("two")
    # What is on its way keeps the drained host's proxy there, and a replica elsewhere that tells it something may not wait for an answer.
    with unfinished(cluster.nodes["three"]), Traffic(cluster, RATE, door(cluster, "two"), door(cluster, "three")) as traffic:
        # It goes when all has moved; so long, as Serve stops what still runs there half a minute before.
        cluster.must("cluster", "drain", "--within", "600", cluster.nodes["three"].address)
        cluster.nodes["three"].lose()
        until("the host is missed", lambda: nodes(cluster) == 2, 120)
        told = traffic.end()
    print(f"host drained and lost: {told}")
    assert told["lost"] == []
    cluster.nodes["three"].start()
    until("three nodes", lambda: are_in(cluster, 3), 600)
    cluster.open_door("three")


def test_the_head_lost_for_a_while_costs_no_answer(cluster: Cluster) -> None:
    # A host that has just come back may have no replica, and nobody who answers for one.
    told = lose_the_head(cluster, "two", "three")
    assert told["lost"] == []
    assert told["asked"] > RATE * 20
    _require_closed(cluster, "one", cluster.python(STRANGER, cluster.nodes["one"].address, "8265"))


def test_down_leaves_nothing(cluster: Cluster) -> None:
    cluster.must("cluster", "down")
    for host in cluster.nodes.values():
        assert host.run("pgrep", "-f", "raylet|gcs_server|ray::").stdout == ""
        assert host.run("ls", "/root/.ray").stdout == ""
        # What the head kept for when it is lost; the next cluster of that name begins with nothing.
        assert "head-" not in host.run("ls", "/root/.twohead").stdout
    assert not (cluster.laptop.disk / "root/.twohead/clusters/lab").exists()
    assert cluster.run("cluster", "status").returncode == 2
