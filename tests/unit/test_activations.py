"""Activations are computed once, by whoever has time; half a shard counts as none; the bound holds."""

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import pytest
import torch

from cluster.errors import StorageError
from cluster.storage import Storage
from training.activations import wanted as module
from training.activations.cache import ActivationCache, RangeExceeded, folder_for
from training.activations.shards import locked
from training.activations.wanted import Shard, Source, Wanted
from training.data.tokens import TokenTable, make_token_table

WIDTH = 4


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_TOKENS", 10)


def table(texts: int = 12, seed: int = 0) -> TokenTable:
    chance = np.random.default_rng(seed)
    rows = [chance.integers(0, 99, int(length)) for length in chance.integers(2, 15, texts)]
    return make_token_table(rows, [len(row) for row in rows])


def wanted(texts: int = 12, seed: int = 0, **changes: Any) -> Wanted:
    own: dict[str, Any] = {"source": Source("a" * 64, "mean", "", 2), "table": table(texts, seed), "width": WIDTH, "is_pooled": False}
    return Wanted(**(own | changes))


def value(one: Wanted, shard: Shard) -> Any:
    """What every layer says here: its token, over and over."""
    ids = one.table.take(np.arange(shard.first, shard.end)).ids
    if one.is_pooled:
        ids = np.array([one.table[text].sum() for text in range(shard.first, shard.end)])
    return np.repeat(ids[:, None], WIDTH, axis=1).astype(np.float32)


def expected(one: Wanted) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([value(one, shard) for shard in one.shards()])).to(torch.float16)


class Computer:
    """Computes, and remembers which shards."""

    def __init__(self, one: Wanted) -> None:
        self.one, self.computed = one, list[int]()

    def __call__(self, shard: Shard) -> Any:
        self.computed.append(shard.number)
        return [value(self.one, shard)]


@pytest.mark.parametrize("is_pooled", [False, True])
def test_shards_cover_every_text_once_and_hold_their_tokens(is_pooled: bool) -> None:
    one = wanted(40, is_pooled=is_pooled)
    shards = one.shards()
    assert [shard.first for shard in shards] == [0, *(shard.end for shard in shards[:-1])]
    assert shards[-1].end == 40
    assert sum(shard.size_bytes for shard in shards) == one.size_bytes
    for shard in shards:
        tokens = int(one.table.lengths[shard.first : shard.end].sum())
        assert tokens <= 10 or shard.end == shard.first + 1


@pytest.mark.parametrize("is_pooled", [False, True])
def test_it_computes_once_and_others_find_it(is_pooled: bool, tmp_path: Path) -> None:
    one = wanted(is_pooled=is_pooled)
    first, second = Computer(one), Computer(one)
    cache = ActivationCache(tmp_path, 10**6)
    for computer in (first, second):
        found = cache.open(one, computer)
        assert found is not None
        assert torch.equal(found, expected(one))
    assert sorted(first.computed) == [shard.number for shard in one.shards()]
    assert second.computed == []


def test_what_comes_by_the_way_is_kept_and_not_computed_again(tmp_path: Path) -> None:
    one, other = wanted(is_pooled=True), wanted(source=Source("a" * 64, "mean", "", 1))
    cache = ActivationCache(tmp_path, 10**6)
    cache.open(one, lambda shard: [value(one, shard), value(other, other.shards()[shard.number])], other)
    again = Computer(other)
    found = cache.open(other, again)
    assert again.computed == []
    assert found is not None
    assert torch.equal(found, expected(other))


def test_what_comes_by_the_way_stays_out_where_it_has_no_room_or_does_not_fit(tmp_path: Path) -> None:
    one, other = wanted(is_pooled=True), wanted(source=Source("a" * 64, "mean", "", 1))
    for bound, factor in ((one.size_bytes, 1.0), (10**6, 1e30)):
        cache = ActivationCache(tmp_path / str(bound), bound)

        def compute(shard: Shard, factor: float = factor) -> Any:
            return [value(one, shard), factor * value(other, other.shards()[shard.number])]

        found = cache.open(one, compute, other)
        assert found is not None
        assert torch.equal(found, expected(one))
        again = Computer(other)
        assert (cache.open(other, again) is None) == (factor == 1.0)
        assert sorted(again.computed) == ([] if factor == 1.0 else [shard.number for shard in other.shards()])


