"""Examines the data before anything starts: what is there, what looks wrong, what must be put right.

It does not know tokenizers (a function counts tokens for it) or how a command prints. It shows places, columns and
classes, never texts.
"""

import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.console import table
from training.data.dataset import Dataset, build_dataset
from training.data.findings import SHOWN_ROWS, counted
from training.data.rows import SPLITS, Reading, head_columns, read_files, text_key
from training.errors import DataError
from training.settings import TrainingSettings

CountTokens = Callable[[Sequence[str]], Sequence[int]]
# Split to counts of one head; the class None is "no label".
_Counts = Mapping[str, Counter[str | None]]


@dataclass(frozen=True)
class FactTable:
    """One block of the report.

    Attributes:
        title: What it shows.
        header: Titles of its columns; the first column is text, the others are numbers or text.
        rows: Its cells.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclass(frozen=True)
class Examination:
    """What a check found.

    Attributes:
        errors: What must be put right; no training before that.
        warnings: What a user should know.
        facts: Files, splits, heads and texts, as far as they could be read.
        hint: What to do about the first error.
    """

    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    facts: tuple[FactTable, ...]
    hint: str = ""


def examine(settings: TrainingSettings, count_tokens: CountTokens | None = None, max_tokens: int | None = None) -> Examination:
    """Read and divide the data as training would, and report on it.

    Args:
        settings: Name the files, the heads and the split.
        count_tokens: Counts each text's tokens as the model will see them, special ones included; None leaves them out.
        max_tokens: Longer texts will be cut.
    """
    reading = read_files(settings)
    files = _files(reading)
    try:
        dataset = build_dataset(settings, reading)
    except DataError as error:
        errors = tuple(line.strip() for line in error.message.split("\n"))
        heads = [_head(head, (), _pool_counts(reading, head)) for head in settings.heads if any(reading.pools.values())]
        return Examination(errors, tuple(map(str, reading.notes)), (files, *heads), error.hint)
    facts = [files, _splits(dataset)]
    facts += [_head(head, classes, _split_counts(dataset, head)) for head, classes in dataset.classes.items()]
    warnings = [*map(str, dataset.notes), *_similar_classes(dataset), *_conflicts(reading, settings), *_divided_groups(dataset)]
    if count_tokens is not None:
        texts, rows = ([item for examples in dataset.splits().values() for item in getattr(examples, name)] for name in ("texts", "rows"))
        lengths = count_tokens(texts)
        facts.append(_tokens(lengths, max_tokens))
        warnings += _cut_texts(lengths, rows, max_tokens)
    return Examination((), tuple(warnings), tuple(facts))


def render(examination: Examination) -> str:
    """Return the report as a screen of plain text."""
    blocks = [_block(fact) for fact in examination.facts if fact.rows]
    blocks += ["\n".join(f"warning: {warning}" for warning in examination.warnings)] if examination.warnings else []
    blocks += ["\n".join(f"error: {error}" for error in examination.errors)] if examination.errors else []
    if examination.hint:
        blocks[-1] += f"\nhint:  {examination.hint}"
    errors, warnings = len(examination.errors), len(examination.warnings)
    blocks.append(f"{counted(errors, 'error', 'errors')}, {counted(warnings, 'warning', 'warnings')}")
    return "\n\n".join(blocks)


def _block(fact: FactTable) -> str:
    numbers = [column for column in range(1, len(fact.header)) if all(isinstance(row[column], int) for row in fact.rows)]
    cells = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in fact.rows]
    lines = table(fact.header, cells, right=numbers).split("\n")
    return "\n".join([fact.title, *(f"  {line}" for line in lines)])


def _files(reading: Reading) -> FactTable:
    rows = tuple((name, rows, used, pool) for name, pool, rows, used in reading.files)
    return FactTable("Files", ("file", "rows", "used", "for"), rows)


def _splits(dataset: Dataset) -> FactTable:
    splits = dataset.splits()
    total = sum(map(len, splits.values()))
    rows = tuple((name, len(examples), f"{len(examples) / total:.1%}") for name, examples in splits.items())
    return FactTable(f"Examples ({total:,}, digest {dataset.digest[:12]})", ("split", "examples", "share"), rows)


def _head(head: str, classes: Sequence[str], counts: _Counts) -> FactTable:
    """Tabulate a head's classes by split; the given ones first, in their order."""
    found = sorted({name for counter in counts.values() for name in counter if name is not None})
    names: list[str | None] = [*dict.fromkeys([*classes, *found])]
    rows = [(name, *(counter[name] for counter in counts.values())) for name in names]
    missing = tuple(counter[None] for counter in counts.values())
    return FactTable(f"Head {head} ({counted(len(names), 'class', 'classes')})", ("class", *counts), (*rows, ("(no label)", *missing)))


