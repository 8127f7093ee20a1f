"""The folder of a report: what is wrong with it is said before anything is computed, and in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.console import run_command
from cluster.errors import StorageError
from cluster.storage import Storage
from training.__main__ import make_parser
from training.registry import Registry
from training.report import folder
from training.report.folder import make_folder, write_pages
from training.search import review


@pytest.fixture
def asked(make_checkpoint: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[int]]:
    """A command that wants a report of a version, and which versions were judged."""
    store, judged = tmp_path / "store", []
    Registry(Storage(str(store))).publish(make_checkpoint(1))
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"cluster: {{storage: {store}}}\n")
    monkeypatch.setattr(review, "review", lambda registry, version, **_: judged.append(version))
    return ["report", "1", "--config", str(settings), "--out"], judged


def test_a_folder_that_cannot_be_one_is_told_before_the_version_is_judged(
    asked: tuple[list[str], list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, judged = asked
    (tmp_path / "file").touch()
    places = {tmp_path / "file": "is a file, but must be a folder", tmp_path / "file/x": "Not a directory"}
    for out, why in places.items():
        assert run_command(make_parser(), [*words, str(out)]) == 2
        assert capsys.readouterr().err == f"error: --out {out}: {why}\nhint:  name a folder that you can write with --out\n"
    # Whoever may do everything is asked as somebody who may not.
    monkeypatch.setattr(folder.os, "access", lambda *_: False)
    assert run_command(make_parser(), [*words, str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"error: --out {tmp_path}/out: may not be written by you\n")
    assert judged == []


def test_pages_are_written_whole_or_told(tmp_path: Path) -> None:
    make_folder(tmp_path / "deep/out")
    write_pages(tmp_path / "deep/out", {"report.html": "ä", "README.md": "b"})
    assert (tmp_path / "deep/out/report.html").read_text(encoding="utf-8") == "ä"
    (tmp_path / "taken/report.html").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"/taken/report\.html: Is a directory$"):
        write_pages(tmp_path / "taken", {"report.html": ""})
