"""A tiny checkpoint behind real Ray Serve: equal answers, batches, scaling, swaps."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import httpx
import psutil
import pytest

from cluster.processes import name_of
from cluster.session import free_port
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from serving.app import CODE_ROOT
from serving.client import Client
from serving.errors import AnswerError
from serving.keys.key import Key
from serving.keys.store import KeyStore
from serving.loading.outcomes import ClosedLoop, Load, Run
from serving.loading.sending import send
from serving.loading.texts import Bodies
from serving.rollout import Rollout
from serving.settings import CanarySettings, ServingSettings, ShadowSettings
from tests.ports import port_shift
from tests.waiting import until
from training.registry import Registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2_400)]

TEXTS = ["nurse", "the sales driver and the teacher", "x " * 200, "school", "9 a b c d", "master " * 20]
PATIENCE_S = 400.0
# None that the system hands to connections: HAProxy could not have it.
FIRST_PORT = 18_765 + port_shift()


@dataclass
class Place:
    """A private Ray, a registry, and what is served there."""

    cluster: ClusterSettings
    settings: ServingSettings
    registry: Registry
    rollout: Rollout
    dashboard_url: str


def send_many(url: str, count: int, concurrency: int) -> Run:
    run = Run("load", Load(url, ClosedLoop(concurrency), Bodies(TEXTS), count=count, is_watched=False))
    asyncio.run(send(run))
    return run


def told(place: Place, series: str) -> float:
    """Sum a series of the metrics."""
    page = httpx.get(f"{place.settings.url}/metrics", trust_env=False, timeout=30.0).text
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(f"twohead_{series}{{"))


def replicas_told_of(place: Place) -> set[str]:
    """Name the replicas whose texts the metrics count."""
    page = httpx.get(f"{place.settings.url}/metrics", trust_env=False, timeout=30.0).text
    return {
        found for line in page.splitlines() if line.startswith("twohead_texts_total{") for found in re.findall(r'replica="([^"]+)"', line)
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    from cluster.connection import connect

    storage = str(tmp_path_factory.mktemp("registry"))
    cluster = ClusterSettings(storage=storage, num_cpus=4, num_gpus=0, object_store_bytes=100_000_000)
    settings = ServingSettings(
        port=free_port(FIRST_PORT),
        max_replicas=1,
        follow_s=0.5,
        resources_per_replica={"cpu": 0.5},
        keep_calibration=False,
        log_format="json",
        ready_timeout_s=600.0,
    )
    with connect(cluster) as connection:
        rollout = Rollout.at(connection.dashboard_url, cluster, print)
        yield Place(cluster, settings, Registry(Storage(storage)), rollout, connection.dashboard_url)
        rollout.stop_at_last()


@pytest.fixture
def served(place: Place, make_checkpoint: Callable[[int], Path]) -> Place:
    """The place with one replica that answers with what `production` points to."""
    if not place.rollout.is_deployed():
        place.registry.promote(place.registry.publish(make_checkpoint(0)))
        place.rollout.deploy(place.settings, None)
    return place


@pytest.fixture
def under_load(served: Place) -> Iterator[list[Run]]:
    """Requests all the while, none of which may fail."""
    stop = threading.Event()
    runs: list[Run] = []

    def repeat() -> None:
        while not stop.is_set():
            runs.append(send_many(served.settings.url, count=40, concurrency=8))

    sender = threading.Thread(target=repeat)
    sender.start()
    yield runs
    stop.set()
    sender.join()
    assert sum(len(run.answered) for run in runs) == 40 * len(runs) > 0
    assert not [run.errors for run in runs if run.errors]


def test_answers_equal_the_saved_model_alone_and_in_a_batch(served: Place, tmp_path: Path) -> None:
    import torch

    from training.checkpoint import load_model, load_tokenizer
    from training.manifest import read_manifest

    with Client(served.settings.url) as client:
        together = client.predict(TEXTS)
        alone = [client.predict([text]) for text in TEXTS]
    folder = served.registry.fetch(together.version, tmp_path / "version")
    tokenizer, model = load_tokenizer(folder, read_manifest(folder)), load_model(folder)
    for text, batched, single in zip(TEXTS, together.answers, alone, strict=True):
        ids = tokenizer.encode([text])[0].tolist()
        with torch.inference_mode():
            logits = model(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)).logits
        for head, values in logits.items():
            expected = torch.softmax(values[0], dim=-1).tolist()
            assert list(batched.heads[head].scores.values()) == pytest.approx(expected, abs=1e-4)
            assert list(single.answers[0].heads[head].scores.values()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("served")
def test_replicas_and_serves_own_processes_listen_to_this_machine_alone() -> None:
    listening = set()

    def are_there() -> bool:
        for one in psutil.Process().children(recursive=True):
            # HAProxy's process of before goes when its follower has read the routes.
            with suppress(psutil.NoSuchProcess):
                if name_of(one).startswith(("ray::Serve", "haproxy")):
                    ports = [port for port in one.net_connections("tcp") if port.status == psutil.CONN_LISTEN]
                    listening.update((name_of(one), port.laddr.ip) for port in ports)
        return {name[:15] for name, _ in listening} >= {"ray::ServeRepli", "haproxy"}

    until("both listen", are_there)
    assert {address for _, address in listening} <= {"127.0.0.1", "::ffff:127.0.0.1"}, listening


def test_surface_behind_the_proxy(served: Place) -> None:
    with httpx.Client(base_url=served.settings.url, trust_env=False, timeout=30.0) as client:
        assert client.get("/health/live").json() == client.get("/health/ready").json() == {"status": "ok"}
        facts = client.get("/v1/version").json()
        assert [head["name"] for head in facts["heads"]] == ["category", "education"]
        assert (facts["name"], facts["text_template"], facts["last_failure"]) == ("production", "{title}: {text}", None)
        assert "<code>/v1/predict</code>" in client.get("/docs").text
        for response, status in ((client.get("/nope"), 404), (client.get("/v1/predict"), 405), (client.post("/v1/predict", json={}), 422)):
            assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
            # Serve's proxy sends the id, and only once.
            assert response.headers.get_list("x-request-id") == [response.json()["request_id"]]


def test_many_at_once_share_batches(served: Place) -> None:
    run = send_many(served.settings.url, count=200, concurrency=200)
    assert (len(run.answered), dict(run.errors)) == (200, {})
    assert run.mean_batch_texts > 1.0
    print(f"200 at once: mean batch {run.mean_batch_texts:.2f}, p99 {run.latency_ms(0.99):.0f} ms")


def test_whoever_leaves_takes_their_texts_along(served: Place) -> None:
    """Through HAProxy, which tells replicas not to ask Serve about it."""
    body = json.dumps({"texts": ["master " * 60] * served.settings.max_texts}).encode()
    head = f"POST /v1/predict HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"

    def somebody_is_missed() -> bool:
        asking = [socket.create_connection((served.settings.host, served.settings.port)) for _ in range(20)]
        for connection in asking:
            connection.sendall(head.encode() + body)
        time.sleep(0.1)  # the front keeps those for itself who leave before it handed them on
        for connection in asking:
            connection.close()
        return told(served, "cancelled_total") > 0

    until("somebody is missed", somebody_is_missed, PATIENCE_S)
    assert len(send_many(served.settings.url, count=8, concurrency=2).answered) == 8


def test_metrics_are_those_of_all_replicas(served: Place) -> None:
    with Client(served.settings.url) as client:
        client.predict(["nurse"] * 3)

    # Ray's exporter hears of figures some seconds after they were made.
    def are_told() -> bool:
        # Each is a look of its own, and an exporter that is busy just then is left out of it.
        least = {"texts_total": 3, "answers_total": 6, "queue_seconds_count": 1, "batch_tokens_count": 1}
        found = {series: told(served, series) for series in [*least, "batch_tokens_bucket"]}
        return found["batch_tokens_bucket"] > found["batch_tokens_count"] and all(found[series] >= least[series] for series in least)

    until("the exporter tells of all of them", are_told, PATIENCE_S)


def test_log_lines_are_objects_and_tell_the_version(served: Place) -> None:
    import ray

    with Client(served.settings.url) as client:
        version = client.predict(["the secret nurse"]).version
    folder = Path(ray._private.worker.global_worker.node.get_logs_dir_path()) / "serve"
    written = "".join(file.read_text(encoding="utf-8") for file in folder.glob("replica_*.log"))
    lines = [json.loads(line) for line in written.splitlines()]
    told = [
        (line["levelname"], line["version"], bool(line["replica"])) for line in lines if line["message"] == f"version {version} answers"
    ]
    assert told == [("INFO", version, True)]
    assert "secret" not in written


def test_scaling_up_and_down_loses_nothing(served: Place, under_load: list[Run]) -> None:
    before = replicas_told_of(served)
    served.rollout.scale(2, 2)
    until("the second replica runs", lambda: served.rollout.status().running == 2, PATIENCE_S)
    # Whichever answers, tells of both.
    until("the metrics tell of the second one too", lambda: len(replicas_told_of(served)) > max(len(before), 1), PATIENCE_S)
    served.rollout.scale(1, 1)
    until("the second replica goes", lambda: served.rollout.status().replicas == {"RUNNING": 1}, PATIENCE_S)
    sent = len(under_load)
    until("requests go on after scaling", lambda: len(under_load) > sent + 1)


def test_a_promoted_version_is_followed_without_a_pause(
    served: Place, under_load: list[Run], make_checkpoint: Callable[[int], Path]
) -> None:
    with Client(served.settings.url) as client:
        before = client.predict(TEXTS[:1])
        version = served.registry.publish(make_checkpoint(1))
        sent = len(under_load)
        served.registry.promote(version)
        until("the new version answers", lambda: client.version().version == version, PATIENCE_S)
        # Some began before it took over, and some after.
        until("requests go on", lambda: len(under_load) > sent + 2)
        after = client.predict(TEXTS[:1])
    assert (before.version, after.version) == (version - 1, version)
    assert before.answers != after.answers


def test_a_broken_version_never_answers(served: Place, under_load: list[Run], make_checkpoint: Callable[[int], Path]) -> None:
    with Client(served.settings.url) as client:
        good = client.version().version
        broken = served.registry.publish(make_checkpoint(2))
        weights = Path(served.registry.place(broken)) / "weights.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.unlink()
        weights.write_bytes(content)
        served.registry.promote(broken)
        until("the failure is told", lambda: client.version().last_failure is not None, PATIENCE_S)
        facts = client.version()
        assert facts.last_failure is not None
        assert (facts.version, facts.last_failure.version) == (good, broken)
        assert "has SHA-256" in facts.last_failure.reason
        assert client.predict(TEXTS).version == good
        served.registry.promote(good)


def marked_processes(mark: str) -> list[int]:
    """Find the processes that inherited a variable."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"TEST_MARK={mark}".encode() in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
        except OSError:
            continue
    return found


