"""Settings files of small searches, with a Ray of their own or for one that is up."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.facts import Facts
from tests.small_searches import CLUSTER, attach, running_ray, write_table


@pytest.fixture(scope="module")
def ray_that_is_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facts]:
    with running_ray(tmp_path_factory.mktemp("ray")) as facts:
        yield facts


@pytest.fixture
def project(tmp_path: Path, make_encoder: Callable[..., Path]) -> Callable[..., Path]:
    """Write a table and a settings file, whose commands start a Ray of their own; returns the settings file."""
    write_table(tmp_path / "table.csv", lambda index: "".join(chr(ord("d") + (index * step) % 20) + " " for step in (1, 3, 7, 11)))

    def write(**training: Any) -> Path:
        settings = {
            "cluster": CLUSTER | {"storage": str(tmp_path / "storage")},
            "training": {
                "data": {"files": [str(tmp_path / "table.csv")]},
                "heads": {"job": {}, "letter": {}},
                "encoder": {"name": str(make_encoder("bert")), "max_tokens": 16},
                "fit": {"epochs": 3, "encoder_learning_rate": 5e-3, "head_learning_rate": 2e-2, "batch_texts": 8},
                "search_space": {"encoder_learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}},
                "tuning": {"num_samples": 4, "max_concurrent_trials": 2, "confirm_top": 2, "confirm_seeds": 1},
            }
            | training,
        }
        path = tmp_path / "ray_config.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return write


@pytest.fixture
def attached(project: Callable[..., Path], ray_that_is_up: Facts) -> Callable[..., Path]:
    """Write the same, whose commands use the Ray that is up."""

    def write(**training: Any) -> Path:
        path = project(**training)
        attach(ray_that_is_up, path.parent / "storage")
        return path

    return write
