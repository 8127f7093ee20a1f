"""cluster.storage: whole writes, exclusive creation, folders; the same on disk and in an object store."""

import hashlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
import s3fs

from cluster.errors import ConflictError, StorageError
from cluster.storage import Storage, sha256, sha256_file
from tests.careless import CarelessStore, careless_storage, refuse


@pytest.fixture(params=["local", "file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """An empty storage of each kind."""
    name = uuid.uuid4().hex
    places = {"local": str(tmp_path / "store"), "file": f"file://{tmp_path}/store", "memory": f"memory://{name}/store"}
    yield Storage(places[request.param])
    fsspec.filesystem("memory").store.clear()


def test_what_is_written_is_read(storage: Storage) -> None:
    storage.write_bytes("a/b.txt", b"first")
    storage.write_bytes("a/b.txt", b"second")
    assert storage.read_bytes("a/b.txt") == b"second"
    assert storage.exists("a/b.txt")
    assert storage.exists("a")
    assert not storage.exists("a/c.txt")


def test_names_are_sorted_and_one_level_deep(storage: Storage) -> None:
    for path in ("v/2/file", "v/10/file", "v/name"):
        storage.write_bytes(path, b"")
    assert storage.names("v") == ["10", "2", "name"]
    assert storage.names("w") == []
    assert storage.names() == ["v"]


def test_create_wants_a_free_name(storage: Storage) -> None:
    storage.create("a", b"mine")
    with pytest.raises(ConflictError) as raised:
        storage.create("a", b"yours")
    assert raised.value.message == f"{storage.uri}/a: exists already"
    assert storage.read_bytes("a") == b"mine"


def test_a_missing_file_is_named(storage: Storage) -> None:
    with pytest.raises(StorageError) as raised:
        storage.read_bytes("a/b")
    assert raised.value.message == f"{storage.uri}/a/b: no such file"


@pytest.mark.parametrize("path", ["../a", "a/../../b", "a/./b", "a\\b", "a\0b"])
def test_no_path_leaves_its_folder(storage: Storage, path: str) -> None:
    for use in (storage.read_bytes, storage.exists, storage.names, storage.child):
        with pytest.raises(StorageError) as raised:
            use(path)
        assert raised.value.message == f"path {path!r}: leaves its folder"
        assert raised.value.hint == "names may not contain '..', a backslash or NUL"
    with pytest.raises(StorageError, match="leaves its folder"):
        storage.write_bytes(path, b"")


def test_a_child_is_a_storage_of_its_own(storage: Storage) -> None:
    storage.child("a/b").write_bytes("c", b"x")
    assert storage.read_bytes("a/b/c") == b"x"
    assert storage.child("a").names() == ["b"]


def test_a_folder_goes_up_and_comes_down(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep/one").write_bytes(b"1")
    (source / "manifest").write_bytes(b"{}")
    storage.upload(source, "v/1", last="manifest")
    target = storage.download("v/1", tmp_path / "target")
    assert {file.relative_to(target).as_posix(): file.read_bytes() for file in target.rglob("*") if file.is_file()} == {
        "deep/one": b"1",
        "manifest": b"{}",
    }
    with pytest.raises(ConflictError):
        storage.upload(source, "v/1", last="manifest")


def make_folder(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


def test_the_last_file_arrives_after_the_others_were_read_again(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_folder(tmp_path / "source", a="", manifest="", z="")
    order: list[str] = []
    for method in ("write_bytes", "_sha256_of", "create"):
        own = getattr(storage, method)
        monkeypatch.setattr(storage, method, lambda *words, m=method, own=own: order.append(f"{m} {words[0]}") or own(*words))
    storage.upload(source, "v", last="manifest", before_each=lambda: order.append("asks"))
    writes = ["asks", "write_bytes v/a", "asks", "write_bytes v/z"]
    assert order == [*writes, "_sha256_of v/a", "_sha256_of v/z", "asks", "create v/manifest"]


def test_what_arrives_otherwise_is_not_shown(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_folder(tmp_path / "source", a="whole", manifest="{}")
    with pytest.raises(StorageError) as raised:
        storage.upload(source, "v", last="manifest", digests={"a": sha256(b"before")})
    assert raised.value.message == f"{storage.uri}/v/a: has SHA-256 {sha256(b'whole')}, but must have {sha256(b'before')}"
    assert raised.value.hint == "try again"
    write = storage.write_bytes
    monkeypatch.setattr(storage, "write_bytes", lambda path, content: write(path, content[:-1]))
    with pytest.raises(StorageError, match=r"/v/a: has SHA-256 "):
        storage.upload(source, "v", last="manifest")
    assert storage.names("v") == ["a"]


def test_a_folder_takes_anothers_place_with_all_its_files_and_no_others(storage: Storage, tmp_path: Path) -> None:
    for number, files in enumerate(({"a": "1", "b": "1", "manifest": "1"}, {"a": "2", "manifest": "2"})):
        storage.replace(make_folder(tmp_path / f"source-{number}", **files), "best", last="manifest")
        assert {name: storage.read_bytes(f"best/{name}").decode() for name in storage.names("best")} == files
        assert storage.names() == ["best"]


def test_whatever_ends_a_replacement_no_mixture_is_found(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = {"a": "1", "b": "1", "manifest": "1"}, {"a": "2", "c": "2", "manifest": "2"}
    storage.replace(make_folder(tmp_path / "old", **old), "best", last="manifest")
    make_folder(tmp_path / "new", **new)
    step, seen = 0, []

    def is_ended_before(step: int) -> bool:
        """Replace it, but end like a killed process before this one of the changes, if there are so many."""
        done = 0

        def count(own: Callable[..., object]) -> Callable[..., object]:
            def change(*words: Any, **options: Any) -> object:
                nonlocal done
                done += 1
                if done > step:
                    raise KeyboardInterrupt
                return own(*words, **options)

            return change

        with monkeypatch.context() as killed:
            for owner, methods in ((storage, ("write_bytes", "create", "child")), (storage._filesystem, ("rm_file",)), (Path, ("rename",))):
                for method in methods:
                    killed.setattr(owner, method, count(getattr(owner, method)))
            with suppress(KeyboardInterrupt):
                storage.replace(tmp_path / "new", "best", last="manifest")
        return done > step

    def found() -> dict[str, str]:
        return {name: storage.read_bytes(f"best/{name}").decode() for name in storage.names("best")}

    while is_ended_before(step):
        assert found() in (old, new) or "manifest" not in found()
        seen.append(found() == old)
        step += 1
    assert found() == new
    # Until the new one has arrived whole, the old one stays.
    assert seen[:4] == [True] * 4


def test_what_is_last_is_of_the_same_source_as_the_others(storage: Storage, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", a="1", b="1", manifest="1")

    def replace_source() -> None:
        for name in ("a", "b", "manifest"):
            (source / name).write_text("2")

    before = {name: sha256(b"1") for name in ("a", "b")}
    asked = iter([lambda: None, lambda: None, replace_source])
    storage.upload(source, "v", last="manifest", digests=before, before_each=lambda: next(asked)())
    assert [storage.read_bytes(f"v/{name}") for name in ("a", "b", "manifest")] == [b"1"] * 3


def test_an_old_folder_that_cannot_go_keeps_nothing_from_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path / "store"))
    storage.replace(make_folder(tmp_path / "1", a="1", manifest="1"), "best", last="manifest")

    def hold(one: Storage) -> None:
        # As NFS does where somebody reads a file: the others are gone, and the folder stays.
        (Path(one.uri) / "a").unlink()
        raise StorageError(f"{one.uri}: Directory not empty")

    with monkeypatch.context() as held:
        held.setattr(Storage, "remove", hold)
        storage.replace(make_folder(tmp_path / "2", a="2", manifest="2"), "best", last="manifest")
    assert [storage.read_bytes(f"best/{name}") for name in storage.names("best")] == [b"2"] * 2
    assert storage.names() == ["best", "best.old"]
    storage.replace(make_folder(tmp_path / "3", a="3", manifest="3"), "best", last="manifest")
    assert storage.names() == ["best"]


def test_what_a_kill_between_two_renames_leaves_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path / "store"))
    storage.replace(make_folder(tmp_path / "1", a="1", manifest="1"), "best", last="manifest")
    make_folder(tmp_path / "2", a="2", manifest="2")
    rename = Path.rename

    def end(one: Path, target: Path) -> Path:
        if one.name == "best.new":
            raise KeyboardInterrupt
        return rename(one, target)

    with monkeypatch.context() as killed:
        killed.setattr(Path, "rename", end)
        with pytest.raises(KeyboardInterrupt):
            storage.replace(tmp_path / "2", "best", last="manifest")
    assert storage.names() == ["best.new", "best.old"]
    with monkeypatch.context() as full:
        full.setattr(storage, "write_bytes", lambda *_: refuse(OSError(28, "No space left on device"))(""))
        with pytest.raises(OSError, match="No space left"):
            storage.replace(tmp_path / "2", "best", last="manifest")
    assert storage.read_bytes("best/a") == b"1"
    storage.replace(tmp_path / "2", "best", last="manifest")
    assert (storage.names(), storage.read_bytes("best/a")) == (["best"], b"2")


def test_a_store_that_copies_nothing_by_itself_is_enough(
    careless: tuple[Storage, CarelessStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, store = careless
    storage.replace(make_folder(tmp_path / "1", a="1", b="1", manifest="1"), "best", last="manifest")

    def refuse_copies(*_: object) -> None:
        # As fsspec's base does, whose stores need not copy single files.
        raise NotImplementedError

    monkeypatch.setattr(store, "cp_file", refuse_copies)
    make_folder(tmp_path / "2", a="2", manifest="2")
    storage.replace(tmp_path / "2", "best", last="manifest")
    assert ([storage.read_bytes(f"best/{name}") for name in storage.names("best")], storage.names()) == ([b"2"] * 2, ["best"])
    # What arrives at its place is read again, too.
    write = storage.write_bytes
    monkeypatch.setattr(storage, "write_bytes", lambda path, content: write(path, content[:-1] if path == "best/a" else content))
    with pytest.raises(StorageError, match=r"/best/a: has SHA-256 "):
        storage.replace(tmp_path / "2", "best", last="manifest")
    assert storage.names("best") == ["a"]
    assert storage.names("best.new") == ["a", "manifest"]


def test_a_missing_folder_cannot_be_downloaded(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(StorageError) as raised:
        storage.download("v/9", tmp_path / "target")
    assert raised.value.message == f"{storage.uri}/v/9: no such folder"


def test_a_local_folder_is_not_copied(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("v/file", b"")
    assert storage.download("v", tmp_path / "target") == tmp_path / "v"


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(StorageError) as raised:
        Storage("nowhere://bucket")
    assert raised.value.message.startswith("storage 'nowhere://bucket': ")
    assert raised.value.hint == "use a local folder or an installed fsspec protocol"


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Storage("store/").uri == str(tmp_path / "store")
    assert Storage("memory://a/b/").uri == "memory://a/b"
    assert repr(Storage("store")) == f"Storage('{tmp_path}/store')"


def test_a_write_onto_a_folder_says_why(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError) as raised:
        storage.write_bytes("folder", b"")
    assert raised.value.message == f"{tmp_path}/folder: Is a directory"
    with pytest.raises(StorageError, match="Is a directory"):
        storage.read_bytes("folder")


def test_a_write_below_a_file_says_why(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("file", b"")
    with pytest.raises(StorageError, match=r"/file/a: Not a directory$"):
        storage.create("file/a", b"")


def test_a_failed_write_leaves_the_old_content_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("a", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"/a: No space left on device$"):
        storage.write_bytes("a", b"new")
    assert storage.read_bytes("a") == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_drafts_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1").touch()
    (tmp_path / "a").touch()
    assert Storage(str(tmp_path)).names() == ["a"]


def test_drafts_and_the_whole_folder_can_be_removed(storage: Storage) -> None:
    storage.write_bytes("a", b"")
    if storage.local_root:
        (storage.local_root / ".tmp-half").write_bytes(b"")
    storage.remove_drafts()
    if storage.local_root:
        assert [path.name for path in storage.local_root.iterdir()] == ["a"]
    storage.remove()
    assert storage.names() == []
    with pytest.raises(StorageError):
        storage.remove()


def test_of_many_creators_one_wins(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    start = threading.Barrier(8)
    won: list[int] = []

    def create(number: int) -> None:
        start.wait()
        try:
            storage.create("name", str(number).encode())
            won.append(number)
        except ConflictError:
            pass

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [storage.read_bytes("name")] == [str(number).encode() for number in won]


@pytest.fixture
def careless() -> Iterator[tuple[Storage, CarelessStore]]:
    with careless_storage() as found:
        yield found


def test_where_a_store_minds_no_condition_what_is_there_stays(careless: tuple[Storage, CarelessStore]) -> None:
    storage, _ = careless
    storage.create("a", b"mine")
    with pytest.raises(ConflictError, match=r"/a: exists already$"):
        storage.create("a", b"yours")
    assert storage.read_bytes("a") == b"mine"


def test_of_two_that_claim_a_name_at_once_the_one_that_was_overwritten_is_told(careless: tuple[Storage, CarelessStore]) -> None:
    storage, store = careless
    theirs: list[bytes] = []
    # The other one has looked before, and its put comes last.
    store.after = lambda path: (store.rm(path), theirs.append(storage.claim("a", {"version": 1})))
    with pytest.raises(ConflictError, match=r"/a: exists already$"):
        storage.claim("a", {"version": 1})
    assert storage.read_bytes("a") == theirs[0]
    assert storage.holds("a", theirs[0])
    assert json.loads(theirs[0]).keys() == {"version", "written_by"}


def test_a_put_that_was_asked_twice_is_no_conflict_with_itself(careless: tuple[Storage, CarelessStore]) -> None:
    storage, store = careless
    # The first answer was lost; the second says that the file, our own, exists.
    store.after = refuse(FileExistsError("a"))
    assert storage.holds("a", storage.claim("a", {}))
    store.after = refuse(OSError(5, "a conflicting request"))
    assert storage.holds("b", storage.claim("b", {}))
    # Words that stores have for somebody else's.
    store.before = lambda path: (storage.claim("c", {}), refuse(OSError(22, "a condition did not hold"))(path))
    with pytest.raises(ConflictError):
        storage.claim("c", {})
    # Nothing is there: it was not that.
    store.before = refuse(OSError(28, "no room"))
    with pytest.raises(StorageError, match="no room") as raised:
        storage.claim("d", {})
    assert not isinstance(raised.value, ConflictError)


def test_a_folder_whose_last_file_was_put_twice_has_arrived(careless: tuple[Storage, CarelessStore], tmp_path: Path) -> None:
    storage, store = careless
    (tmp_path / "source").mkdir()
    (tmp_path / "source/manifest").write_bytes(b"{}")
    store.after = refuse(FileExistsError("manifest"))
    storage.upload(tmp_path / "source", "v", last="manifest")
    assert storage.read_bytes("v/manifest") == b"{}"
    with pytest.raises(ConflictError):
        storage.upload(tmp_path / "source", "v", last="manifest")


@pytest.fixture
def no_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """S3 is at a port where nothing listens, and nobody is logged in."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        settings = {"AWS_ENDPOINT_URL": address, "AWS_MAX_ATTEMPTS": "1", "AWS_DEFAULT_REGION": "us-east-1", "HOME": str(tmp_path)}
        for name, value in (settings | {"AWS_EC2_METADATA_DISABLED": "true"}).items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield monkeypatch
    s3fs.S3FileSystem.clear_instance_cache()


def uses(storage: Storage, folder: Path) -> dict[str, Callable[[], object]]:
    """Whatever a storage is asked for, by name."""
    return {
        "read_bytes": lambda: storage.read_bytes("a"),
        "exists": lambda: storage.exists("a"),
        "names": lambda: storage.names("a"),
        "write_bytes": lambda: storage.write_bytes("a", b"x"),
        "create": lambda: storage.create("a", b"x"),
        "remove": lambda: storage.child("a").remove(),
        "download": lambda: storage.download("a", folder / "target"),
    }


@pytest.mark.parametrize(
    ("account", "why"),
    [
        (
            {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret"},
            "EndpointConnectionError: Could not connect to the endpoint",
        ),
        ({}, "NoCredentialsError: Unable to locate credentials"),
    ],
)
def test_a_store_that_is_not_reached_is_our_own_error(
    no_store: pytest.MonkeyPatch, tmp_path: Path, account: dict[str, str], why: str
) -> None:
    for name, value in account.items():
        no_store.setenv(name, value)
    for use, ask in uses(Storage("s3://bucket/x"), tmp_path).items():
        with pytest.raises(StorageError) as raised:
            ask()
        assert raised.value.message.startswith(f"s3://bucket/x/a: {why}"), use
        assert "secret" not in raised.value.message
        assert raised.value.hint.startswith("is the store reached from here, and may you use it?")


@pytest.mark.parametrize("kind", [OSError, KeyError, PermissionError])
def test_what_a_store_says_is_told_without_its_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind("no answer from https://me:secret@store:1/b/x?signature=secret&more=secret for now")

    storage = Storage(f"memory://{uuid.uuid4().hex}")
    for name in ("cat_file", "pipe_file", "exists", "ls", "rm", "get"):
        monkeypatch.setattr(storage._filesystem, name, fail)
    for use, ask in uses(storage, tmp_path).items():
        if use == "remove":
            ask = storage.remove
        with pytest.raises(StorageError) as raised:
            ask()
        assert "no answer from https://store:1/b/x for now" in raised.value.message, use
        assert "secret" not in raised.value.message


def test_a_defect_of_ours_is_not_told_as_one_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TypeError("a defect")

    storage = Storage(str(tmp_path))
    monkeypatch.setattr("cluster.storage.write_whole", lambda *_, **__: fail())
    with pytest.raises(TypeError, match="a defect"):
        storage.create("a", b"")


def test_commands_say_so_and_end_with_2(no_store: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cluster.console import run_command
    from serving.__main__ import make_parser

    no_store.chdir(tmp_path)
    no_store.delenv("TWOHEAD_STORAGE", raising=False)
    assert run_command(make_parser(), ["keys", "list", "--set", "cluster.storage=s3://bucket/x"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "error: s3://bucket/x/keys: NoCredentialsError: Unable to locate credentials"
    assert said[1].startswith("hint:  is the store reached from here")


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256(b"abc") == sha256_file(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
