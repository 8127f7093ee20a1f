"""Versions are immutable, names move atomically; on local disk and on another fsspec storage alike."""

import json
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.console import run_command
from cluster.errors import StorageError
from cluster.storage import Storage
from tests.careless import careless_storage
from training.__main__ import make_parser
from training.checkpoint import WEIGHTS_FILE
from training.errors import CheckpointError, RegistryError
from training.manifest import MANIFEST_FILE, UNSEALED, read_manifest, sealed
from training.registry import Registry


@pytest.fixture(params=["local", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    return Registry(Storage(str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}"))


def test_publish_promote_roll_back(registry: Registry, make_checkpoint: Callable[[int], Path]) -> None:
    assert registry.publish(make_checkpoint(1)) == 1
    assert registry.publish(make_checkpoint(2)) == 2
    assert registry.versions() == [1, 2]
    registry.promote(2)
    assert registry.resolve("production") == 2
    registry.promote(1)
    assert registry.resolve("production") == 1
    assert [move.version for move in registry.history("production")] == [2, 1]
    assert registry.names() == {"production": 1}
    assert registry.resolve(2) == registry.resolve("2") == 2


def test_a_fetched_version_is_the_published_one(registry: Registry, tiny_checkpoint: Path, tmp_path: Path) -> None:
    version = registry.publish(tiny_checkpoint)
    folder = registry.fetch(version, tmp_path / "fetched")
    fetched, published = ({file.name: file.read_bytes() for file in place.iterdir()} for place in (folder, tiny_checkpoint))
    assert fetched == published
    assert registry.manifest(version).max_tokens == 64


def test_what_does_not_exist_is_named(registry: Registry, tiny_checkpoint: Path) -> None:
    with pytest.raises(RegistryError, match="version 3 is not published; versions: none yet"):
        registry.promote(3)
    registry.publish(tiny_checkpoint)
    with pytest.raises(RegistryError, match="no version is promoted to 'production'; names: none yet"):
        registry.resolve("production")
    with pytest.raises(RegistryError, match="must be lower-case letters"):
        registry.promote(1, "../production")
    with pytest.raises(RegistryError, match="no checkpoint there"):
        registry.publish_from("searches/none/best")


def test_compare_and_set_refuses_a_name_that_moved(registry: Registry, make_checkpoint: Callable[[int], Path]) -> None:
    registry.publish(make_checkpoint(1))
    registry.publish(make_checkpoint(2))
    registry.promote(1, expected=0)
    with pytest.raises(RegistryError, match="points to version 1, but 2 was expected"):
        registry.promote(2, expected=2)
    assert registry.resolve("production") == 1


@pytest.mark.parametrize("gone", [(1,), (1, 2), (1, 2, 3)])
def test_a_name_goes_on_where_its_first_moves_were_tidied_away(
    registry: Registry, make_checkpoint: Callable[[int], Path], gone: tuple[int, ...]
) -> None:
    for number in (1, 2):
        registry.publish(make_checkpoint(number))
    for version in (1, 2, 1, 2):
        registry.promote(version)
    for number in gone:
        registry.storage._take_away(f"registry/names/production/{number:06d}.json")
    assert registry.promote(1).sequence == 5
    assert registry.resolve("production") == 1


def test_whoever_has_no_name_promotes_by_number(registry: Registry, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert registry.promote(registry.publish(tiny_checkpoint)).moved_by == str(os.getuid())


def test_a_damaged_checkpoint_is_never_published(registry: Registry, tiny_checkpoint: Path) -> None:
    (tiny_checkpoint / "config.json").write_text("{}")
    with pytest.raises(CheckpointError):
        registry.publish(tiny_checkpoint)
    assert registry.versions() == []


def test_a_half_version_is_invisible_and_its_number_not_used_again(registry: Registry, tiny_checkpoint: Path) -> None:
    registry.storage.create("registry/versions/000001.claim", b"{}")
    registry.storage.write_bytes("registry/versions/000001/weights.safetensors", b"half")
    assert registry.versions() == []
    with pytest.raises(RegistryError, match="version 1 is not published"):
        registry.resolve(1)
    assert registry.publish(tiny_checkpoint) == 2


def test_what_arrives_otherwise_than_it_was_verified_is_no_version(
    registry: Registry, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = registry.storage.write_bytes

    def lose_a_byte(path: str, content: bytes) -> None:
        write(path, content[:-1] if path.endswith(WEIGHTS_FILE) else content)

    with monkeypatch.context() as lossy:
        lossy.setattr(registry.storage, "write_bytes", lose_a_byte)
        with pytest.raises(StorageError, match=rf"/000001/{WEIGHTS_FILE}: has SHA-256 \w+, but must have "):
            registry.publish(tiny_checkpoint)
    assert registry.versions() == []
    assert registry.publish(tiny_checkpoint) == 2


def leave(registry: Registry, number: int, claim: object) -> str:
    """Leave what a publisher that was killed leaves; returns its folder."""
    registry.storage.create(f"{registry.path(number)}.claim", json.dumps(claim).encode())
    registry.storage.write_bytes(f"{registry.path(number)}/{WEIGHTS_FILE}", b"half")
    return registry.path(number)


def test_a_best_checkpoint_that_is_replaced_meanwhile_is_no_version(
    make_checkpoint: Callable[[int], Path], registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, new = registry.storage, make_checkpoint(2)
    storage.replace(make_checkpoint(1), "searches/ads/best", last=MANIFEST_FILE)
    own = storage._sha256_of

    def replace(path: str) -> str:
        monkeypatch.undo()
        storage.replace(new, "searches/ads/best", last=MANIFEST_FILE)
        return own(path)

    monkeypatch.setattr(storage, "_sha256_of", replace)
    version = registry.publish_from("searches/ads/best")
    # All of it is the old one's, where only the manifest was of the new one.
    registry.fetch(version, tmp_path / "fetched")
    assert registry.manifest(registry.publish_from("searches/ads/best")).digest == read_manifest(new).digest


def test_what_cannot_be_taken_away_fails_no_publication(
    registry: Registry, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, old = registry.storage, {"version": 1, "claimed": "2026-01-01T00:00:00+00:00"}
    folders = [leave(registry, number, old) for number in (1, 2)]
    remove = Storage.remove

    def refuse(one: Storage) -> None:
        if one.uri.endswith("000001"):
            raise StorageError(f"{one.uri}: Permission denied")
        remove(one)

    monkeypatch.setattr(Storage, "remove", refuse)
    assert registry.publish(tiny_checkpoint) == 3
    said = f"what a killed publisher left is not taken away, which the next one tries again: {storage.uri}/{folders[0]}: Permission denied"
    assert capsys.readouterr().err == f"warning: {said}\n"
    assert [storage.exists(folder) for folder in folders] == [True, False]
    # Nor where the store does not even say.
    read = storage.read_bytes

    def fail(path: str) -> bytes:
        if path.endswith("1.claim"):
            raise StorageError(f"{path}: Connection reset by peer")
        return read(path)

    monkeypatch.setattr(storage, "read_bytes", fail)
    assert registry.publish(tiny_checkpoint) == 4
    assert capsys.readouterr().err.startswith("warning: what killed publishers may have left was not looked for: ")
    assert registry.versions() == [3, 4]


@pytest.mark.parametrize(
    "claim", [[], "x", {"claimed": None}, {"claimed": "2026-01-01T00:00:00"}, {"claimed": "soon"}, {"claimed": "0001-01-01T00:00:00+14:00"}]
)
def test_no_claim_fails_a_publication(registry: Registry, tiny_checkpoint: Path, claim: object) -> None:
    leave(registry, 1, claim)
    assert registry.publish(tiny_checkpoint) == 2


def test_files_that_others_leave_among_versions_are_none(
    registry: Registry, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = registry.storage
    for stray in (".DS_Store", "README.md", "notes/x", "keep.claim", "keep/x", ".claim", "1²/x", "old-000009/manifest.json"):
        storage.write_bytes(f"registry/versions/{stray}", b'{"claimed": "2026-01-01T00:00:00+00:00"}')
    assert registry.publish(tiny_checkpoint) == 1
    registry.promote(1)
    for stray in (".DS_Store", "Read me/x", "production/README.json", "production/._000001.json", "production/000007"):
        storage.write_bytes(f"registry/names/{stray}", b"x")
    assert registry.publish(tiny_checkpoint) == 2
    assert registry.promote(2).sequence == 2
    assert (registry.versions(), registry.names(), registry.resolve("production")) == ([1, 2], {"production": 2}, 2)
    assert storage.exists("registry/versions/keep/x")
    with pytest.raises(RegistryError, match=r"no version is promoted to 'other'; names: production$"):
        registry.resolve("other")
    with pytest.raises(RegistryError, match="name '²' must be lower-case letters"):
        registry.resolve("²")
    assert capsys.readouterr().err == ""


def test_many_at_once_get_a_version_each_and_one_promotion_wins(tiny_checkpoint: Path, tmp_path: Path) -> None:
    registry = Registry(Storage(str(tmp_path / "store")))
    versions: list[int] = []
    threads = [threading.Thread(target=lambda: versions.append(registry.publish(tiny_checkpoint))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == [1, 2, 3, 4, 5, 6]
    wins: list[int] = []
    lost: list[str] = []

    def promote(version: int) -> None:
        try:
            registry.promote(version, expected=0)
            wins.append(version)
        except RegistryError as error:
            lost.append(error.message)

    threads = [threading.Thread(target=promote, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert registry.resolve("production") == wins[0]
    assert len(lost) == 5


def test_where_a_store_minds_no_condition_two_publishers_get_a_version_each(make_checkpoint: Callable[[int], Path]) -> None:
    first, second = make_checkpoint(1), make_checkpoint(2)
    with careless_storage() as (storage, store):
        registry = Registry(storage)
        published = []

        def come_between(path: str) -> None:
            # The other one has looked before the first's claim was there, and its own comes last.
            store.rm(path)
            published.append(registry.publish(second))

        store.after = come_between
        published.append(registry.publish(first))
        assert published == [1, 2]
        assert [registry.manifest(version).digest for version in published] == [read_manifest(one).digest for one in (second, first)]
        registry.publish(first)
        # A claim that is overwritten later, when files are on their way already.
        taken = "registry/versions/000004.claim"
        store.after = lambda path: setattr(store, "before", lambda path: storage.write_bytes(taken, b"{}"))
        assert registry.publish(second) == 5
        assert registry.versions() == [1, 2, 3, 5]


def test_a_publisher_that_comes_late_leaves_the_files_of_another_alone(make_checkpoint: Callable[[int], Path], tmp_path: Path) -> None:
    first, second = make_checkpoint(1), make_checkpoint(2)
    with careless_storage() as (storage, store):
        registry, published = Registry(storage), []
        claim = "registry/versions/000001.claim"

        def come_late(path: str) -> None:
            # The other one has looked before there was anything, stood still, and its claim comes when this one's last file goes up.
            looks = iter([[]])
            if not path.endswith(MANIFEST_FILE):
                store.before = come_late
                return
            with pytest.MonkeyPatch.context() as stale:
                stale.setattr(registry, "_claimed", lambda: next(looks, [1]))
                store.rm(f"{store._strip_protocol(storage.uri)}/{claim}")
                published.append(registry.publish(second))

        store.before = come_late
        published.append(registry.publish(first))
        assert published == [2, 1]
        assert registry.versions() == [1, 2]
        for version, one in ((1, first), (2, second)):
            registry.fetch(version, tmp_path / str(version))
            assert registry.manifest(version).digest == read_manifest(one).digest


def test_moves_of_a_later_release_are_read(registry: Registry, tiny_checkpoint: Path) -> None:
    registry.promote(registry.publish(tiny_checkpoint))
    path = "registry/names/production/000001.json"
    facts = json.loads(registry.storage.read_bytes(path))
    before = registry.history("production")
    registry.storage.write_bytes(path, json.dumps(facts | {"reason": "better"}).encode())
    assert registry.history("production") == before
    # And of an earlier one.
    del facts["written_by"]
    registry.storage.write_bytes(path, json.dumps(facts).encode())
    assert [move.written_by for move in registry.history("production")] == [""]


def test_what_another_publisher_took_away_first_is_no_warning(
    registry: Registry, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(registry, 1, {"version": 1, "claimed": "2026-01-01T00:00:00+00:00"})
    remove = Storage.remove
    monkeypatch.setattr(Storage, "remove", lambda one: (remove(one), remove(one)))
    assert registry.publish(tiny_checkpoint) == 2
    assert capsys.readouterr().err == ""


def test_of_two_promotions_at_once_the_one_that_was_overwritten_is_told(make_checkpoint: Callable[[int], Path]) -> None:
    with careless_storage() as (storage, store):
        registry = Registry(storage)
        for seed in (1, 2):
            registry.publish(make_checkpoint(seed))
        store.after = lambda path: (store.rm(path), registry.promote(2))
        with pytest.raises(RegistryError, match="'production' was promoted by somebody else at the same moment"):
            registry.promote(1)
        assert [move.version for move in registry.history("production")] == [2]
        assert registry.promote(1).written_by not in ("", registry.history("production")[0].written_by)


def test_versions_are_listed_though_a_head_has_no_figures(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    registry = Registry(Storage(str(store)))
    registry.promote(registry.publish(tiny_checkpoint))
    found = registry.manifest(1)
    metrics = {"test": {"category": {"macro_f1": 0.5}, "education": {"macro_f1": None}}}
    monkeypatch.setattr(Registry, "manifest", lambda *_: found.model_copy(update={"metrics": metrics}))
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"cluster: {{storage: {store}}}\n")
    assert run_command(make_parser(), ["versions", "--config", str(settings)]) == 0
    assert "category 0.500, education –" in capsys.readouterr().out


def test_a_search_does_not_start_from_weights_that_were_changed(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(Storage(str(tmp_path / "store")))
    version = registry.publish(tiny_checkpoint)
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"cluster: {{storage: {tmp_path / 'store'}}}\ntraining: {{data: {{files: [{tmp_path / 'ads.csv'}]}}}}\n")
    words = ["tune", "--from-version", "1", "--with-weights", "--config", str(settings)]
    # Whole, it is the table that is missing.
    assert run_command(make_parser(), words) == 2
    assert "ads.csv" in capsys.readouterr().err
    weights = Path(registry.place(version)) / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert run_command(make_parser(), words) == 2
    assert f"{WEIGHTS_FILE}: has SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize("trial", ["refit-0-7-1", "refit-3"])
def test_a_search_does_not_start_from_weights_that_know_the_validation_texts(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], trial: str
) -> None:
    facts = read_manifest(tiny_checkpoint).model_copy(update={"search": {"name": "ads", "trial": trial}, "digest": UNSEALED})
    (tiny_checkpoint / "manifest.json").write_bytes(sealed(facts.model_dump_json(indent=2).encode() + b"\n"))
    Registry(Storage(str(tmp_path / "store"))).publish(tiny_checkpoint)
    table = tmp_path / "ads.csv"
    rows = [f"text {number} {word},{word}" for number in range(40) for word in ("nurse", "sales")]
    table.write_text("\n".join(["text,category", *rows]) + "\n", encoding="utf-8")
    settings = tmp_path / "settings.yaml"
    training = {"data": {"files": [str(table)]}, "heads": {"category": {}}, "encoder": {"name": str(tmp_path / "none")}}
    settings.write_text(json.dumps({"cluster": {"storage": str(tmp_path / "store")}, "training": training}))
    words = ["tune", "--from-version", "1", "--config", str(settings)]
    # Before anything is encoded, and though the version has no data of its own to be compared.
    assert run_command(make_parser(), [*words, "--with-weights"]) == 2
    said = capsys.readouterr().err
    assert "version 1 was trained once more on training and validation texts together (tuning.refit)" in said
    # Its configuration alone is fine: it is the encoder that is missing.
    assert run_command(make_parser(), words) == 2
    assert "no such folder" in capsys.readouterr().err
