"""From tables to examples: texts, class indices by head, three splits.

What is left out or looks wrong is not silent: it is an error, or a `Note` with its count and first rows. It does not
know tokens or models.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.storage import sha256
from training.data.findings import Findings, Note, counted, first_rows
from training.data.labels import MISSING
from training.data.rows import SPLITS, Pools, Reading, Row, read_files, text_key, without_duplicates, without_leaks
from training.data.split import connected, stratified_folds, stratified_split
from training.data_settings import DataSettings
from training.errors import DataError
from training.settings import TrainingSettings

Indices = NDArray[np.int64]
Classes = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Examples:
    """Texts with their labels, in the order of the files.

    Attributes:
        texts: As the template makes them.
        labels: Head to (texts,) int64, a class index or `MISSING`.
        rows: Where each comes from, for messages and reports: "ads.csv, row 118".
        groups: By `split.group_by`, "" being none; None without that setting.
    """

    texts: tuple[str, ...]
    labels: dict[str, Indices]
    rows: tuple[str, ...]
    groups: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Indices | Sequence[int]) -> "Examples":
        """Return the examples at these positions, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        positions: list[int] = chosen.tolist()
        return Examples(
            texts=tuple(self.texts[position] for position in positions),
            labels={head: labels[chosen] for head, labels in self.labels.items()},
            rows=tuple(self.rows[position] for position in positions),
            groups=None if self.groups is None else tuple(self.groups[position] for position in positions),
        )


@dataclass(frozen=True)
class Dataset:
    """Everything a search learns from, chooses by and reports on.

    Attributes:
        classes: Head to its ordered classes.
        training: To learn from.
        validation: To choose by.
        test: For the final report; may be empty.
        digest: SHA-256 over heads, texts, labels and split, but not file names, formats, line ends or the order of rows.
        notes: What was left out or looks wrong.
    """

    classes: Classes
    training: Examples
    validation: Examples
    test: Examples
    digest: str
    notes: tuple[Note, ...]

    def splits(self) -> dict[str, Examples]:
        """Return the three splits by name."""
        return {"training": self.training, "validation": self.validation, "test": self.test}


def load_dataset(settings: TrainingSettings) -> Dataset:
    """Read the tables, check them and divide them.

    Raises:
        DataError: With every finding in the files; where they are good, every finding about classes and leaks.
    """
    return build_dataset(settings, read_files(settings))


def build_dataset(settings: TrainingSettings, reading: Reading) -> Dataset:
    """Divide what was read.

    Raises:
        DataError: See `load_dataset`.
    """
    data = settings.data
    reading.findings.raise_any()
    findings = Findings()
    classes = _classes(settings, reading.pools, findings)
    pools: Pools = {}
    notes = list(reading.notes)
    for name in SPLITS:
        pools[name], found = without_duplicates(name, reading.pools[name], data)
        notes += found
    pools, found = without_leaks(pools, data, findings)
    findings.raise_any()
    examples = {name: _examples(pool, classes, data) for name, pool in pools.items()}
    splits = _divided({**examples, "training": _chosen(examples["training"], data)}, data)
    notes += [*found, *_class_notes(classes, splits)]
    return Dataset(classes, splits["training"], splits["validation"], splits["test"], digest=_digest(classes, splits), notes=tuple(notes))


def _classes(settings: TrainingSettings, pools: Pools, findings: Findings) -> Classes:
    """Take the given classes or find them in the training rows; note what cannot be learnt or judged."""
    classes: Classes = {}
    for head, given in settings.heads.items():
        found = sorted({row.labels[head] for row in pools["training"] if head in row.labels})
        if len(found) < 2:
            has = f"has one class, {found[0]!r}" if found else "has no labelled training row"
            findings.add(f"head {head!r} {has}; nothing to learn", f"remove training.heads.{head}, or check its column")
        classes[head] = given.classes or tuple(found)
        _check_unseen(head, set(classes[head]), pools, findings)
    return classes


def _check_unseen(head: str, known: set[str], pools: Pools, findings: Findings) -> None:
    for name in SPLITS[1:]:
        unseen: dict[str, list[str]] = {}
        for row in pools[name]:
            if head in row.labels and row.labels[head] not in known:
                unseen.setdefault(row.labels[head], []).append(row.where)
        for label in sorted(unseen):
            rows = f"{counted(len(unseen[label]), 'row', 'rows')}: {first_rows(unseen[label], len(unseen[label]))}"
            hint = "correct the labels, or add training rows of that class"
            findings.add(f"head {head!r}: class {label!r} is in the {name} files but in no training row ({rows})", hint)


