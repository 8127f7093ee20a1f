"""training.split: shares, groups, and the same split on every machine."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from training.data import split
from training.data.split import connected, stratified_folds, stratified_split

FRACTIONS = (0.15, 0.15)


def draw(count: int, seed: int = 0) -> tuple[dict[str, np.ndarray], list[str]]:
    """Make labels of two heads that depend on each other, one with missing labels, and one key an example."""
    chance = np.random.default_rng(seed)
    category = chance.choice(6, count, p=[0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
    level = np.where(chance.random(count) < 0.15, -1, (category + chance.integers(0, 3, count)) % 5)
    return {"category": category.astype(np.int64), "level": level.astype(np.int64)}, [f"text {number}" for number in range(count)]


def counts(labels: np.ndarray, indices: np.ndarray) -> Counter[int]:
    return Counter(labels[indices].tolist())


@pytest.mark.parametrize("fractions", [(0.15, 0.15), (0.2, 0.0), (0.1, 0.3)])
def test_every_class_of_every_head_is_divided_by_the_fractions(fractions: tuple[float, float]):
    labels, keys = draw(1000)
    splits = stratified_split(labels, None, fractions, 7, keys)
    assert sorted(np.concatenate(splits).tolist()) == list(range(1000))
    for share, indices in zip((1 - sum(fractions), *fractions), splits, strict=True):
        assert abs(len(indices) - 1000 * share) <= 1
        for column in labels.values():
            for label, total in Counter(column.tolist()).items():
                assert abs(counts(column, indices)[label] - total * share) <= 2


def test_combinations_over_heads_are_divided_too():
    labels, keys = draw(2000)
    joint = labels["category"] * 10 + labels["level"]
    for share, indices in zip((0.7, 0.15, 0.15), stratified_split(labels, None, FRACTIONS, 7, keys), strict=True):
        for label, total in Counter(joint.tolist()).items():
            assert abs(counts(joint, indices)[label] - total * share) <= max(2, 0.02 * total)


def test_the_order_of_rows_does_not_matter():
    labels, keys = draw(400)
    groups = [f"g{hash_of(key) % 60}" for key in keys]
    order = np.random.default_rng(1).permutation(400)
    shuffled = {head: column[order] for head, column in labels.items()}
    for given in (None, groups):
        plain = stratified_split(labels, given, FRACTIONS, 7, keys)
        other = stratified_split(
            shuffled, None if given is None else [given[place] for place in order], FRACTIONS, 7, [keys[place] for place in order]
        )
        for indices, moved in zip(plain, other, strict=True):
            assert {keys[place] for place in indices} == {keys[order[place]] for place in moved}


def hash_of(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")


@pytest.mark.parametrize(("group_count", "expected"), [(0, "f11404c1fb1b5f29"), (50, "0f07facd96721acf")])
def test_the_split_is_the_same_on_every_machine(group_count: int, expected: str):
    # Labels from hashes: NumPy's generators may change between versions.
    keys = [f"text {number}" for number in range(300)]
    labels = {"category": np.array([hash_of(key) % 6 for key in keys]), "level": np.array([hash_of(key) // 7 % 5 - 1 for key in keys])}
    groups = [f"g{hash_of(key) // 100 % group_count}" for key in keys] if group_count else None
    splits = [indices.tolist() for indices in stratified_split(labels, groups, FRACTIONS, 7, keys)]
    assert hashlib.sha256(repr(splits).encode()).hexdigest()[:16] == expected


def test_another_seed_gives_another_split():
    labels, keys = draw(300)
    assert stratified_split(labels, None, FRACTIONS, 7, keys)[2].tolist() != stratified_split(labels, None, FRACTIONS, 8, keys)[2].tolist()


def test_equal_keys_stay_together():
    labels, keys = draw(600)
    keys = [f"text {number % 350}" for number in range(600)]
    splits = [{keys[place] for place in indices} for indices in stratified_split(labels, None, FRACTIONS, 7, keys)]
    assert sum(map(len, splits)) == len(set.union(*splits))


def test_groups_stay_whole_and_shares_hold():
    labels, keys = draw(3000)
    # Sizes from 1 to over 100, as groups of real data have.
    groups = [f"g{int(200 * (hash_of(key) / 2**32) ** 3)}" for key in keys]
    splits = stratified_split(labels, groups, FRACTIONS, 7, keys)
    names = [{groups[place] for place in indices} for indices in splits]
    assert sum(map(len, names)) == len(set.union(*names))
    for share, indices in zip((0.7, 0.15, 0.15), splits, strict=True):
        assert abs(len(indices) / 3000 - share) <= 0.01
        for column in labels.values():
            for label, total in Counter(column.tolist()).items():
                assert abs(counts(column, indices)[label] / len(indices) - total / 3000) <= 0.02


def test_without_a_group_only_equal_keys_stay_together():
    assert connected(["a", "b", "a", "c"], ["", "", "", ""]) == [[0, 2], [1], [3]]


def test_groups_and_keys_connect_through_others():
    assert connected(["a", "b", "b", "c", "d"], ["x", "x", "y", "y", "z"]) == [[0, 1, 2, 3], [4]]


@pytest.mark.parametrize("fractions", [(0.15, 0.15), (0.45, 0.45)])
def test_every_class_is_in_training(fractions: tuple[float, float]):
    classes = [label for label in range(40) for _ in range(1 + label % 4)]
    labels = {"category": np.array(classes), "level": np.arange(len(classes)) % 3}
    keys = [f"text {number}" for number in range(len(classes))]
    for groups in (None, [f"g{number // 2}" for number in range(len(classes))]):
        training, _, _ = stratified_split(labels, groups, fractions, 7, keys)
        assert set(labels["category"][training].tolist()) == set(range(40))


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_examples_do_not_crash(count: int):
    labels = {"category": np.arange(count, dtype=np.int64)}
    splits = stratified_split(labels, None, FRACTIONS, 7, [f"text {number}" for number in range(count)])
    assert sum(map(len, splits)) == count


def test_one_group_of_everything_is_for_training():
    labels, keys = draw(20)
    splits = stratified_split(labels, ["g"] * 20, FRACTIONS, 7, keys)
    assert [len(indices) for indices in splits] == [20, 0, 0]


def test_heads_may_have_any_names():
    labels, keys = draw(100)
    renamed = {"all": labels["category"]}
    assert sum(map(len, stratified_split(renamed, None, FRACTIONS, 7, keys))) == 100


@pytest.mark.parametrize("most", [20_000, 10])
def test_folds_hold_every_example_once_alike_and_keep_groups_together(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "_MOST_BALANCED", most)
    chance = np.random.default_rng(3)
    labels = {"a": chance.integers(-1, 4, 400), "b": chance.integers(0, 3, 400)}
    keys = [f"text {index // 2}" for index in range(400)]
    groups = [f"group {index // 4}" if index < 200 else "" for index in range(400)]
    folds = stratified_folds(labels, groups, 4, 7, keys)
    assert set(folds.tolist()) == {0, 1, 2, 3}
    for index in range(0, 200, 4):
        assert len(set(folds[index : index + 4].tolist())) == 1
    for index in range(0, 400, 2):
        assert folds[index] == folds[index + 1]
    order = chance.permutation(400)
    moved = stratified_folds(
        {head: values[order] for head, values in labels.items()}, [groups[at] for at in order], 4, 7, [keys[at] for at in order]
    )
    assert np.array_equal(moved, folds[order])
    if most > 400:
        sizes = np.bincount(folds)
        assert sizes.max() - sizes.min() <= 8
        for values in labels.values():
            for value in np.unique(values):
                assert np.bincount(folds[values == value], minlength=4).min() >= 0.7 * (values == value).sum() / 4


@pytest.mark.parametrize(("texts", "has_groups"), [(1500, False), (240, True)])
def test_folds_are_of_equal_size_where_most_classes_are_rare(texts: int, has_groups: bool) -> None:
    # No fold is for training: where a class has one text, it may be in any.
    numbers = np.arange(texts)
    rare = {"common": numbers % 5, "rare": np.minimum(numbers, texts * 3 // 5)}
    groups = [f"group {index // 2}" for index in range(texts)] if has_groups else None
    folds = stratified_folds(rare, groups, 4, 7, [f"text {index}" for index in range(texts)])
    assert np.bincount(folds, minlength=4).tolist() == pytest.approx([texts / 4] * 4, abs=8)
    alone = stratified_folds({"rare": np.arange(40)}, None, 4, 7, [f"text {index}" for index in range(40)])
    assert np.bincount(alone, minlength=4).tolist() == [10, 10, 10, 10]


def test_exchanges_are_left_out_where_they_would_take_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, keys = draw(200)
    groups = [f"group {index // 4}" for index in range(200)]
    exchanged: list[int] = []
    exchange = split._Plan.exchange
    monkeypatch.setattr(split._Plan, "exchange", lambda plan: (exchanged.append(1), exchange(plan))[1])
    stratified_split(labels, groups, FRACTIONS, 7, keys)
    assert exchanged
    exchanged.clear()
    monkeypatch.setattr(split, "_MOST_COMPARED", 50 * 50)
    splits = stratified_split(labels, groups, FRACTIONS, 7, keys)
    assert (sum(map(len, splits)), exchanged) == (200, [])
