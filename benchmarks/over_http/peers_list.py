"""The servers that `peers.py` compares: how each is installed, started and asked."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TORCH = "torch==2.13.0"
TRANSFORMERS = "transformers==5.23.0"
LOOPBACK = ("--host", "127.0.0.1", "--port", "{port}")


class Unusable(Exception):
    """A server cannot be installed, started or believed; the message says why."""


@dataclass(frozen=True)
class Server:
    """One of those that are compared.

    Attributes:
        name: In the table.
        command: With the places `bin`, `servers` (the folder of their files), `model`, `port` and `batch`.
        body: Makes a request about a text.
        read: Takes the probabilities out of an answer.
        given: Its settings, for the reader; with the place `batch`.
        path: That is asked.
        batch: Most texts in a batch; 0 where it chooses.
        requirements: To install beside torch; empty for this project, which has its environment.
        tolerance: Of a probability.
    """

    name: str
    command: tuple[str, ...]
    body: Callable[[str], Any]
    read: Callable[[Any], list[float]]
    given: str
    path: str
    batch: int = 0
    requirements: tuple[str, ...] = ()
    tolerance: float = 1e-3

    @property
    def slug(self) -> str:
        """Its name for files."""
        return re.sub("[^a-z0-9]+", "-", self.name.lower()).strip("-")


def _one_text(text: str) -> Any:
    return {"text": text}


def _read_probabilities(answer: Any) -> list[float]:
    found: list[float] = answer["probabilities"]
    return found


def _read_infinity(answer: Any) -> list[float]:
    return [one["score"] for one in sorted(answer["data"][0], key=lambda one: str(one["label"]))]


def _read_ours(answer: Any) -> list[float]:
    return list(answer["answers"][0]["heads"]["head0"]["scores"].values())


def _ours(precision: str, tolerance: float) -> Server:
    command = (sys.executable, "{servers}/our_server.py", "{model}", "{port}", precision)
    given = "one replica with one thread; batches as it chooses them itself"
    body, path = (lambda text: {"texts": [text]}), "/v1/predict"
    return Server(f"ours ({precision})", command, body, _read_ours, given, path, tolerance=tolerance)


PEERS = (
    Server(
        name="infinity-emb",
        command=(
            *("{bin}/infinity_emb", "v2", "--model-id", "{model}", "--served-model-name", "made", "--engine", "torch", "--device", "cpu"),
            *("--dtype", "float32", "--batch-size", "{batch}", *LOOPBACK, "--no-model-warmup"),
        ),
        body=lambda text: {"model": "made", "input": [text]},
        read=_read_infinity,
        given="engine torch, float32, batches of {batch} (its default: 32), which it takes from a queue sorted by length",
        path="/classify",
        batch=32,
        requirements=("infinity-emb[torch,server]==0.0.78",),
    ),
    Server(
        name="LitServe",
        command=("{bin}/python", "{servers}/litserve_server.py", "{model}", "{port}", "{batch}"),
        body=_one_text,
        read=_read_probabilities,
        given="max_batch_size {batch} (10), batch_timeout .01 s and fast_queue, as in its own BERT benchmark; one API server",
        path="/predict",
        batch=10,
        requirements=("litserve==0.2.19", TRANSFORMERS),
    ),
    Server(
        name="BentoML",
        command=(
            "{bin}/bentoml",
            "serve",
            "bentoml_server:Service",
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
            "--timeout-keep-alive",
            "60",
        ),
        body=lambda text: {"texts": [text]},
        read=lambda answer: list(answer[0]),
        given="adaptive batching, max_batch_size {batch} (32 in its guide), max_latency_ms 60000 (its default; with 1000 it refuses)",
        path="/classify",
        batch=32,
        requirements=("bentoml==1.4.40", TRANSFORMERS),
    ),
    Server(
        name="Mosec",
        command=("{bin}/python", "{servers}/mosec_server.py", "--address", "127.0.0.1", "--port", "{port}", "--timeout", "30000"),
        body=_one_text,
        read=_read_probabilities,
        given="two stages, one process each, as in its DistilBERT example; max_batch_size {batch} (32), max_wait_time 10 ms, timeout 30 s",
        path="/inference",
        batch=32,
        requirements=("mosec==0.9.8", TRANSFORMERS),
    ),
    Server(
        name="Ray Serve, `@serve.batch`",
        command=("{bin}/python", "{servers}/ray_server.py", "{model}", "{port}", "{batch}"),
        body=_one_text,
        read=_read_probabilities,
        given="max_batch_size {batch} (8 in its guide), batch_wait_timeout_s .01 (its default), max_ongoing_requests 1000; Serve's proxy",
        path="/",
        batch=8,
        requirements=("ray[serve]==2.60.0", TRANSFORMERS),
    ),
)
# int8 computes something else; how far it may be is what serving allows on golden texts.
OURS = (_ours("float32", 1e-3), _ours("int8", 2e-2))


def find_environment(folder: Path, server: Server, make: bool) -> Path:
    """Return where a server's programs are.

    Raises:
        Unusable: They are not there and not to be made, or cannot be installed.
    """
    if not server.requirements:
        return Path(sys.executable).parent
    home = folder / server.slug
    done, told = home / "installed.txt", "\n".join((TORCH, *server.requirements))
    if done.is_file() and done.read_text(encoding="utf-8") == told:
        return home / "bin"
    if not make:
        raise Unusable("no environment; --make-environments makes it")
    pip = [str(home / "bin" / "pip"), "install", "--quiet"]
    print(f"installing {server.name} …", file=sys.stderr, flush=True)
    # Torch first and again beside the rest, so that nothing brings another one.
    for command in ([sys.executable, "-m", "venv", "--clear", str(home)], [*pip, TORCH], [*pip, TORCH, *server.requirements]):
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            raise Unusable(f"cannot be installed: {last_line(ended.stderr)}")
    done.write_text(told, encoding="utf-8")
    return home / "bin"


def last_line(text: str) -> str:
    """Return what a program said last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it says nothing"
