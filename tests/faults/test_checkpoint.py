"""Checkpoints and the registry under abuse: damaged, swapped, linked, half written, promoted by many that are killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import Storage, sha256_file
from tests.disks import make_room, small_disk
from tests.s3 import new_folder
from training.checkpoint import copy_checkpoint, load_model, load_tokenizer, verify_checkpoint
from training.errors import CheckpointError
from training.manifest import UNSEALED, read_manifest, sealed
from training.registry import Registry

ROOT = Path(__file__).resolve().parents[2]


def reseal(folder: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
    """Write a manifest that fits the folder's files: a lie that is consistent."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name] = {"sha256": sha256_file(folder / name), "size_bytes": (folder / name).stat().st_size}
    change(manifest)
    (folder / "manifest.json").write_bytes(sealed(json.dumps(manifest | {"digest": UNSEALED}).encode()))


def flip_a_bit(content: bytearray, chance: random.Random) -> None:
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def truncate(content: bytearray, chance: random.Random) -> None:
    del content[chance.randrange(len(content)) :]


def zero_the_tail(content: bytearray, chance: random.Random) -> None:
    # What a disk leaves of a file whose length it knew already.
    first = chance.randrange(len(content))
    content[first:] = bytes(len(content) - first)


def grow(content: bytearray, chance: random.Random) -> None:
    content.extend(chance.randbytes(chance.randrange(1, 64)))


def test_c1_and_c2_a_thousand_of_a_thousand_damages_are_refused(tiny_checkpoint: Path, make_checkpoint: Callable[[int], Path]) -> None:
    """Bits, lengths and tails of every file, the manifest too, and files of another version."""
    chance, other = random.Random(20_261_127), make_checkpoint(1)
    names = sorted(file.name for file in tiny_checkpoint.iterdir())
    whole = {name: (tiny_checkpoint / name).read_bytes() for name in names}
    swapped = {name: (other / name).read_bytes() for name in names}
    damages = (flip_a_bit, truncate, zero_the_tail, grow)
    refused = tried = 0
    while tried < 1000:
        name, kind = chance.choice(names), chance.randrange(5)
        content = bytearray(whole[name])
        damages[kind](content, chance) if kind < len(damages) else content.__init__(swapped[name])  # type: ignore[misc]
        if content == whole[name]:
            # Zeros in place of zeros, or a file that both versions share.
            continue
        tried += 1
        (tiny_checkpoint / name).write_bytes(content)
        try:
            verify_checkpoint(tiny_checkpoint)
        except CheckpointError:
            refused += 1
        (tiny_checkpoint / name).write_bytes(whole[name])
    assert refused == tried
    verify_checkpoint(tiny_checkpoint)


@pytest.mark.parametrize("length", [2**60, 2**63, 2**64 - 1, 100_000_001])
def test_c4_a_header_that_is_too_long_takes_no_memory(tiny_checkpoint: Path, length: int) -> None:
    weights = tiny_checkpoint / "weights.safetensors"
    weights.write_bytes(length.to_bytes(8, "little") + weights.read_bytes()[8:])
    reseal(tiny_checkpoint)
    with pytest.raises(CheckpointError, match=r"(?i)header"):
        verify_checkpoint(tiny_checkpoint)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"{}", b"[1, 2]", b'{"heads": 3}', b'{"heads": [null]}', b"[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
def test_c4_a_file_that_is_something_else_is_refused_in_our_words(tiny_checkpoint: Path, name: str, content: bytes) -> None:
    (tiny_checkpoint / name).write_bytes(content)
    reseal(tiny_checkpoint)
    with pytest.raises(CheckpointError):
        verify_checkpoint(tiny_checkpoint)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"heads": "x"}', b"null", b"1e999"])
def test_c4_a_manifest_that_is_something_else_is_refused(tiny_checkpoint: Path, content: bytes) -> None:
    (tiny_checkpoint / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError):
        verify_checkpoint(tiny_checkpoint)


@pytest.fixture
def on_disk(tmp_path: Path) -> Registry:
    return Registry(Storage(str(tmp_path / "storage")))


@pytest.fixture(params=["disk", "s3"])
def registry(request: pytest.FixtureRequest, on_disk: Registry) -> Registry:
    """One on a disk, and one in a store of objects."""
    if request.param == "disk":
        return on_disk
    return Registry(Storage(new_folder(request.getfixturevalue("bucket"))))


