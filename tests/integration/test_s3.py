"""The whole road with everything in a store of objects: a search, its version, an answer."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cluster.session import free_port
from cluster.storage import Storage
from tests.ports import port_shift
from tests.s3 import new_folder
from tests.small_searches import CLUSTER, ROOT, training, training_here, write_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2_400)]


def test_a_search_its_version_and_an_answer_need_no_shared_disk(bucket: str, tmp_path: Path, make_encoder: Callable[..., Path]) -> None:
    write_table(tmp_path / "table.csv", lambda index: chr(ord("d") + index % 20))
    storage = new_folder(bucket)
    settings = {
        "cluster": CLUSTER | {"storage": storage},
        "training": {
            "data": {"files": [str(tmp_path / "table.csv")]},
            "heads": {"job": {}, "letter": {}},
            "encoder": {"name": str(make_encoder("bert")), "max_tokens": 16},
            "fit": {"epochs": 2, "batch_texts": 8},
            "tuning": {"num_samples": 2, "max_concurrent_trials": 1, "confirm_top": 0},
        },
        "serving": {
            "port": free_port(18_700 + port_shift()),
            "precision": "float32",
            "min_replicas": 1,
            "max_replicas": 1,
            "ready_timeout_s": 600,
        },
    }
    path = tmp_path / "ray_config.yaml"
    path.write_text(yaml.safe_dump(settings))
    searched = training(path, "tune", "--name", "one")
    assert searched.returncode == 0, searched.stdout + searched.stderr
    published = training_here(path, "publish", "--promote")
    assert "production → version 1" in published.stdout, published.stderr
    words = [sys.executable, "-m", "serving", "run", "--config", str(path), "--ask", "the nurse a", "--once"]
    served = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert served.returncode == 0, served.stdout + served.stderr
    assert "nurse" in served.stdout
    assert json.loads(Storage(storage).read_bytes("searches/one/result.json"))["best"] is not None
    # Nothing was written beside the store.
    assert sorted(file.name for file in tmp_path.iterdir() if file.name != "encoder-bert") == ["ray_config.yaml", "table.csv"]
