"""Starts a server of `peers.py`, asks it, counts its CPU time and stops it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
from peers_list import Server, Unusable, last_line
from wire import Sent

from cluster.session import free_port

HERE = Path(__file__).resolve().parent
READY_S = 180.0
STOP_S = 30.0
LEFT_S = 5.0
POLL_S = 0.25
QUIET = {"DO_NOT_TRACK": "1", "BENTOML_DO_NOT_TRACK": "True", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "RAY_USAGE_STATS_ENABLED": "0"}
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
# Ray runs its workers at a lower priority, so that others on the machine would take from them what they leave to the rest.
ALIKE = {"RAY_worker_niceness": "0"}


class Running:
    """A server that was started, and all its processes."""

    def __init__(self, server: Server, port: int, process: subprocess.Popen[bytes], bodies: Path) -> None:
        self._server = server
        self._port = port
        self._process = process
        self._bodies = bodies
        self._seen: dict[int, float] = {}

    def processes(self) -> list[psutil.Process]:
        """Find its processes."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def cpu_s(self) -> float:
        """CPU seconds so far of all its processes; one that ended counts with what it had when it was last seen."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                self._seen[process.pid] = sum(process.cpu_times()[:2])
        return sum(self._seen.values())

    def ask(self, text: str) -> list[float]:
        """Ask about one text.

        Raises:
            Unusable: The answer has another form.
        """
        url = f"http://127.0.0.1:{self._port}{self._server.path}"
        answer = httpx.post(url, json=self._server.body(text), timeout=60.0, trust_env=False)
        answer.raise_for_status()
        try:
            return self._server.read(answer.json())
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise Unusable(f"answers in another form: {answer.text[:100]}") from error

    def wait(self, text: str, log: Path) -> None:
        """Wait for the first answer.

        Raises:
            Unusable: There is none in time.
        """
        deadline, last = time.monotonic() + READY_S, ""
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise Unusable(f"does not start: {last_line(log.read_text(encoding='utf-8', errors='replace'))}")
            try:
                self.ask(text)
            except httpx.HTTPError as error:
                last = str(error)
                time.sleep(POLL_S)
            else:
                return
        raise Unusable(f"does not answer in {READY_S:.0f} s: {last}")

    def check(self, texts: list[str], expected: list[list[float]]) -> None:
        """Compare answers to texts that arrive together.

        Raises:
            Unusable: They are not what is expected.
        """
        with ThreadPoolExecutor(len(expected)) as callers:
            found = list(callers.map(self.ask, texts[: len(expected)]))
        if any(len(one) != len(right) for one, right in zip(found, expected, strict=True)):
            raise Unusable("answers with another number of classes")
        off = max(abs(a - b) for one, right in zip(found, expected, strict=True) for a, b in zip(one, right, strict=True))
        if off > self._server.tolerance:
            raise Unusable(f"answers otherwise than transformers: a probability is {off:.4f} off")

    def send(self, seconds: float, *options: object) -> list[Sent]:
        """Send single texts, from another process."""
        command = [sys.executable, HERE / "wire.py", "--port", self._port, "--path", self._server.path, "--bodies", self._bodies]
        command += ["--seconds", seconds, *options]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
        return [Sent(*one) for one in json.loads(done.stdout)]

    def stop(self) -> None:
        """End it, and whatever of it does not end by itself."""
        processes = self.processes()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        deadline = time.monotonic() + LEFT_S
        while (left := [one for one in processes if _is_alive(one)]) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()


def _is_alive(process: psutil.Process) -> bool:
    # Orphans that nobody reaps stay as zombies in many containers.
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@contextmanager
def running(server: Server, programs: Path, model: Path, bodies: Path, batch: int) -> Iterator[Running]:
    """Run a server for the length of the block, once it answers.

    Args:
        server: Which.
        programs: Of its environment.
        model: Folder of the model.
        bodies: Its requests, for `wire.py`; what it writes goes beside them.
        batch: Most texts in a batch.

    Raises:
        Unusable: It does not start or does not answer.
    """
    port = free_port(18_000)
    places = {"bin": str(programs), "servers": str(HERE / "peers"), "model": str(model), "port": str(port), "batch": str(batch)}
    command = [word.format(**places) for word in server.command]
    own = {"PEER_FOLDER": str(model), "PEER_BATCH": str(batch), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    # This project comes from where the benchmark found it, BentoML's workers look for their file where Python does.
    path = {"PYTHONPATH": str(HERE / "peers")} if server.requirements else {}
    environment = os.environ | QUIET | THREADS | ALIKE | own | path
    log = bodies.with_suffix(".log")
    with log.open("wb") as told:
        process = subprocess.Popen(command, cwd=bodies.parent, env=environment, stdin=subprocess.DEVNULL, stdout=told, stderr=told)
    one = Running(server, port, process, bodies)
    try:
        one.wait("bad", log)
        yield one
    finally:
        one.stop()
