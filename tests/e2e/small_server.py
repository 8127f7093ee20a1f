"""A small version with random weights behind the real application, for tests that look at it from outside."""

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from serving.answerer import Answered, Answerer
from serving.errors import Overloaded
from serving.follower import Follower
from serving.keys.ring import KeyRing
from serving.messages import PredictRequest
from serving.observing.names import COUNTED
from serving.predictor import Predictor
from serving.promised import Promised
from serving.routes import build_app
from serving.settings import ServingSettings

THRESHOLD = 0.9
REPLICA = 'application="twohead",deployment="Replica",replica'


class Busy(Answerer):
    """An answerer that can be told to refuse."""

    refusals = 0

    async def predict(self, request: PredictRequest, client: str = "", promised: Promised | None = None) -> Answered:
        if self.refusals > 0:
            self.refusals -= 1
            raise Overloaded("9.0 s of work come before this request, but at most 5 s may", 1.0)
        return await super().predict(request, client, promised)


class OneVersion:
    """A registry with one version, for ever."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def resolve(self, reference: str | int, /) -> int:
        return 3

    def fetch(self, version: int, target: Path, /) -> Path:
        return self._folder


class Served:
    """A small version behind the real application, on a port of its own."""

    def __init__(self, folder: Path, ring: KeyRing | None = None) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.settings = ServingSettings(max_texts=3, max_characters=400, follow_s=3_600.0)
        self.follower = Follower(OneVersion(folder), "production", load)
        self.answerer = Busy(self.settings, self.follower)
        app = build_app(self.answerer, self.metrics, ring=ring)
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.answerer.start(), self._loop).result()
        self._serving = asyncio.run_coroutine_threadsafe(self._server.serve(sockets=[self._listening]), self._loop)

    async def metrics(self) -> str:
        counters = self.answerer.scheduler.counters
        lines = [f'twohead_version{{{REPLICA}="{one}"}} 3.0' for one in "ab"]
        lines += [f'twohead_{name}_total{{{REPLICA}="a"}} {float(getattr(counters, name))}' for name in COUNTED]
        return "\n".join([*lines, f'twohead_queued_texts{{{REPLICA}="a"}} 1.0', f'twohead_queued_texts{{{REPLICA}="b"}} 1234.0', ""])

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        response = httpx.post(self.url + path, json=body, trust_env=False, timeout=60.0)
        assert response.status_code == 200, response.text
        return response.json()

    def stop(self) -> None:
        self._server.should_exit = True
        self._serving.result()
        asyncio.run_coroutine_threadsafe(self.answerer.stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def load(folder: Path, version: int) -> Predictor:
    predictor = Predictor.load(folder, version, precision="float32")
    first, second = predictor.manifest.heads
    heads = (first.model_copy(update={"threshold": THRESHOLD}), second.model_copy(update={"ordered": True}))
    predictor.manifest = predictor.manifest.model_copy(update={"heads": heads})
    return predictor
