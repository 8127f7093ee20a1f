"""The command that scores a table, without Ray: what it says at the end is what is there."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from cluster.settings import ClusterSettings
from cluster.storage import Storage
from serving.errors import ScoringError
from serving.scoring import command
from serving.scoring.files import Block
from serving.scoring.parts import write_part
from serving.scoring.workers import Done, Work
from serving.settings import ServingSettings

MANIFEST: Any = SimpleNamespace(
    text_template="{title}",
    heads=(SimpleNamespace(name="category", classes=("a", "b")),),
    files={"weights.safetensors": SimpleNamespace(sha256="ab" * 32)},
)
HERE = frozenset({0, 1})


class Workers:
    """Write some of the parts here, and the others on another host's disk."""

    def __init__(self, here: frozenset[int], told: frozenset[int] = HERE) -> None:
        self.here, self.told = here, told
        self.finished: list[int] = []

    def __call__(self, blocks: Sequence[Block], work: Work, workers: int | None = None) -> Iterator[Done]:
        for block in blocks:
            if block.number in self.here:
                write_part(Storage(work.out), block.number, pa.table({"title": ["a"]}))
            self.finished.append(block.number)
            if block.number in self.told:
                yield Done(block.number, block.rows)


def score(folder: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(command, "score_blocks", workers)
    monkeypatch.setattr(command, "connect", lambda _: nullcontext())
    (folder / "ads.csv").write_text("title\na\nb\nc\n")
    arguments = argparse.Namespace(table=str(folder / "ads.csv"), out=str(folder / "out"), text=None, columns=None, scores=False)
    vars(arguments).update(block_rows=2, delimiter=None, overwrite=False, workers=None)
    return command.score(arguments, ClusterSettings(storage=str(folder / "storage")), ServingSettings(), 1, MANIFEST)


def test_parts_that_are_there_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        workers = Workers(HERE)
        assert score(tmp_path, workers, monkeypatch) == 0
    assert workers.finished == []


@pytest.mark.parametrize(
    ("workers", "lost", "finished"),
    [(Workers(frozenset()), 0, [0]), (Workers(frozenset({0})), 1, [0, 1]), (Workers(frozenset({0}), frozenset({0})), 1, [0, 1])],
)
def test_a_part_on_another_hosts_disk_is_not_done(
    workers: Workers, lost: int, finished: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ScoringError, match=f"part-00000{lost}.parquet was written, but is not there") as caught:
        score(tmp_path, workers, monkeypatch)
    assert "every machine mounts" in caught.value.hint
    # The first one that is missing ends it.
    assert workers.finished == finished
    assert score(tmp_path, Workers(HERE), monkeypatch) == 0
