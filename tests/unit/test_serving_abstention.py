"""Abstention from the manifest to the wire: a checkpoint with a threshold, answered over HTTP, counted for Prometheus."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from serving.__main__ import make_parser
from serving.answerer import Answerer
from serving.follower import Follower
from serving.messages import Prediction
from serving.observing.metrics import Figures
from serving.observing.seen import Seen
from serving.predictor import Predictor
from serving.routes import build_app
from serving.scheduling.counted import Counters
from serving.settings import ServingSettings
from training.judging.abstention import ALWAYS_ABSTAIN
from training.manifest import UNSEALED, sealed


class OneVersion:
    """A registry of one checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resolve(self, reference: str | int, /) -> int:
        return 1

    def fetch(self, version: int, target: Path, /) -> Path:
        return self.folder


def write_threshold(folder: Path, **changes: Any) -> None:
    """Change the facts of the head `category` in a checkpoint's manifest."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["heads"][0] |= changes
    (folder / "manifest.json").write_bytes(sealed(json.dumps(manifest | {"digest": UNSEALED}).encode()))


def serve(folder: Path, test: Callable[[httpx.AsyncClient, Answerer], Awaitable[None]]) -> None:
    async def figures() -> str:
        return ""

    async def main() -> None:
        answerer = Answerer(ServingSettings(), Follower(OneVersion(folder), 1, Predictor.load))
        await answerer.start()
        try:
            transport = httpx.ASGITransport(build_app(answerer, figures))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                await test(client, answerer)
        finally:
            await answerer.stop()

    asyncio.run(main())


def test_over_http_with_a_checkpoint(tiny_checkpoint: Path) -> None:
    told: list[dict[str, Any]] = []

    async def test(client: httpx.AsyncClient, answerer: Answerer) -> None:
        response = await client.post("/v1/predict", json={"texts": ["nurse"]})
        told.append(response.json()["answers"][0]["heads"])
        facts = (await client.get("/v1/version")).json()
        told.append({head["name"]: (head["temperature"], head["threshold"]) for head in facts["heads"]})
        told.append({"page": (await client.get("/docs")).text, "abstained": dict(answerer.abstained)})

    serve(tiny_checkpoint, test)
    plain, facts, seen = told
    assert facts == {"category": (1.0, None), "education": (1.0, None)}
    assert all("abstained" not in head for head in plain.values())
    assert seen["abstained"] == {}
    assert "abstains below" not in seen["page"]

    write_threshold(tiny_checkpoint, threshold=plain["category"]["probability"])
    serve(tiny_checkpoint, test)
    given, facts, seen = told[3:]
    assert given["category"] == plain["category"] | {"abstained": False}
    assert facts["category"] == (1.0, plain["category"]["probability"])
    assert seen["abstained"] == {}

    write_threshold(tiny_checkpoint, threshold=plain["category"]["probability"], temperature=2.0)
    serve(tiny_checkpoint, test)
    kept, facts, seen = told[6:]
    assert (kept["category"]["class"], kept["category"]["abstained"]) == (None, True)
    assert set(kept["category"]["scores"]) == {"driver", "nurse", "sales"}
    assert kept["category"]["probability"] == max(kept["category"]["scores"].values()) < plain["category"]["probability"]
    assert kept["education"] == plain["education"]
    assert facts == {"category": (2.0, plain["category"]["probability"]), "education": (1.0, None)}
    assert seen["abstained"] == {"category": 1}
    assert f"abstains below a probability of {plain['category']['probability']:g}" in seen["page"]


def test_a_head_whose_target_was_not_reached_says_so(tiny_checkpoint: Path) -> None:
    write_threshold(tiny_checkpoint, threshold=ALWAYS_ABSTAIN)

    async def test(client: httpx.AsyncClient, answerer: Answerer) -> None:
        response = await client.post("/v1/predict", json={"texts": ["nurse", "sales", "driver"]})
        heads = [answer["heads"]["category"] for answer in response.json()["answers"]]
        assert [(head["class"], head["abstained"]) for head in heads] == [(None, True)] * 3
        assert answerer.abstained == {"category": 3}
        page = (await client.get("/docs")).text
        assert "abstains always: no threshold reached its target" in page
        assert "&quot;class&quot;: null" in page

    serve(tiny_checkpoint, test)


def test_the_document_describes_an_abstention(tiny_checkpoint: Path) -> None:
    async def test(client: httpx.AsyncClient, _: Answerer) -> None:
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
        head = schemas["HeadAnswer"]
        assert [kind["type"] for kind in head["properties"]["class"]["anyOf"]] == ["string", "null"]
        assert set(head["required"]) == {"class", "probability"}
        assert "scores" in head["properties"]
        assert "abstained" in head["properties"]
        assert {"temperature", "threshold"} <= set(schemas["HeadFacts"]["properties"])

    serve(tiny_checkpoint, test)


def test_asking_shows_an_abstention(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    heads = {
        "category": {"class": None, "probability": 0.41, "scores": {"sales": 0.41, "nurse": 0.39}, "abstained": True},
        "education": {"class": "school", "probability": 0.8, "scores": {"school": 0.8, "none": 0.2}},
    }
    prediction = Prediction.model_validate({"version": 7, "answers": [{"heads": heads, "tokens": 3, "truncated": False}]})
    monkeypatch.setattr("serving.client.Client.predict", lambda *_: prediction)
    for words, expected in ((["ask", "text"], "(abstains)"), (["ask", "text", "--json"], '"class": null')):
        arguments = make_parser().parse_args([*words, "--url", "http://127.0.0.1:9"])
        assert arguments.verb(arguments) == 0
        assert expected in capsys.readouterr().out


def test_abstentions_are_published_once_with_their_head(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float, Any]] = []
    gauges: list[tuple[str, float, Any]] = []

    class Metric:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...] | None = None) -> None:
            self.name, self.tag_keys = name, tag_keys or ()

        def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
            assert value > 0
            assert set(tags or ()) == set(self.tag_keys)
            seen.append((self.name, value, tags))

        def set(self, value: float, tags: dict[str, str] | None = None) -> None:
            assert set(tags or ()) == set(self.tag_keys)
            if tags and "le" not in tags:
                gauges.append((self.name, value, tags))

    monkeypatch.setitem(sys.modules, "ray.serve.metrics", SimpleNamespace(Counter=Metric, Gauge=Metric))
    figures = Figures()
    scheduler: Any = SimpleNamespace(counters=Counters(), queued_tokens=0, queued_texts=0, queue_s=0.0)

    def predictor(dtype: str) -> Any:
        return SimpleNamespace(version=1, engine=SimpleNamespace(dtype=dtype))

    for counts in ({}, {"category": 2}, {"category": 2}, {"category": 5, "education": 1}):
        figures.publish(scheduler, counts, Seen(), predictor("float32"))
    name = "twohead_abstained"
    assert seen == [(name, 2, {"head": "category"}), (name, 3, {"head": "category"}), (name, 1, {"head": "education"})]
    assert set(map(str, gauges)) == {str(("twohead_precision", 1, {"precision": "float32"}))}
    gauges.clear()
    figures.publish(scheduler, {}, Seen(), predictor("int8"))
    assert gauges == [("twohead_precision", 0, {"precision": "float32"}), ("twohead_precision", 1, {"precision": "int8"})]
