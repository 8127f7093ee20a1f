"""A search ready to begin: what its texts make of its space."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.storage import Storage
from training.data.dataset import load_dataset
from training.search.plan import Plan, Start, pin, read_plan
from training.search.prepared import prepare
from training.search.proposing.search_space import dimensions
from training.settings import TrainingSettings


@pytest.mark.parametrize("begun", ["", "2026-11-01T00:00:00+00:00"])
def test_a_new_search_merges_choices_that_its_texts_make_equal_and_an_old_one_keeps_them(
    make_encoder: Callable[..., Path], tmp_path: Path, begun: str
) -> None:
    table = tmp_path / "ads.csv"
    rows = [f"the {word} {number},{word}" for number in range(40) for word in ("nurse", "sales")]
    table.write_text("\n".join(["text,category", *rows]) + "\n", encoding="utf-8")
    settings = TrainingSettings.model_validate(
        {
            "data": {"files": [str(table)], "text": "{text}"},
            "heads": {"category": {}},
            "encoder": {"name": str(make_encoder("bert")), "max_tokens": 32},
        }
    )
    dataset = load_dataset(settings)
    start = Start(1, {"batch_tokens": 4096, "layer_decay": 0.8}, "")
    plan = Plan("one", settings, dataset.digest, begun, start)
    storage = Storage(str(tmp_path / "store"))
    prepared = prepare(plan, storage, dataset)
    assert prepared.assignment.settings == prepared.settings
    if begun:
        assert prepared.plan == plan
        return
    assert (prepared.settings.search_space.batch_tokens, prepared.plan.start) == (1024, replace(start, point={"layer_decay": 0.8}))
    assert "batch_tokens" not in dimensions(prepared.settings)
    # What is pinned is what goes on.
    pinned = pin(storage, prepared.plan)
    assert prepare(read_plan(storage, "one"), storage, dataset).plan == pinned