def test_what_it_depends_on_gives_it_another_name() -> None:
    source = Source("a" * 64, "mean", "", 2)
    changed = [
        wanted(seed=1),
        wanted(is_pooled=True),
        wanted(width=8),
        wanted(precision="float32"),
        *(wanted(source=Source(*one)) for one in (("b" * 64, "mean", "", 2), ("a" * 64, "cls", "", 2), ("a" * 64, "mean", "v/7", 2))),
        wanted(source=Source("a" * 64, "mean", "", 3)),
        wanted(source=Source("a" * 64, "mean", "", 2, "c" * 64)),
    ]
    assert len({one.name for one in changed} | {wanted(source=source).name}) == len(changed) + 1
    assert wanted().name == wanted(source=source).name


@pytest.mark.parametrize("damage", ["note gone", "note cut", "bit flipped", "file cut", "facts gone"])
def test_what_is_damaged_is_computed_again(damage: str, tmp_path: Path) -> None:
    one = wanted()
    ActivationCache(tmp_path, 10**6).open(one, Computer(one))
    folder = tmp_path / one.name
    if damage == "note gone":
        (folder / "1.sha256").unlink()
    elif damage == "note cut":
        (folder / "1.sha256").write_text("")
    elif damage == "bit flipped":
        content = bytearray((folder / "activations").read_bytes())
        content[one.shards()[1].start_bytes] ^= 1
        (folder / "activations").write_bytes(bytes(content))
    elif damage == "file cut":
        os.truncate(folder / "activations", one.shards()[1].start_bytes)
    else:
        (folder / "facts.json").unlink()
    again = Computer(one)
    found = ActivationCache(tmp_path, 10**6).open(one, again)
    assert found is not None
    assert torch.equal(found, expected(one))
    all_of_them = [shard.number for shard in one.shards()]
    lost = {"file cut": all_of_them[1:], "facts gone": all_of_them}.get(damage, [1])
    assert sorted(again.computed) == lost


def test_the_least_recently_used_goes_when_room_is_needed(tmp_path: Path) -> None:
    every = [wanted(seed=seed) for seed in range(3)]
    bound = every[0].size_bytes + every[1].size_bytes + every[2].size_bytes - 1
    for moment, one in enumerate(every[:2]):
        cache = ActivationCache(tmp_path, bound)
        cache.open(one, Computer(one))
        cache.close()
        os.utime(tmp_path / one.name / "facts.json", (moment, moment))
    ActivationCache(tmp_path, bound).open(every[2], Computer(every[2]))
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {one.name for one in every[1:]}
    assert sum(json.loads(path.read_text())["bytes"] for path in tmp_path.glob("*/facts.json")) <= bound


def test_the_least_recently_used_goes_on_nfs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove, lock = shutil.rmtree, fcntl.flock

    def remove_on_nfs(path: Path, *, ignore_errors: bool = False) -> None:
        # What is open there keeps a name of its own, and its folder.
        for file in path.iterdir() if path.exists() else ():
            if file.name == "in-use":
                file.rename(path / ".nfs0001")
            elif not file.name.startswith(".nfs"):
                file.unlink()
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        if path.exists() and not any(path.iterdir()):
            remove(path)

    def lock_on_nfs(file: IO[str], how: int) -> None:
        if how & fcntl.LOCK_SH and not file.readable():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        lock(file, how)

    monkeypatch.setattr(shutil, "rmtree", remove_on_nfs)
    monkeypatch.setattr(fcntl, "flock", lock_on_nfs)
    every = [wanted(seed=seed) for seed in range(2)]
    bound = every[0].size_bytes + every[1].size_bytes - 1
    for one in every:
        cache = ActivationCache(tmp_path, bound)
        assert cache.open(one, Computer(one)) is not None
        cache.close()
    assert not (tmp_path / every[0].name / "facts.json").exists()


@pytest.mark.parametrize("facts", [None, "", "{", '{"bytes": null}', "[]"])
def test_what_a_crash_left_goes_and_what_is_not_ours_stays(facts: str | None, tmp_path: Path) -> None:
    left, other = wanted(), wanted(seed=1)
    cache = ActivationCache(tmp_path, other.size_bytes)
    cache.open(left, Computer(left))
    cache.close()
    (tmp_path / left.name / "facts.json").unlink()
    if facts is not None:
        (tmp_path / left.name / "facts.json").write_text(facts)
    (tmp_path / "photos").mkdir()
    assert cache.open(other, Computer(other)) is not None
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"photos", other.name}


