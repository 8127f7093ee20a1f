"""A search ready to begin: what its texts make of its space."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.storage import Storage
from training.data.dataset import load_dataset
from training.search.plan import Plan, Start, pin, read_plan
from training.search.prepared import prepare
from training.search.proposing.search_space import dimensions
from training.search.trials.assignment import Assignment
from training.settings import TrainingSettings

BEGUN = "2026-11-01T00:00:00+00:00"


@pytest.fixture
def settings(make_encoder: Callable[..., Path], tmp_path: Path) -> TrainingSettings:
    table = tmp_path / "ads.csv"
    rows = [f"the {word} {number},{word}" for number in range(40) for word in ("nurse", "sales")]
    table.write_text("\n".join(["text,category", *rows]) + "\n", encoding="utf-8")
    return TrainingSettings.model_validate(
        {
            "data": {"files": [str(table)], "text": "{text}"},
            "heads": {"category": {}},
            "encoder": {"name": str(make_encoder("bert")), "max_tokens": 32},
        }
    )


@pytest.mark.parametrize("begun", ["", BEGUN])
def test_a_new_search_merges_choices_that_its_texts_make_equal_and_an_old_one_keeps_them(
    settings: TrainingSettings, tmp_path: Path, begun: str
) -> None:
    dataset = load_dataset(settings)
    start = Start(1, {"batch_tokens": 4096, "layer_decay": 0.8}, "")
    plan = Plan("one", settings, dataset.digest, begun, start)
    storage = Storage(str(tmp_path / "store"))
    prepared = prepare(plan, storage, dataset)
    assert prepared.assignment.settings == prepared.settings
    if begun:
        assert prepared.plan.start == start
        assert prepared.settings.search_space == settings.search_space
        return
    assert (prepared.settings.search_space.batch_tokens, prepared.plan.start) == (1024, replace(start, point={"layer_decay": 0.8}))
    assert "batch_tokens" not in dimensions(prepared.settings)
    # What is pinned is what goes on.
    pinned = pin(storage, prepared.plan)
    assert prepare(read_plan(storage, "one"), storage, dataset).plan == pinned


def write_pooling(settings: TrainingSettings, content: dict[str, object]) -> None:
    folder = Path(settings.encoder.name) / "1_Pooling"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))


def test_what_a_pooling_of_auto_means_is_written_down_when_a_search_begins(settings: TrainingSettings, tmp_path: Path) -> None:
    storage, dataset = Storage(str(tmp_path / "store")), load_dataset(settings)
    write_pooling(settings, {"pooling_mode": "cls"})
    prepared = prepare(Plan("one", settings, dataset.digest), storage, dataset)
    pin(storage, prepared.plan)
    assert {prepared.settings.encoder.pooling, prepared.assignment.settings.encoder.pooling, prepared.source.pooling} == {"cls"}
    # Whatever the encoder's files or a later release say.
    write_pooling(settings, {"pooling_mode": "lasttoken"})
    again = prepare(read_plan(storage, "one"), storage, dataset)
    assert (again.settings, again.source.pooling, again.assignment.settings) == (prepared.settings, "cls", prepared.settings)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"pooling_mode": "cls"}, "mean"),
        ({"pooling_mode": ["cls", "mean"]}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, "cls"),
        (None, "pooler"),
    ],
)
def test_a_search_of_an_earlier_release_pools_as_it_began(
    settings: TrainingSettings, tmp_path: Path, written: dict[str, object] | None, expected: str
) -> None:
    if written:
        write_pooling(settings, written)
    dataset = load_dataset(settings)
    prepared = prepare(Plan("one", settings, dataset.digest, BEGUN), Storage(str(tmp_path / "store")), dataset)
    assert {prepared.settings.encoder.pooling, prepared.assignment.settings.encoder.pooling, prepared.source.pooling} == {expected}
    # What is set is kept.
    own = settings.model_copy(update={"encoder": settings.encoder.model_copy(update={"pooling": "mean"})})
    assert prepare(Plan("one", own, dataset.digest, BEGUN), Storage(str(tmp_path / "store")), dataset).source.pooling == "mean"


@pytest.mark.parametrize("most", [10, 1_000_000])
def test_of_a_large_table_it_is_said_that_words_are_being_counted(
    settings: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], most: int
) -> None:
    monkeypatch.setattr("training.search.prepared._MANY_TOKENS", most)
    dataset, said = load_dataset(settings), list[str]()
    with_words = Assignment.with_words

    def counting(assignment: Assignment) -> Assignment:
        said.append(capsys.readouterr().out)
        return with_words(assignment)

    monkeypatch.setattr(Assignment, "with_words", counting)
    prepare(Plan("one", settings, dataset.digest), Storage(str(tmp_path / "store")), dataset)
    # Before, not when it is over.
    assert said == [f"words     being counted in {len(dataset.training)} texts, which may take minutes\n" if most == 10 else ""]