def _chosen(pool: Examples, data: DataSettings) -> Examples:
    """Take at most `max_rows` examples with the class shares of all; groups and copies of a text stay whole."""
    most = data.max_rows
    if most is None or len(pool) <= most:
        return pool
    units = connected(_keys(pool), pool.groups)
    if min(map(len, units)) > most:
        raise DataError(
            f"training.data.max_rows is {most}, but the smallest group of rows that stay together has {min(map(len, units)):,}",
            "raise max_rows, or give split.group_by finer groups",
        )
    pool = pool.take(sorted(index for unit in units if len(unit) <= most for index in unit))
    if len(pool) > most:
        chosen, _, _ = stratified_split(pool.labels, pool.groups, (1.0 - most / len(pool), 0.0), data.split.seed, _keys(pool))
        pool = pool.take(chosen)
    return _trimmed(pool, most)


def _trimmed(pool: Examples, most: int) -> Examples:
    """Remove groups that are just large enough until at most so many examples are left."""
    keys = _keys(pool)
    units = sorted(connected(keys, pool.groups), key=lambda unit: (len(unit), min(sha256(keys[index].encode()) for index in unit)))
    while (excess := sum(map(len, units)) - most) > 0:
        units.remove(next((unit for unit in units if len(unit) >= excess), units[-1]))
    return pool.take(sorted(index for unit in units for index in unit))


def folds_of(examples: Examples, count: int, seed: int) -> Indices:
    """Divide examples into folds for cross-validation; copies of a text and groups stay together.

    Returns:
        The fold of each, (texts,), from 0.
    """
    return stratified_folds(examples.labels, examples.groups, count, seed, _keys(examples))


def _keys(pool: Examples) -> list[str]:
    return [text_key(text) for text in pool.texts]


def _examples(pool: Sequence[Row], classes: Classes, data: DataSettings) -> Examples:
    labels = {}
    for head, names in classes.items():
        index = {name: position for position, name in enumerate(names)}
        labels[head] = np.array([index[row.labels[head]] if head in row.labels else MISSING for row in pool], dtype=np.int64)
    groups = tuple(row.group for row in pool) if data.split.group_by else None
    return Examples(tuple(row.text for row in pool), labels, tuple(row.where for row in pool), groups)


def _divided(pools: Mapping[str, Examples], data: DataSettings) -> dict[str, Examples]:
    """Divide the training pool for the splits that have no files of their own."""
    split = data.split
    given = {"validation": bool(data.validation_files), "test": bool(data.test_files)}
    fractions = (0.0 if given["validation"] else split.validation_fraction, 0.0 if given["test"] else split.test_fraction)
    if not given["validation"] and not split.validation_fraction:
        raise DataError(
            "training.data.split.validation_fraction is 0 and training.data.validation_files is empty, so nothing can be chosen by",
            "give one of the two",
        )
    pool = pools["training"]
    indices = stratified_split(pool.labels, pool.groups, fractions, split.seed, _keys(pool))
    divided = dict(zip(SPLITS, map(pool.take, indices), strict=True))
    result = {name: pools[name] if given.get(name) else examples for name, examples in divided.items()}
    for name, share in zip(SPLITS, (1.0, *fractions), strict=True):
        if not len(result[name]) and (share or given.get(name)):
            raise DataError(f"no examples are left for {name}: {_too_few(pool)}", "give more rows, or files for each split")
    return result


def _too_few(pool: Examples) -> str:
    units = len(connected(_keys(pool), pool.groups))
    return f"{counted(len(pool), 'training row', 'training rows')} in {counted(units, 'group', 'groups')} of rows that stay together"


def _class_notes(classes: Classes, splits: Mapping[str, Examples]) -> list[Note]:
    notes: list[Note] = []
    for head, names in classes.items():
        counts = np.bincount(splits["training"].labels[head] + 1, minlength=len(names) + 1)[1:].tolist()
        for few, words in ((0, "no training example"), (1, "one training example")):
            rare = [name for name, count in zip(names, counts, strict=True) if count == few]
            if rare:
                shown = ", ".join(map(repr, rare[:5])) + (", …" if len(rare) > 5 else "")
                message = f"head {head!r}: {counted(len(rare), 'class', 'classes')} with {words}: {shown}"
                notes.append(Note("rare_class", message, len(rare)))
        for split, examples in splits.items():
            if len(examples) and not np.any(examples.labels[head] != MISSING):
                notes.append(Note("unlabelled_head", f"head {head!r} has no labelled {split} example", len(examples)))
    if not len(splits["test"]):
        notes.append(Note("empty_split", "there are no test examples, so the result cannot be reported on unseen texts", 0))
    return notes


def _digest(classes: Classes, splits: Mapping[str, Examples]) -> str:
    """Hash the sorted hashes of each split's examples: the order of rows is no part of it."""
    whole = hashlib.sha256(json.dumps(classes, sort_keys=True).encode())
    for name, examples in splits.items():
        named = {head: [(*names, None)[index] for index in examples.labels[head].tolist()] for head, names in sorted(classes.items())}
        contents = zip(examples.texts, *named.values(), strict=True)
        hashes = sorted(hashlib.sha256(json.dumps(content).encode()).digest() for content in contents)
        whole.update(name.encode() + len(hashes).to_bytes(8, "big") + b"".join(hashes))
    return whole.hexdigest()