def test_a_candidate_that_agrees_takes_over_and_one_that_does_not_goes(
    served: Place, make_checkpoint: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from serving.candidates import command

    @contextmanager
    def reach(_: ClusterSettings) -> Iterator[str]:
        yield served.dashboard_url

    # A cluster of the test's own has written down nowhere where it is.
    monkeypatch.setattr(command, "reach", reach)
    url, name = served.settings.url, served.settings.name

    def conclude(when: str, **settings: object) -> int:
        tried = served.settings.model_copy(update=settings)
        served.rollout.deploy(tried, None)
        with Client(url) as client:
            until("the candidate is loaded", lambda: (told := client.version().candidate) is not None and told.ready, PATIENCE_S)

            def are_compared() -> bool:
                # By chance half of a canary's, and none that would have the candidate late.
                send_many(url, count=60, concurrency=4)
                told = client.version().candidate
                return told is not None and min(told.compared.values(), default=0) >= 20

            until("20 are compared", are_compared, PATIENCE_S)
        return command.conclude(served.cluster, tried, when, 20, PATIENCE_S / 60)

    current = served.registry.resolve(name)
    twin = served.registry.publish(served.registry.fetch(current, make_checkpoint(7).parent / "twin"))
    assert conclude("agreement>=0.99,errors=0", shadow=ShadowSettings(version=twin)) == 0
    assert served.registry.resolve(name) == twin
    assert f"production points to version {twin}" in capsys.readouterr().out

    other = served.registry.publish(make_checkpoint(8))
    assert conclude("agreement>=1", canary=CanarySettings(version=other, fraction=0.5)) == 1
    assert served.registry.resolve(name) == twin
    assert f"version {twin} stays" in capsys.readouterr().out
    with Client(url) as client:
        until("the trial ends", lambda: (told := client.version()).candidate is None and told.version == twin, PATIENCE_S)


def test_with_keys_a_replica_answers_who_has_one(served: Place) -> None:
    store = KeyStore(Storage(served.cluster.storage))
    key, held = Key.make("test", frozenset({"predict"}), None, None)
    store.add(key)
    served.rollout.deploy(served.settings.model_copy(update={"require_keys": True}), None)
    url = served.settings.url
    with Client(url, retries=0) as stranger, Client(url, key=held) as client:
        with pytest.raises(AnswerError, match="401 unauthorized"):
            stranger.predict(TEXTS)
        assert len(client.predict(TEXTS).answers) == len(TEXTS)
        with pytest.raises(AnswerError, match="403 forbidden"):
            client.version()
        store.revoke(key.id)

        def is_out() -> bool:
            try:
                client.predict(TEXTS)
            except AnswerError as error:
                return error.status == 401
            return False

        until("a revoked key opens no more", is_out)


def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path, tiny_checkpoint: Path) -> None:
    registry = Registry(Storage(str(tmp_path / "storage")))
    registry.promote(registry.publish(tiny_checkpoint))
    overrides = {"cluster.storage": tmp_path / "storage", "cluster.num_cpus": 2, "serving.port": free_port(FIRST_PORT)}
    overrides |= {"serving.ready_timeout_s": 600}
    words = [word for key, value in overrides.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "serving", "run", "--ask", "the nurse", *words]
    with subprocess.Popen(
        command, cwd=CODE_ROOT, env=os.environ | {"TEST_MARK": tmp_path.name}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        lines = list(takewhile(lambda line: line != "Ctrl-C ends it\n", process.stdout))
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        printed = "".join(lines)
        assert process.wait(PATIENCE_S) == 0, printed + rest
    answer = json.loads(printed[printed.index("{") : printed.rindex("\n}") + 2])
    assert (answer["version"], list(answer["answers"][0]["heads"])) == (1, ["category", "education"])
    assert any(line.startswith(f"curl http://127.0.0.1:{overrides['serving.port']}/v1/predict ") for line in lines)
    assert marked_processes(tmp_path.name) == []
