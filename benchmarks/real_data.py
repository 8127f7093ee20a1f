"""Names the tables of a benchmark's configuration, wherever they lie."""

import json
from pathlib import Path

import yaml


def table_overrides(config: Path, data: Path) -> list[str]:
    """Return the overrides that put the configuration's tables into a folder."""
    named = yaml.safe_load(config.read_text(encoding="utf-8"))["training"]["data"]
    keys = [key for key in ("files", "validation_files", "test_files") if key in named]
    return [f"training.data.{key}={json.dumps([str(data.resolve() / file) for file in named[key]])}" for key in keys]
