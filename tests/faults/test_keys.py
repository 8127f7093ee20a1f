"""Keys under abuse: every route with every kind of key, wrong ones in numbers, revoked and damaged ones."""

import asyncio
import hmac
import itertools
import json
import shutil
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from cluster.errors import StorageError
from cluster.storage import Storage
from serving.errors import TooManyRequests, Unauthorized
from serving.keys.key import Key
from serving.keys.ring import KeyRing
from serving.keys.scopes import OPEN, SCOPE_OF
from serving.keys.store import KeyStore
from serving.playground import PAGE
from serving.routes import build_app


class Nobody:
    """Answers nothing: who comes so far was let in."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def answer(*_: object) -> Any:
            raise RuntimeError("let in")

        return answer


async def figures() -> str:
    return ""


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(Storage(str(tmp_path)))


def make(store: KeyStore, *scopes: Any, days: float | None = None, rate: float | None = None, name: str = "test") -> tuple[Key, str]:
    key, held = Key.make(name, frozenset(scopes or ("predict",)), days, rate)
    store.add(key)
    return key, held


def expired(store: KeyStore, *scopes: Any) -> str:
    key, held = Key.make("old", frozenset(scopes), None, None)
    store.add(key.model_copy(update={"expires_at": datetime.now(UTC) - timedelta(seconds=1)}))
    return held


def ring_of(store: KeyStore, clock: Callable[[], float] = lambda: 0.0) -> KeyRing:
    ring = KeyRing(store, clock)
    ring.refresh()
    return ring


def ask(ring: KeyRing, calls: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    app = build_app(Nobody(), figures, ring=ring)  # type: ignore[arg-type]

    async def main() -> Any:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await calls(client)

    return asyncio.run(main())


def bearer(held: str | None) -> dict[str, str]:
    return {} if held is None else {"authorization": f"Bearer {held}"}


def test_g6_every_route_with_every_kind_of_key(store: KeyStore) -> None:
    good = {scope: make(store, scope)[1] for scope in ("predict", "read", "admin")}
    revoked, held = make(store, "admin")
    store.revoke(revoked.id)
    wrong = good["admin"][:-1] + ("A" if good["admin"][-1] != "A" else "B")
    kinds = {"none": None, "no key at all": "hunter2", "wrong": wrong, "expired": expired(store, "admin"), "revoked": held, **good}
    # The wrong ones all come from one address, at a time that does not go on: more than may.
    ring = ring_of(store, iter(range(10_000)).__next__)
    routes = [route for route in build_app(Nobody(), figures).routes if isinstance(route, APIRoute)]  # type: ignore[arg-type]
    paths = [(method, route.path) for route in routes for method in route.methods] + [("GET", "/openapi.json"), ("GET", "/nothing/here")]

    async def calls(client: httpx.AsyncClient) -> dict[tuple[str, str], int]:
        found = {}
        for method, path in paths:
            for kind, held in kinds.items():
                filled = path.replace("{model}", "m").replace("{version}", "1")
                found[path, kind] = (await client.request(method, filled, headers=bearer(held))).status_code
        return found

    found = ask(ring, calls)
    assert {path for path, _ in found} - {"/nothing/here"} == set(SCOPE_OF)
    for (path, kind), status in found.items():
        wanted = SCOPE_OF.get(path, "admin")
        if wanted == OPEN or kind in (wanted, "admin"):
            assert status not in (401, 403), (path, kind, status)
        else:
            assert status == (403 if kind in good else 401), (path, kind, status)


@pytest.mark.parametrize(
    "path", ["//v1/version", "/v1/version/", "/V1/VERSION", "/v1/%76ersion/x", "/health/live/../../v1/version", "/health/live%2f", "/v2x"]
)
def test_g6_a_path_that_is_written_otherwise_wants_the_most(store: KeyStore, path: str) -> None:
    _, held = make(store, "read")

    async def calls(client: httpx.AsyncClient) -> int:
        return (await client.get(httpx.URL(scheme="http", host="test", raw_path=path.encode()), headers=bearer(held))).status_code

    # httpx itself folds `..`, and what comes then is what a reader may see.
    assert ask(ring_of(store), calls) == (500 if ".." in path else 403)


def test_g7_a_key_is_found_by_its_id_and_compared_in_constant_time(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    key, held = make(store)
    compared: list[bool] = []
    digest = hmac.compare_digest

    def compare(*two: Any) -> bool:
        compared.append(digest(*two))
        return compared[-1]

    monkeypatch.setattr("serving.keys.key.hmac.compare_digest", compare)
    ring = ring_of(store)
    assert ring.admit(held, "predict", "") == key
    with pytest.raises(Unauthorized):
        ring.admit(held[:-2] + "zz", "predict", "")
    assert compared == [True, False]


def test_g7_what_is_kept_does_not_hold_what_opens(store: KeyStore, tmp_path: Path) -> None:
    _, held = make(store)
    secret = held.rpartition("_")[2] if held.count("_") == 2 else held.split("_", 2)[2]
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert secret.encode() not in kept
    assert len({make(store)[1] for _ in range(50)}) == 50


def test_g8_a_revoked_key_is_none_after_the_next_look(store: KeyStore) -> None:
    key, held = make(store)
    ring = ring_of(store)
    ring.admit(held, "predict", "")
    assert store.revoke(key.id)
    assert not store.revoke(key.id)
    ring.refresh()
    with pytest.raises(Unauthorized, match="the key is not good"):
        ring.admit(held, "predict", "")
    # It stays so, whatever is written.
    with pytest.raises(StorageError):
        store.add(key)


def test_g8_a_key_made_later_is_taken_in_and_one_that_is_followed_ends(store: KeyStore) -> None:
    async def main() -> None:
        # By its clock every try is a second later, so that none is one too many.
        ring = KeyRing(store, itertools.count().__next__)
        await ring.start()
        following = asyncio.create_task(ring.follow(0.01))
        key, held = make(store)
        while True:
            try:
                ring.admit(held, "predict", "")
                break
            except Unauthorized:
                await asyncio.sleep(0.01)
        store.revoke(key.id)
        with pytest.raises(Unauthorized):  # noqa: PT012  # when is the loop's affair
            while True:
                ring.admit(held, "predict", "")
                await asyncio.sleep(0.01)
        following.cancel()
        ring.stop()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_g8_keys_stay_while_their_folder_is_gone(store: KeyStore, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key, held = make(store)
    ring = ring_of(store)
    shutil.move(tmp_path / "keys", tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="all keys are gone"):
        ring.refresh()
    assert ring.admit(held, "predict", "") == key


@pytest.mark.parametrize("content", [b"", b"{", b'{"id": "000000000000"}', b"\xff\xfe"])
def test_g8_a_damaged_file_closes_its_key_alone(store: KeyStore, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (damaged, held), (key, other) = make(store), make(store)
    (tmp_path / f"keys/{damaged.id}.json").write_bytes(content)
    ring = ring_of(store)
    assert ring.admit(other, "predict", "") == key
    with pytest.raises(Unauthorized):
        ring.admit(held, "predict", "")
    assert f"{damaged.id}.json: is damaged" in caplog.text


def test_g8_a_key_that_cannot_be_read_now_delays_no_revocation(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (known, ended), ring = make(store), ring_of(store)
    denied, held = make(store)
    read = store.read

    def refuse(identity: str) -> Key:
        if identity == denied.id:
            raise StorageError(f"keys/{identity}.json: Permission denied")
        return read(identity)

    monkeypatch.setattr(store, "read", refuse)
    store.revoke(known.id)
    for _ in range(2):
        ring.refresh()
        for one in (ended, held):
            with pytest.raises(Unauthorized):
                ring.admit(one, "predict", "")
    assert caplog.text.count("Permission denied") == 1
    monkeypatch.undo()
    ring.refresh()
    assert ring.admit(held, "predict", "") == denied


def test_g8_the_file_of_one_key_is_not_anothers(store: KeyStore, tmp_path: Path) -> None:
    weak, weak_held = make(store, "predict")
    strong, strong_held = make(store, "admin")
    (tmp_path / f"keys/{strong.id}.json").replace(tmp_path / f"keys/{weak.id}.json")
    ring = ring_of(store)
    for held in (weak_held, strong_held):
        with pytest.raises(Unauthorized):
            ring.admit(held, "predict", "")


def test_g9_a_thousand_wrong_keys_are_told_to_wait_and_the_good_one_is_not(store: KeyStore) -> None:
    _, held = make(store)
    now = [0.0]
    ring = ring_of(store, lambda: now[0])
    statuses = []
    for number in range(1000):
        now[0] = number / 1000
        try:
            ring.admit(f"th_{number:012x}_{'A' * 43}", "predict", "10.0.0.1")
        except (Unauthorized, TooManyRequests) as error:
            statuses.append(error.status)
        # Behind one proxy all come from one address.
        ring.admit(held, "predict", "10.0.0.1")
    # Twenty at once, and twenty more in the second.
    assert (statuses.count(401), statuses.count(429)) == (39, 961)
    with pytest.raises(Unauthorized):
        ring.admit(None, "predict", "10.0.0.2")


def test_g9_addresses_are_counted_in_bounded_memory(store: KeyStore) -> None:
    ring = ring_of(store)
    for number in range(10_100):
        with pytest.raises(Unauthorized):
            ring.admit("wrong", "predict", str(number))
    assert len(ring._wrong) == 10_000


def test_g9_a_key_that_asks_too_often_is_told_when_to_come_back(store: KeyStore) -> None:
    _, held = make(store, rate=2.0)
    now = [0.0]
    ring = ring_of(store, lambda: now[0])

    async def calls(client: httpx.AsyncClient) -> list[tuple[int, str]]:
        found = []
        for now[0] in (0.0, 0.0, 0.0, 0.4, 0.5, 0.5):
            response = await client.post("/v1/predict", headers={"x-api-key": held})
            found.append((response.status_code, response.headers.get("retry-after", "")))
        return found

    # Behind the guard nobody answers.
    assert ask(ring, calls) == [(500, ""), (500, ""), (429, "1"), (429, "1"), (500, ""), (429, "1")]


def test_g9_refusals_say_what_the_standards_want_and_nothing_of_the_key(store: KeyStore) -> None:
    key, held = make(store, "read")
    wrong = f"th_{key.id}_{'w' * 43}"

    async def calls(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post("/v1/predict", headers=bearer(one), json={"texts": ["secret words"]}) for one in (None, wrong, held)]

    none, bad, forbidden = ask(ring_of(store), calls)
    assert [none.status_code, bad.status_code, forbidden.status_code] == [401, 401, 403]
    assert none.headers["www-authenticate"] == bad.headers["www-authenticate"] == 'Bearer realm="twohead"'
    assert forbidden.headers["www-authenticate"] == 'Bearer realm="twohead", error="insufficient_scope", scope="predict"'
    for response in (none, bad, forbidden):
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["request_id"] == response.headers["x-request-id"]
        assert "w" * 43 not in response.text
        assert held not in response.text
        assert "secret words" not in response.text


def test_g19_documents_and_figures_want_a_key_and_say_so(store: KeyStore) -> None:
    _, predict = make(store, "predict")
    _, read = make(store, "read")

    async def calls(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.get(path, headers=bearer(held)) for path in ("/openapi.json", "/metrics", "/") for held in (None, predict, read)
        ]

    found = ask(ring_of(store), calls)
    # The page itself is the same for everybody.
    assert [response.status_code for response in found] == [401, 403, 200] * 2 + [200] * 3
    assert {response.text for response in found[6:]} == {PAGE}
    document = json.loads(found[2].text)
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    wanted = {path: [one.get("security") for one in operations.values()] for path, operations in document["paths"].items()}
    assert wanted["/v1/predict"] == [[{"key": ["predict"]}]]
    assert wanted["/health/live"] == [None]
    assert {"401", "403", "429"} <= set(document["paths"]["/v1/predict"]["post"]["responses"])