def test_what_is_in_use_stays_and_there_is_no_room(tmp_path: Path) -> None:
    one, other = wanted(), wanted(seed=1)
    bound = one.size_bytes + other.size_bytes - 1
    holder = ActivationCache(tmp_path, bound)
    held = holder.open(one, Computer(one))
    assert ActivationCache(tmp_path, bound).open(other, Computer(other)) is None
    assert held is not None
    assert torch.equal(held, expected(one))
    assert ActivationCache(tmp_path, one.size_bytes - 1).open(one, Computer(one)) is None


def test_a_value_out_of_range_is_said(tmp_path: Path) -> None:
    one = wanted()
    with pytest.raises(RangeExceeded):
        ActivationCache(tmp_path, 10**6).open(one, lambda shard: [value(one, shard) + 70_000])
    precise = wanted(precision="float32")
    found = ActivationCache(tmp_path, 10**6).open(precise, lambda shard: [value(precise, shard) + 70_000])
    assert found is not None
    assert found.dtype == torch.float32
    assert float(found.min()) >= 70_000


def test_a_full_disk_leaves_no_room_and_no_half_shard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = wanted()

    def fill(shard: Shard) -> Any:
        if shard.number == 1:
            raise OSError(28, "No space left on device")
        return value(one, shard)

    assert ActivationCache(tmp_path, 10**6).open(one, fill) is None
    assert "No space left on device; frozen layers are computed anew for every batch" in caplog.text
    assert not (tmp_path / one.name / "1.sha256").exists()


def test_machines_find_each_others_shards(tmp_path: Path) -> None:
    one, shared = wanted(), Storage(str(tmp_path / "shared"))
    here, there = Computer(one), Computer(one)
    ActivationCache(tmp_path / "here", 10**6, shared).open(one, here)
    damaged = tmp_path / "shared" / "activations" / one.name / "2"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    found = ActivationCache(tmp_path / "there", 10**6, shared).open(one, there)
    assert found is not None
    assert torch.equal(found, expected(one))
    assert there.computed == [2]


class Refusing(Storage):
    """A storage that takes no shards."""

    tried: ClassVar[list[str]] = []

    def child(self, path: str) -> Storage:
        return Refusing(f"{self.uri}/{path}")

    def write_bytes(self, path: str, content: bytes) -> None:
        if path != "facts.json":
            self.tried.append(path)
            raise StorageError(f"{self.uri}/{path}: quota exceeded")
        super().write_bytes(path, content)


def test_a_storage_that_takes_no_copies_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = wanted()
    found = ActivationCache(tmp_path / "here", 10**6, Refusing(str(tmp_path / "shared"))).open(one, Computer(one))
    assert found is not None
    assert torch.equal(found, expected(one))
    # It is asked once, and told of once.
    assert len(Refusing.tried) == 1
    assert caplog.text.count("quota exceeded; other machines compute these activations anew") == 1


def test_a_storage_that_takes_nothing_at_all_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = wanted()
    (tmp_path / "shared").write_text("no folder")
    found = ActivationCache(tmp_path / "here", 10**6, Storage(str(tmp_path / "shared"))).open(one, Computer(one))
    assert found is not None
    assert torch.equal(found, expected(one))
    assert "other machines compute these activations anew" in caplog.text


def test_copies_stay_within_the_bound_and_the_least_recently_used_go_first(tmp_path: Path) -> None:
    shared, made = tmp_path / "shared" / "activations", [wanted(seed=seed) for seed in range(4)]
    (shared / ("f" * 32)).mkdir(parents=True)
    most_bytes = max(one.size_bytes for one in made) * 5 // 2

    def open_on(machine: str, one: Wanted) -> set[int]:
        cache = ActivationCache(tmp_path / machine, most_bytes, Storage(str(tmp_path / "shared")))
        assert cache.open(one, Computer(one)) is not None
        cache.close()
        there = {path.name for path in shared.iterdir()}
        return {number for number, known in enumerate(made) if known.name in there} | ({-1} if "f" * 32 in there else set())

    # What says nothing of itself goes at once.
    assert open_on("a", made[0]) == {0}
    assert open_on("b", made[1]) == {0, 1}
    # Asked for again, it is not the one to go.
    assert open_on("c", made[0]) == {0, 1}
    assert open_on("d", made[2]) == {0, 2}
    assert open_on("e", made[3]) == {2, 3}


