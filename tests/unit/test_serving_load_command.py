"""`python -m serving load` against a small HTTP server."""

import asyncio
import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cluster.console import run_command
from serving.__main__ import make_parser
from serving.loading import command
from serving.loading.arrivals import due_times
from serving.loading.outcomes import ClosedLoop, Load, OpenLoop, Outcome, Run
from serving.loading.sending import send
from serving.loading.texts import Bodies

ROOT = Path(__file__).resolve().parents[2]
METRICS = 'serve_deployment_replica_healthy{replica="abc"} 1.0\n'


class Server(ThreadingHTTPServer):
    """Answers as a twohead server; `reply` tells how by the request's number: a status, or 0 for no answer at all."""

    daemon_threads = True
    # Many connect at once.
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.reply: Any = lambda number: 200
        self.bodies: list[list[str]] = []
        self.lock = threading.Lock()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, METRICS)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(body["texts"])
        if not (status := self.server.reply(number)):
            self.close_connection = True
            return
        if (self.path, self.headers["content-type"]) != ("/v1/predict", "application/json"):
            status = 404
        # After Ctrl-C nobody reads the answer.
        with suppress(ConnectionError):
            self._send(status, "{}")

    def _send(self, status: int, content: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.send_header("server-timing", 'queue;dur=1.0, batch;desc="4", tokens;desc="80", version;desc="7"')
        self.end_headers()
        self.wfile.write(content.encode())


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def load(*words: object) -> int:
    return run_command(make_parser(), ["load", *map(str, words)])


def rows(printed: str) -> dict[str, str]:
    return dict(re.findall(r"^(\S.*?)  +(\S.*)$", printed, re.MULTILINE))


@pytest.mark.parametrize("pace", [OpenLoop(2000.0), ClosedLoop(3)])
def test_every_request_is_accounted_for(pace: OpenLoop | ClosedLoop, server: Server) -> None:
    server.reply = lambda number: {1: 503, 2: 500, 3: 0}.get(number % 10, 200)
    run = Run("load", Load(server.url, pace, Bodies(["a", "b"]), count=40))
    asyncio.run(send(run))
    assert dict(run.errors) == {"503": 4, "500": 4, "ServerDisconnectedError": 4}
    assert (len(run.answered), run.left, len(server.bodies), dict(run.versions)) == (28, 40, 40, {7: 28})
    assert (run.mean_batch_texts, run.mean_tokens) == (pytest.approx(4.0), pytest.approx(20.0))
    assert all(0 <= one.left_s - one.due_s < one.latency_s for one in run.outcomes)
    assert server.bodies.count(["a"]) == server.bodies.count(["b"]) == 20


def test_latency_counts_from_when_a_request_was_due(server: Server) -> None:
    # All are due at once; the loop is held up before the first one can leave.
    import time

    async def held_up() -> None:
        sending = asyncio.create_task(send(run))
        while not run.left:
            await asyncio.sleep(0)
        time.sleep(0.05)  # that is the point
        await sending

    run = Run("load", Load(server.url, OpenLoop(1e6), Bodies(["a"]), count=5))
    asyncio.run(held_up())
    assert max(one.left_s - one.due_s for one in run.outcomes) >= 0.05
    assert min(one.latency_s for one in run.outcomes if one.left_s - one.due_s >= 0.05) >= 0.05


def test_a_closed_loop_never_has_more_on_their_way(server: Server) -> None:
    here, most, lock = 0, 0, threading.Lock()
    full = threading.Barrier(5)

    def reply(number: int) -> int:
        nonlocal here, most
        with lock:
            here += 1
            most = max(most, here)
        full.wait(timeout=30)
        with lock:
            here -= 1
        return 200

    server.reply = reply
    run = Run("load", Load(server.url, ClosedLoop(5), Bodies(["a"]), count=20))
    asyncio.run(send(run))
    assert (len(run.answered), most) == (20, 5)


def test_what_is_printed_and_written(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.txt").write_text("secret one\nsecret two\n")
    files = ["--csv", tmp_path / "a.csv", "--svg", tmp_path / "a.svg", "--texts", tmp_path / "texts.txt"]
    assert load("--url", server.url + "/", "--rate", 500, "--count", 30, "--texts-per-request", 2, *files) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    told = rows(printed.out)
    assert (told["errors"], told["versions"], told["mean batch"]) == ("0", "7 (30)", "at most 4.00 texts")
    assert told["replicas"] == "1"
    assert told["generator"].endswith("ms behind its schedule")
    assert "latency counts from the time a request was due to leave" in printed.out
    assert server.bodies == [["secret one", "secret two"]] * 30
    written = (tmp_path / "a.csv").read_text()
    lines = list(csv.DictReader(written.splitlines()))
    assert {(line["load"], line["status"], line["texts"], line["batch"], line["version"]) for line in lines} == {
        ("500/s", "200", "2", "4", "7")
    }
    ElementTree.parse(tmp_path / "a.svg")
    assert "secret" not in written + (tmp_path / "a.svg").read_text() + printed.out


def test_errors_make_the_exit_code(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.reply = lambda number: 503 if number == 3 else 200
    assert load("--url", server.url, "--count", 10, "--concurrency", 1) == 1
    assert rows(capsys.readouterr().out)["errors"] == "1 HTTP 503"


def test_seconds_end_a_load_too(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert load("--url", server.url, "--rate", 200, "--seconds", 0.2, "--arrivals", "gamma", "--burstiness", 2, "--csv", os.devnull) == 0
    told = rows(capsys.readouterr().out)
    assert told["load"] == "200 requests/s, gamma with a coefficient of variation of 2"
    assert 1 <= len(server.bodies) < 200


def test_capacity_and_parts_of_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sent(run: Run) -> None:
        if isinstance(run.load.pace, OpenLoop):
            asyncio.run(send(run))
            return
        # The ramp sees a server of known capacity.
        monkeypatch.setattr(Run, "texts_per_s_between", lambda run, start, end: min(40.0, 20.0 * run.load.pace.concurrency))
        run.outcomes.append(Outcome(0.0, 0.0, 0.1, "200", 2))

    monkeypatch.setattr(command, "_send", sent)
    options = ["--find-capacity", "--at", "50,200", "--seconds", 0.5, "--texts-per-request", 2, "--svg", tmp_path / "a.svg"]
    assert load("--url", server.url, *options) == 0
    printed = capsys.readouterr().out
    assert "capacity: 40.0 texts/s, with 2 at once" in printed
    assert [line.split()[:2] for line in printed.splitlines() if "at once " in line] == [[str(callers), "at"] for callers in (1, 2, 4, 8)]
    header, *parts = (re.split("  +", line) for line in printed.splitlines() if re.match(r"at  |50 %|200 %", line))
    assert (header[:4], [part[0] for part in parts]) == (["at", "sent/s", "requests/s", "texts/s"], ["50 %", "200 %"])
    due = [[*itertools.takewhile(lambda due_s: due_s < 0.5, due_times(rate_per_s, 1.0, seed=7))] for rate_per_s in (10.0, 40.0)]
    assert len(due[0]) < len(due[1])
    assert len([texts for texts in server.bodies if len(texts) == 2]) == sum(map(len, due))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--arrivals", "gamma"], "error: --arrivals gamma and --burstiness belong together"),
        (["--burstiness", "2", "--rate", "3"], "error: --arrivals gamma and --burstiness belong together"),
        (["--arrivals", "gamma", "--burstiness", "2"], "error: --arrivals is of a schedule, but there is none\nhint:  --rate R"),
        (["--at", "50"], "error: --at is in percent of a capacity, but none is looked for"),
        (["--find-capacity", "--count", "5"], "error: --count does not go with --find-capacity"),
        (["--find-capacity", "--seconds", "5"], "error: --seconds is the time of each of --at, but there is none"),
        (["--csv", "no/such/a.csv"], "error: --csv is no/such/a.csv, but there is no folder no/such"),
        (["--svg", "no/such/a.svg"], "error: --svg is no/such/a.svg, but there is no folder no/such"),
        (["--texts", "missing.txt"], "error: missing.txt: cannot be read"),
        (["--url", "127.0.0.1:8000"], "error: --url is '127.0.0.1:8000', but must be like http://127.0.0.1:8000"),
        (["--url", "http://[::1"], "error: --url is 'http://[::1', but must be"),
        (["--url", "http://127.0.0.1:9", "--find-capacity"], "error: http://127.0.0.1:9: no request was answered ("),
    ],
)
def test_what_cannot_be_is_refused(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "STEP_S", 0.05)
    assert load(*words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rate", "0"], "argument --rate: is '0', but must be a number above 0"),
        (["--rate", "nan"], "argument --rate: is 'nan', but must be a number above 0"),
        (["--rate", "5", "--concurrency", "3"], "not allowed with argument"),
        (["--count", "1.5"], "argument --count: is '1.5', but must be a whole number of at least 1"),
        (["--burstiness", "100"], "argument --burstiness: is '100', but must be between 0.05 and 10"),
        (["--at", "50,,80"], "argument --at: is '50,,80', but must be percents above 0 and up to 1000, like 50,80,95"),
        (["--lengths", "50,0.8"], "argument --lengths: is '50,0.8', but must be a median, a sigma of at most 5 and a cap"),
        (["--lengths", "50,0.8,10"], "argument --lengths: is '50,0.8,10'"),
    ],
)
def test_options_say_what_they_must_be(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(*words)
    assert said in " ".join(capsys.readouterr().err.split())


def test_ctrl_c_prints_what_there_is(server: Server) -> None:
    enough = threading.Event()
    held = threading.Event()

    def reply(number: int) -> int:
        if number >= 20:
            enough.set()
            held.wait(timeout=60)
        return 200

    server.reply = reply
    words = ["load", "--url", server.url, "--concurrency", "1", "--count", "1000"]
    with subprocess.Popen([sys.executable, "-m", "serving", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert enough.wait(timeout=60)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=60)
        held.set()
    assert process.returncode == 130
    assert rows(printed)["answered"].startswith("20 in ")
    assert "21 (" in rows(printed)["sent"]
    assert "1 of them not answered yet when it was interrupted" in rows(printed)["sent"]
