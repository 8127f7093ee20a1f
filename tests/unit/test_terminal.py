"""What `tune` prints at its end: the record in a screenful, whatever it lacks."""

from collections.abc import Callable
from typing import Any

import pytest

from training.search.terminal import describe_record


def test_it_says_what_was_found_against_what_and_by_which_seeds(make_record: Callable[..., dict[str, Any]]) -> None:
    record = make_record()
    said = describe_record(record)
    assert said.startswith(record["headline"])
    for head in record["heads"]:
        figures, (low, high) = record["metrics"]["test"][head], record["intervals"][head]["macro_f1"]
        assert f"{figures['macro_f1']:.3f} [{low:.3f}, {high:.3f}]" in said
    for one in record["comparisons"]:
        assert f"{one['difference']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]" in said
    assert f"trial {record['confirmed'][0]['position']}" in said
    assert f"all heads right: {record['metrics']['test']['joint_accuracy']:.3f}" in said


@pytest.mark.parametrize("lacking", ["comparisons", "confirmed"])
def test_a_small_search_lacks_parts(make_record: Callable[..., dict[str, Any]], lacking: str) -> None:
    said = describe_record(make_record() | {lacking: []})
    assert ("so it is" in said) == (lacking != "comparisons")
    assert ("trained again" in said) == (lacking != "confirmed")


def test_a_head_without_labels_is_left_out(make_record: Callable[..., dict[str, Any]]) -> None:
    record = make_record()
    head = next(iter(record["heads"]))
    blank = dict.fromkeys(record["metrics"]["test"][head]) | {"count": 0}
    metrics = {**record["metrics"], "test": {**record["metrics"]["test"], head: blank, "joint_accuracy": None}}
    said = describe_record(record | {"metrics": metrics, "comparisons": []})
    assert "all heads right" not in said
    assert f"\n{head} " not in said
