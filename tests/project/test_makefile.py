"""`make` itself: what is listed, and that cleaning takes away leftovers and nobody's work."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEFT = (
    ".tools/bin/x", ".pytest_cache/x", ".mypy_cache/x", ".ruff_cache/x", ".hypothesis/x", "twohead.egg-info/x", "sbom.json",
    "cluster/__pycache__/a.pyc", "tests/unit/__pycache__/a.pyc",
)  # fmt: skip
WORK = (
    "ads.csv", ".twohead/registry/versions/000001/manifest.json", ".twohead/searches/ads/search.json", "crash-1", "cluster/storage.py",
    "training/a.py", "serving/a.py", "benchmarks/LOG.md", "notes/__pycache__/x", "venv/bin/python", "build/mine", "ray_config.yaml",
)  # fmt: skip


def make(folder: Path, *words: str) -> str:
    return subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("target", "kept"), [("clean", [".venv/bin/python", ".venv/lib/__pycache__/a.pyc"]), ("clean-all", [])])
def test_cleaning_takes_leftovers_and_nobodys_work(tmp_path: Path, target: str, kept: list[str]) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (*LEFT, *WORK, ".venv/bin/python", ".venv/lib/__pycache__/a.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    # A second time there is nothing left to take.
    for _ in range(2):
        make(tmp_path, target)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {*WORK, *kept, "Makefile"}


def test_every_target_is_listed() -> None:
    targets = {line.split()[0] for line in make(ROOT).splitlines()}
    assert {"install", "demo", "test", "lint", "clean", "clean-all"} <= targets


def test_the_oldest_fsspec_that_is_allowed_knows_exclusive_writes() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (floor,) = [one.partition(">=")[2] for one in project["dependencies"] if one.startswith("fsspec")]
    # `pipe_file(…, mode="create")`, which `cluster.storage` calls, came with 2024.12.
    assert tuple(map(int, floor.split("."))) >= (2024, 12)
