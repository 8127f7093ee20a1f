"""Keys as people meet them: made, listed, revoked; asked for before anything starts; sent by our own clients."""

import asyncio
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request

from cluster.console import run_command
from cluster.errors import ConflictError, SettingsError
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from serving.__main__ import make_parser
from serving.client import AsyncClient, Client, key_headers
from serving.door import client_id
from serving.errors import AnswerError
from serving.keys.command import require_key
from serving.keys.guard import held_key
from serving.keys.key import Key
from serving.keys.ring import Bucket, KeyRing, usable
from serving.keys.store import KeyStore
from serving.settings import ServingSettings
from tests.careless import careless_storage, refuse


def run(tmp_path: Path, *words: str) -> int:
    return run_command(make_parser(), ["keys", *words, "--set", f"cluster.storage={tmp_path}"])


def test_a_key_is_made_listed_and_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "list") == 0
    assert "there are no keys" in capsys.readouterr().out
    assert run(tmp_path, "create", "--name", "ci of ads", "--scope", "predict", "read", "--days", "90", "--rate", "2.5") == 0
    held = capsys.readouterr().out.strip()
    store = KeyStore(Storage(str(tmp_path)))
    ring = KeyRing(store)
    ring.refresh()
    key = ring.admit(held, "read", "")
    assert (key.name, key.scopes, key.rate_per_s) == ("ci of ads", {"predict", "read"}, 2.5)
    assert run(tmp_path, "list") == 0
    listed = capsys.readouterr().out
    assert f"{key.id}  ci of ads  predict, read  {key.created_at:%Y-%m-%d %H:%M}" in listed
    assert listed.rstrip().endswith("2.5       good")
    assert held not in listed
    assert [run(tmp_path, "revoke", key.id) for _ in range(2)] == [0, 0]
    assert capsys.readouterr().out == f"key {key.id} is revoked\nkey {key.id} was revoked before\n"
    assert usable(store, "read") == []
    run(tmp_path, "list")
    assert capsys.readouterr().out.rstrip().endswith("revoked")


def test_a_damaged_key_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("whole", "torn"):
        run(tmp_path, "create", "--name", name)
    whole, torn = (line.split("_")[1] for line in capsys.readouterr().out.splitlines())
    (tmp_path / "keys" / f"{torn}.json").write_text('{"id": "')
    for state in ("damaged", "revoked"):
        assert run(tmp_path, "list") == 0
        rows = capsys.readouterr().out.splitlines()
        assert [(row.split()[0], row.split()[-1]) for row in rows if row.startswith((whole, torn))] == [(whole, "good"), (torn, state)]
        run(tmp_path, "revoke", torn)
        capsys.readouterr()


def test_what_cannot_be_made_or_revoked_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "create", "--name", "a/b") == 2
    assert "--name is 'a/b', but must be 1 to 64 letters" in capsys.readouterr().err
    assert run(tmp_path, "revoke", "../production") == 2
    assert "there is no key '../production'" in capsys.readouterr().err
    for words in (["--days", "0"], ["--rate", "-1"], ["--days", "nan"], ["--scope", "root"]):
        with pytest.raises(SystemExit):
            run(tmp_path, "create", "--name", "x", *words)
    assert not (tmp_path / "keys").exists()


def test_a_key_whose_stores_answer_was_lost_is_made_and_revoked() -> None:
    with careless_storage() as (storage, store):
        keys = KeyStore(storage)
        key, _ = Key.make("ci", frozenset({"predict"}), None, None)
        store.after = refuse(FileExistsError("asked twice"))
        keys.add(key)
        assert keys.read(key.id) == key
        with pytest.raises(ConflictError):
            keys.add(key.model_copy(update={"name": "another"}))
        store.after = refuse(FileExistsError("asked twice"))
        assert keys.revoke(key.id)
        assert not keys.revoke(key.id)


def test_other_addresses_only_with_keys() -> None:
    with pytest.raises(ValueError, match=r"unless serving\.require_keys is true"):
        ServingSettings(host="10.0.0.1")
    assert ServingSettings(host="10.0.0.1", require_keys=True).url == "http://10.0.0.1:8000"


def test_nothing_starts_that_nobody_may_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TWOHEAD_KEY", raising=False)
    cluster, settings = ClusterSettings(storage=str(tmp_path)), ServingSettings(require_keys=True)
    require_key(cluster, ServingSettings(), is_asked=True)
    run(tmp_path, "create", "--name", "figures", "--scope", "read")
    with pytest.raises(SettingsError, match="no good key that may predict"):
        require_key(cluster, settings)
    run(tmp_path, "create", "--name", "ads")
    require_key(cluster, settings)
    with pytest.raises(SettingsError, match="wants a key in the environment variable TWOHEAD_KEY"):
        require_key(cluster, settings, is_asked=True)
    monkeypatch.setenv("TWOHEAD_KEY", capsys.readouterr().out.split()[-1])
    require_key(cluster, settings, is_asked=True)


def request(headers: dict[str, str], key_id: str | None = None) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw, "state": {} if key_id is None else {"key_id": key_id}})


def test_a_key_comes_in_two_headers() -> None:
    assert held_key(request({"authorization": "bearer  th_1 "})) == "th_1"
    assert held_key(request({"x-api-key": "th_2"})) == "th_2"
    assert held_key(request({"authorization": "Basic dTpw"})) is None
    assert held_key(request({})) is None


def test_a_key_shares_one_turn_whatever_it_calls_itself() -> None:
    assert client_id(request({"x-client-id": "a"}, "00aa")) == client_id(request({"x-client-id": "b"}, "00aa")) == "key 00aa"
    assert client_id(request({"x-client-id": "a"})) == "a"


def test_a_bucket_lets_through_its_rate() -> None:
    bucket = Bucket(0.5, 0.0)
    assert [bucket.take(at) for at in (0.0, 0.0, 1.0, 2.0, 100.0, 100.0)] == [0.0, 2.0, 1.0, 0.0, 0.0, 2.0]


def test_clients_send_the_key_they_are_given_or_find(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def answer(asked: httpx.Request) -> httpx.Response:
        seen.append(asked.headers.get("authorization"))
        return httpx.Response(401)

    monkeypatch.setenv("TWOHEAD_KEY", "found")
    for key in (None, "given"):
        with Client(transport=httpx.MockTransport(answer), key=key) as client, pytest.raises(AnswerError):
            client.version()

    async def main() -> None:
        async with AsyncClient(transport=httpx.MockTransport(answer), key="given") as client:
            with pytest.raises(AnswerError):
                await client.version()

    asyncio.run(main())
    monkeypatch.delenv("TWOHEAD_KEY")
    assert key_headers() == {}
    assert seen == ["Bearer found", "Bearer given", "Bearer given"]


def test_a_client_waits_as_long_as_it_is_told() -> None:
    answers = iter([httpx.Response(429, headers={"retry-after": "0"}), httpx.Response(200, text="figures")])
    with Client(transport=httpx.MockTransport(lambda _: next(answers))) as client:
        assert client.metrics() == "figures"
