"""Golden texts are drawn by seed, within their bounds, and come back as they were written."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from training.errors import CheckpointError
from training.golden import GOLDEN_FILE, MOST_TOKENS, Golden, choose_golden, read_golden, write_golden


def test_they_are_bounded_in_texts_and_in_tokens() -> None:
    short, long = np.full(1_000, 10), np.full(1_000, 100)
    assert len(set(choose_golden(short, 200, 7))) == 200
    assert len(choose_golden(long, 200, 7)) == MOST_TOKENS // 100
    assert len(choose_golden(np.array([MOST_TOKENS + 1, MOST_TOKENS + 2]), 200, 7)) == 1
    assert len(choose_golden(short[:3], 200, 7)) == 3
    assert not len(choose_golden(short, 0, 7))
    assert not len(choose_golden(short[:0], 200, 7))
    assert list(choose_golden(short, 200, 7)) == list(choose_golden(short, 200, 7)) != list(choose_golden(short, 200, 8))


def make_golden() -> Golden:
    rows = [np.arange(length, dtype=np.int32) for length in (3, 1, 5)]
    return Golden(rows, {"job": np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32), "level": np.eye(3, dtype=np.float32)})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    golden = make_golden()
    write_golden(tmp_path, golden)
    found = read_golden(tmp_path)
    assert found is not None
    assert all(np.array_equal(one, other) for one, other in zip(found.rows, golden.rows, strict=True))
    assert found.logits.keys() == golden.logits.keys()
    assert all(np.array_equal(found.logits[head], values) for head, values in golden.logits.items())


def test_a_version_may_have_none(tmp_path: Path) -> None:
    assert read_golden(tmp_path) is None


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"ids": np.zeros(3, np.int32)}, "offsets"),
        ({"ids": np.zeros(3, np.int32), "offsets": np.array([0, 3]), "logits/job": np.zeros((2, 2), np.float32)}, "equally many"),
        ({"ids": np.zeros(3, np.int32), "offsets": np.array([0])}, "equally many"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, tensors: dict[str, np.ndarray], said: str) -> None:  # type: ignore[type-arg]
    save_file(tensors, tmp_path / GOLDEN_FILE)
    with pytest.raises(CheckpointError, match=said):
        read_golden(tmp_path)


@pytest.mark.parametrize(("tokens", "texts"), [(1, 1), (3, 1), (4, 2), (9, 3), (100, 3)])
def test_the_first_of_them_and_the_others(tokens: int, texts: int) -> None:
    first, others = make_golden().divide(tokens)
    assert (len(first.rows), len(others.rows)) == (texts, 3 - texts)
    assert all(len(values) == texts for values in first.logits.values())
    assert (first.labels, others.labels) == (2 * texts, 2 * (3 - texts))