def _pool_counts(reading: Reading, head: str) -> _Counts:
    return {name: Counter(row.labels.get(head) for row in reading.pools[name]) for name in SPLITS}


def _split_counts(dataset: Dataset, head: str) -> _Counts:
    names: tuple[str | None, ...] = (*dataset.classes[head], None)
    return {name: Counter(names[index] for index in examples.labels[head].tolist()) for name, examples in dataset.splits().items()}


def _similar_classes(dataset: Dataset) -> list[str]:
    """Warn of classes that differ in case, white space or the form of a character only."""
    warnings = []
    for head, classes in dataset.classes.items():
        alike: dict[str, list[str]] = {}
        for name in classes:
            alike.setdefault(text_key(unicodedata.normalize("NFKC", name)).casefold(), []).append(name)
        for names in alike.values():
            if len(names) > 1:
                warnings.append(f"head {head!r}: the classes {', '.join(map(repr, names))} look alike; are they one?")
    return warnings


def _conflicts(reading: Reading, settings: TrainingSettings) -> list[str]:
    """Warn of equal texts with different classes on a head."""
    warnings = []
    for head, column in head_columns(settings).items():
        seen: dict[str, dict[str, str]] = {}
        for name in SPLITS:
            for row in reading.pools[name]:
                if head in row.labels:
                    seen.setdefault(row.key, {}).setdefault(row.labels[head], row.where)
        conflicts = [" and ".join(f"{where} ({label!r})" for label, where in labels.items()) for labels in seen.values() if len(labels) > 1]
        if conflicts:
            texts = counted(len(conflicts), "text stands", "texts stand")
            warnings.append(f"column {column!r}: {texts} with different classes: {_first(conflicts)}")
    return warnings


def _divided_groups(dataset: Dataset) -> list[str]:
    """Warn of groups in two splits, which only files given for a split can cause."""
    splits = {name: set(examples.groups or ()) - {""} for name, examples in dataset.splits().items()}
    warnings = []
    for first, second in (("training", "validation"), ("training", "test"), ("validation", "test")):
        if shared := splits[first] & splits[second]:
            warnings.append(f"{counted(len(shared), 'group', 'groups')} of split.group_by in {first} and in {second}, by the given files")
    return warnings


def _tokens(lengths: Sequence[int], max_tokens: int | None) -> FactTable:
    over = sum(length > max_tokens for length in lengths) if max_tokens is not None else 0
    limit = "none" if max_tokens is None else f"{max_tokens:,}"
    row = ("all texts", int(statistics.median(lengths)), max(lengths), limit, over, f"{over / len(lengths):.1%}")
    return FactTable("Tokens", ("", "median", "longest", "limit", "over", "share"), (row,))


def _cut_texts(lengths: Sequence[int], rows: Sequence[str], max_tokens: int | None) -> list[str]:
    over = [] if max_tokens is None else [(length, row) for length, row in zip(lengths, rows, strict=True) if length > max_tokens]
    if not over:
        return []
    longest = [f"{row} ({length:,})" for length, row in sorted(over, key=lambda pair: -pair[0])]
    texts = counted(len(over), "text", "texts")
    return [f"{texts} ({len(over) / len(lengths):.1%}) longer than {max_tokens:,} tokens will be cut; longest: {_first(longest)}"]


def _first(places: Sequence[str]) -> str:
    return "; ".join([*places[:SHOWN_ROWS], "…"] if len(places) > SHOWN_ROWS else places)