def test_where_it_lies(tmp_path: Path) -> None:
    assert folder_for(Storage(str(tmp_path)), None) == tmp_path / "activations"
    assert folder_for(Storage(str(tmp_path)), str(tmp_path / "mine")) == tmp_path / "mine"
    assert str(os.getuid()) in folder_for(Storage("memory://searches"), None).name


def test_somebody_elses_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(StorageError, match="belongs to another user"):
        ActivationCache(tmp_path, 10**6).open(wanted(), Computer(wanted()))


def _fill_slowly(folder: Path, results: Any, ready: Any, gate: Path) -> None:
    module.SHARD_TOKENS = 10
    one = wanted(30)
    computer = Computer(one)

    def compute(shard: Shard) -> Any:
        # The others begin while this one is in its first shard.
        ready.set()
        with locked(gate, shared=True):
            return computer(shard)

    found = ActivationCache(folder, 10**6).open(one, compute)
    results.put((computer.computed, found is not None and torch.equal(found, expected(one))))


def test_two_processes_share_the_work_and_a_dead_ones_shard_is_taken_over(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results, gate, folder = context.Queue(), tmp_path / "gate", tmp_path / "activations"
    begun = [context.Event() for _ in range(3)]
    workers = [context.Process(target=_fill_slowly, args=(folder, results, ready, gate)) for ready in begun]
    # Not an Event: a process killed while it waits for one takes it along.
    with locked(gate):
        for worker, ready in zip(workers, begun, strict=True):
            worker.start()
            assert ready.wait(30)
        workers[0].kill()
        workers[0].join(30)
    ended = [results.get(timeout=30) for _ in workers[1:]]
    for worker in workers[1:]:
        worker.join(30)
    assert all(is_right for _, is_right in ended)
    assert sorted(number for computed, _ in ended for number in computed) == [shard.number for shard in wanted(30).shards()]
    assert all(computed for computed, _ in ended)


@pytest.mark.parametrize("depth", [2, 3])
def test_a_model_reads_the_same_from_the_cache(depth: int, make_encoder: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoConfig

    from training.data.tokens import Tokenizer
    from training.network.inputs import ActivationInputs, PooledInputs
    from training.network.model import TwoHeadBert, make_config
    from training.network.prefix import compute_prefix, prefix_rows

    folder = make_encoder("bert")
    tokenizer = Tokenizer(folder, 32)
    torch.manual_seed(0)
    heads = [{"name": "job", "classes": ["a", "b"], "hidden_size": 0, "dropout": 0.0}]
    model = TwoHeadBert(make_config(AutoConfig.from_pretrained(str(folder)), "mean", heads)).eval()
    texts = tokenizer.encode(["the nurse", "the driver and the teacher", "sales", "school and master 12"])
    one = Wanted(Source("a" * 64, "mean", "", depth), texts, 16, depth == 3)

    def compute(shard: Shard) -> Any:
        part = texts.take(np.arange(shard.first, shard.end))
        return [prefix_rows(model, part, tokenizer.pad_id, [depth])[depth].numpy()]

    rows = ActivationCache(tmp_path, 10**6).open(one, compute)
    assert rows is not None
    exact = compute_prefix(model, texts, tokenizer.pad_id, depth)
    kept = PooledInputs(rows, texts.lengths) if depth == 3 else ActivationInputs(rows, texts.offsets)
    for name, values in exact.batch(np.arange(4)).items():
        torch.testing.assert_close(kept.batch(np.arange(4))[name], values, atol=2e-3, rtol=1e-3)
    at_once = prefix_rows(model, texts, tokenizer.pad_id, [3, 1, depth])
    # Nobody asks heads, and what words say beside them.
    model.heads.forward = model.heads[0].forward = lambda *_: pytest.fail("a head is asked")  # type: ignore[method-assign]
    for one_depth, found in at_once.items():
        assert torch.equal(found, prefix_rows(model, texts, tokenizer.pad_id, [one_depth])[one_depth])