# Publishes a checkpoint, and dies before a file of its choice is there.
PUBLISH = """
import os, signal, sys
from pathlib import Path
from cluster.storage import Storage
from training.registry import Registry

storage, count = Storage(sys.argv[1]), 0
for name in ("write_bytes", "create"):
    def dying(*words, whole=getattr(storage, name)):
        global count
        if count == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        whole(*words)
    setattr(storage, name, dying)
Registry(storage).publish(Path(sys.argv[2]))
"""


@pytest.mark.parametrize("step", [0, 1, 2, 4])
def test_c6_a_publisher_killed_at_any_file_leaves_nothing_visible(
    registry: Registry, tiny_checkpoint: Path, step: int, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", PUBLISH, registry.storage.uri, str(tiny_checkpoint), str(step)]
    assert subprocess.run(words, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert registry.versions() == []
    published = registry.publish(tiny_checkpoint)
    assert registry.versions() == [published]
    verify_checkpoint(registry.fetch(published, tmp_path / "first"))
    claims = [name for name in registry.storage.names("registry/versions") if name.endswith(".claim")]
    for name in claims:
        # All of them a day older.
        path = f"registry/versions/{name}"
        claim = json.loads(registry.storage.read_bytes(path))
        claimed = datetime.fromisoformat(claim["claimed"]) - timedelta(days=1, minutes=1)
        registry.storage.write_bytes(path, json.dumps(claim | {"claimed": claimed.isoformat()}).encode())
    latest = registry.publish(tiny_checkpoint)
    assert latest == published + 1
    assert registry.versions() == [published, latest]
    # What was left is gone, and what is whole is as old, and stays.
    assert [name for name in registry.storage.names("registry/versions") if name.isdigit()] == [f"{published:06d}", f"{latest:06d}"]
    verify_checkpoint(registry.fetch(published, tmp_path / "again"))


# Promotes one version after the other, and says each move that it was told is done.
PROMOTE = """
import sys
from cluster.storage import Storage
from training.errors import RegistryError
from training.registry import Registry

registry = Registry(Storage(sys.argv[1]))
print("begun", flush=True)
sys.stdin.readline()
while True:
    try:
        print(registry.promote(1).sequence, flush=True)
    except RegistryError:
        pass
"""


def test_c7_of_twelve_that_promote_at_once_half_are_killed_and_no_move_is_lost(registry: Registry, tiny_checkpoint: Path) -> None:
    registry.publish(tiny_checkpoint)
    chance = random.Random(7)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROMOTE, registry.storage.uri], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(12)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
    for process in processes:
        # All at once: whoever begins early makes the others' start, and every look, longer.
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    seen = [registry.history("production")]
    # In a store behind HTTP, on a busy machine, the first move may take seconds.
    deadline = time.monotonic() + 60
    while len(seen[-1]) < len(processes) and time.monotonic() < deadline:
        seen.append(registry.history("production"))
    for number, process in enumerate(processes):
        # At a moment of its own, in the middle of whatever it does.
        until = time.monotonic() + chance.random() / 10
        while time.monotonic() < until:
            # A reader beside them: what it sees is whole, and only ever grows.
            seen.append(registry.history("production"))
        process.send_signal(signal.SIGKILL if number % 2 else signal.SIGTERM)
    told = sorted(int(line) for process in processes for line in process.communicate(timeout=60)[0].splitlines())
    history = [move.sequence for move in registry.history("production")]
    assert history == list(range(1, len(history) + 1))
    # Each number was told to one process only, and what was told is there.
    assert len(told) == len(set(told)) > 0
    assert set(told) <= set(history)
    assert all(len(later) >= len(earlier) for earlier, later in pairwise(seen))
    assert all([move.sequence for move in one] == list(range(1, len(one) + 1)) for one in seen)


def test_c9_rolled_back_a_name_points_to_what_it_did(registry: Registry, make_checkpoint: Callable[[int], Path], tmp_path: Path) -> None:
    made = make_checkpoint(1)
    first, second = registry.publish(made), registry.publish(make_checkpoint(2))
    for version in (first, second, first):
        registry.promote(version)
    assert registry.resolve("production") == first
    fetched = registry.fetch(registry.resolve("production"), tmp_path / "fetched")
    assert sha256_file(fetched / "weights.safetensors") == sha256_file(made / "weights.safetensors")


def drop_a_class(folder: Path) -> None:
    reseal(folder, lambda manifest: manifest["heads"][0]["classes"].pop())


def reverse_the_classes(folder: Path) -> None:
    reseal(folder, lambda manifest: manifest["heads"][0]["classes"].reverse())


def forget_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def forget_the_heads(folder: Path) -> None:
    reseal(folder, lambda manifest: manifest.update(heads=[]))


def lengthen_both(folder: Path) -> None:
    """Config and manifest agree on a class that the weights do not have."""
    config = json.loads((folder / "config.json").read_text())
    config["heads"][0]["classes"].append("extra")
    (folder / "config.json").write_text(json.dumps(config))
    reseal(folder, lambda manifest: manifest["heads"][0]["classes"].append("extra"))


@pytest.mark.parametrize("damage", [drop_a_class, reverse_the_classes, forget_the_tokenizer, forget_the_heads, lengthen_both])
def test_c10_and_c11_heads_that_do_not_fit_are_never_published(
    on_disk: Registry, tiny_checkpoint: Path, damage: Callable[[Path], None]
) -> None:
    damage(tiny_checkpoint)
    with pytest.raises(CheckpointError):
        on_disk.publish(tiny_checkpoint)
    assert on_disk.versions() == []


@pytest.mark.parametrize("name", ["model.bin", "weights.pt", "state.pkl", "modeling.py", ".hidden", "weights.safetensors.bak"])
@pytest.mark.parametrize("is_listed", [False, True])
def test_c12_another_file_is_refused_even_if_the_manifest_lists_it(tiny_checkpoint: Path, name: str, is_listed: bool) -> None:
    (tiny_checkpoint / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    if is_listed:
        reseal(tiny_checkpoint, lambda manifest: manifest["files"].update({name: {"sha256": UNSEALED, "size_bytes": 0}}))
    with pytest.raises(CheckpointError, match="may not be in a checkpoint"):
        verify_checkpoint(tiny_checkpoint)


@pytest.mark.parametrize("listed", ["../outside", "/etc/passwd", "a/b", ".."])
def test_c14_the_manifest_cannot_name_what_is_elsewhere(tiny_checkpoint: Path, listed: str) -> None:
    facts = {"sha256": UNSEALED, "size_bytes": 0}
    reseal(tiny_checkpoint, lambda manifest: manifest["files"].update({listed: facts}))
    with pytest.raises(CheckpointError, match=r"is missing|may not be"):
        verify_checkpoint(tiny_checkpoint)


def as_link(file: Path, outside: Path) -> None:
    file.symlink_to(outside)


def as_hard_link(file: Path, outside: Path) -> None:
    file.hardlink_to(outside)


def as_pipe(file: Path, outside: Path) -> None:
    os.mkfifo(file)


def as_folder(file: Path, outside: Path) -> None:
    file.mkdir()


def as_device(file: Path, outside: Path) -> None:
    try:
        os.mknod(file, 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("making a device needs a right that this user lacks")


@pytest.mark.parametrize("make", [as_link, as_hard_link, as_pipe, as_folder, as_device])
def test_c14_what_is_no_plain_file_is_refused_and_not_read(
    tiny_checkpoint: Path, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    weights = tiny_checkpoint / "weights.safetensors"
    weights.rename(tmp_path / "outside")
    make(weights, tmp_path / "outside")
    for read in (verify_checkpoint, lambda folder: copy_checkpoint(folder, tmp_path / "copy")):
        with pytest.raises(CheckpointError, match="must be a plain file with one name"):
            read(tiny_checkpoint)
    assert not (tmp_path / "copy").exists()


def test_c14_what_is_loaded_is_what_was_verified(on_disk: Registry, tiny_checkpoint: Path, tmp_path: Path) -> None:
    version = on_disk.publish(tiny_checkpoint)
    fetched = on_disk.fetch(version, tmp_path / "fetched")
    # Whoever may write in the storage changes the version, after it was verified and before it is loaded.
    shutil.rmtree(on_disk.place(version))
    assert verify_checkpoint(fetched) == read_manifest(fetched)
    assert load_tokenizer(fetched, read_manifest(fetched)).encode(["nurse"])[0].size
    load_model(fetched)


def test_c15_a_full_disk_publishes_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "32k") as disk:
        words = ["-m", "training", "publish", "--checkpoint", str(tiny_checkpoint), "--set", f"cluster.storage={disk}/storage"]
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
        registry = Registry(Storage(f"{disk}/storage"))
        assert registry.versions() == []
        make_room(disk)
        published = registry.publish(tiny_checkpoint)
        assert registry.versions() == [published]
