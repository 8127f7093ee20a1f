"""A table through a real Ray Data: the predictor's own answers, and on with what is missing after an interruption."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from cluster.console import run_command
from cluster.storage import Storage
from serving.__main__ import make_parser
from serving.predictor import Predictor
from training.registry import Registry

# Ray Data warns of its own defaults.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")]

ROWS = 200
BLOCK_ROWS = 30


@pytest.fixture
def table(tmp_path: Path) -> Path:
    words = ["nurse", "sales", "driver", "teacher", "school", "master"]
    rows = [{"id": number, "title": words[number % 6], "text": f"{words[number % 5]} " * (number % 40)} for number in range(ROWS)]
    rows[77]["text"] = "x" * 3_000
    path = tmp_path / "ads.parquet"
    pd.DataFrame(rows).to_parquet(path)
    return path


def test_a_table_is_scored_and_gone_on_with(
    tmp_path: Path, table: Path, make_checkpoint: Callable[[int], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = make_checkpoint(0)
    storage, out = tmp_path / "storage", tmp_path / "answers.parquet"
    registry = Registry(Storage(str(storage)))
    registry.promote(registry.publish(checkpoint))
    words = ["score", str(table), str(out), "--workers", "2", "--block-rows", str(BLOCK_ROWS), "--scores"]
    sections = {"cluster.storage": storage, "cluster.num_cpus": 2, "cluster.num_gpus": 0, "cluster.object_store_bytes": 100_000_000}
    sections |= {"serving.max_characters": 2_000, "serving.keep_calibration": "false"}
    capfd.readouterr()
    command = [*words, *(word for key, value in sections.items() for word in ("--set", f"{key}={value}"))]

    assert run_command(make_parser(), command) == 0
    printed = capfd.readouterr()
    assert "scored  200 rows in 7 parts" in printed.out
    assert "rows with an error: 1" in printed.out
    assert {line.split()[0] for line in printed.out.splitlines()} == {"scoring:", "scored", "answers"}
    # One line of Ray's core, about an argument that Ray Data itself keeps.
    assert not [line for line in printed.err.splitlines() if "core_worker.cc" not in line]
    scored = pd.read_parquet(out)
    assert list(scored["id"]) == list(range(ROWS))
    compare(scored, Predictor.load(checkpoint, 1))

    parts = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    lost = [out / "part-000001.parquet", out / "part-000006.parquet"]
    for path in lost:
        path.unlink()
    (out / ".tmp-interrupted").write_bytes(lost[0].name.encode())
    assert run_command(make_parser(), command) == 0
    assert "5 of 7 parts are there already" in capfd.readouterr().out
    again = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert {path for path in parts if again[path] != parts[path]} == set(lost)
    assert not (out / ".tmp-interrupted").exists()
    compare(pd.read_parquet(out), Predictor.load(checkpoint, 1))


def compare(scored: pd.DataFrame, predictor: Predictor) -> None:
    """Each row has the answer that its text gets alone."""
    for row in scored.to_dict("records"):
        assert row["version"] == 1
        if row["id"] == 77:
            assert row["error"] == "is longer than 2000 characters"
            assert pd.isna(row["category"])
            continue
        (answer,) = predictor.compute(predictor.tokenize([f"{row['title']}: {row['text']}"]))
        assert pd.isna(row["error"])
        assert (row["tokens"], row["truncated"]) == (answer.tokens, answer.truncated)
        for head, told in answer.heads.items():
            assert row[head] == told.class_
            assert row[f"{head}_probability"] == pytest.approx(told.probability, abs=1e-5)
            assert list(row[f"{head}_scores"]) == pytest.approx(list(told.scores.values()), abs=1e-5)
