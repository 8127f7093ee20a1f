"""Turns the rows of the given tables into texts with labels, still as strings, in three pools.

A pool holds the rows of the files given for training, validation or test. Rows that cannot be used are an error or a
note. Texts count as the same when they are equal after collapsing white space. It does not know splits or class indices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.data.findings import SHOWN_ROWS, Findings, Note, NoteKind, counted
from training.data.formats import shown_header
from training.data.table import Table, read_table
from training.data_settings import DataSettings
from training.errors import DataError
from training.settings import TrainingSettings
from training.template import is_blank, template_columns, template_parts

SPLITS = ("training", "validation", "test")


@dataclass(frozen=True)
class Row:
    """One row with a text and at least one label.

    Attributes:
        text: As the template makes it.
        labels: Head to class; heads without a label are not in it.
        where: "ads.csv, row 118".
        group: By `split.group_by`; "" is no group.
    """

    text: str
    labels: dict[str, str]
    where: str
    group: str

    @property
    def key(self) -> str:
        """What this text shares with those that count as the same."""
        return text_key(self.text)


Pools = dict[str, list[Row]]


def text_key(text: str) -> str:
    """Return a text with its white space collapsed."""
    return " ".join(text.split())


def render(template: str, columns: Mapping[str, Sequence[str]]) -> list[str]:
    """Fill a template for every row; where all its columns are blank the result is "".

    Args:
        template: With `{column}` or `{column[:N]}`.
        columns: Cells of at least the columns it names, all of one length.
    """
    parts = template_parts(template)
    used = list(zip(*(columns[column] for column in template_columns(template)), strict=True))
    filled = []
    for position, cells in enumerate(used):
        pieces = [literal + (columns[column][position][:length] if column else "") for literal, column, length in parts]
        filled.append("" if all(map(is_blank, cells)) else "".join(pieces))
    return filled


@dataclass(frozen=True)
class Reading:
    """What the given files hold.

    Attributes:
        pools: The rows that can be used, by `SPLITS`, in the order of the files.
        files: For each file that could be read: its name, its pool, its rows, and how many of them can be used.
        notes: On rows that were left out.
        findings: What must be put right first.
    """

    pools: Pools
    files: list[tuple[str, str, int, int]]
    notes: list[Note]
    findings: Findings


def read_files(settings: TrainingSettings) -> Reading:
    """Read all files; a finding in one does not hide those in the others."""
    data = settings.data
    intake = _Intake(settings)
    pools: Pools = {name: [] for name in SPLITS}
    files = []
    _check_text_columns(settings, intake.findings)
    for name, paths in zip(SPLITS, (data.files, data.validation_files, data.test_files), strict=True):
        for path in paths:
            try:
                table = _read(path, settings)
            except DataError as error:
                intake.findings.add(error.message, error.hint)
                continue
            rows = intake.rows(table)
            pools[name] += rows
            files.append((table.name, name, len(table.numbers), len(rows)))
            if name == "training":
                intake.found_columns |= set(table.frame.columns)
    notes = intake.notes()
    # With a file unread, columns and rows would only seem to be missing.
    if not intake.findings.count:
        _check_every_head(settings, intake)
    if not intake.findings.count and not pools["training"]:
        intake.findings.add("no row of training.data.files has a text and a label", "; ".join(map(str, notes)))
    return Reading(pools, files, notes, intake.findings)


def head_columns(settings: TrainingSettings) -> dict[str, str]:
    """Map each head to its column."""
    return {head: given.column or head for head, given in settings.heads.items()}


def _check_text_columns(settings: TrainingSettings, findings: Findings) -> None:
    for head, column in head_columns(settings).items():
        if column in template_columns(settings.data.text):
            findings.add(f"training.data.text holds column {column!r}, the answer of head {head!r}", "leave it out of the text")


def _read(path: str, settings: TrainingSettings) -> Table:
    data = settings.data
    required = template_columns(data.text) + template_columns(data.split.group_by or "")
    heads = list(head_columns(settings).values())
    table = read_table(path, data, required, heads)
    if not any(column in table.frame for column in heads):
        found, hint = shown_header(table.header)
        raise DataError(f"{table.name}: no head's column ({', '.join(map(repr, heads))}) found; {found}", hint)
    return table


def _check_every_head(settings: TrainingSettings, intake: "_Intake") -> None:
    for head, column in head_columns(settings).items():
        if column not in intake.found_columns:
            hint = f"set training.heads.{head}.column, or remove the head"
            intake.findings.add(f"column {column!r} of head {head!r} is in no file of training.data.files", hint)


class _Intake:
    """Judges rows, and counts those that are left out or refused."""

    def __init__(self, settings: TrainingSettings) -> None:
        self.findings = Findings()
        self.found_columns: set[str] = set()
        self._settings = settings
        self._heads = head_columns(settings)
        self._no_labels = {"", *settings.data.missing_labels}
        self._left_out: dict[NoteKind, list[str]] = {"unlabelled": [], "empty_text": []}

    def rows(self, table: Table) -> list[Row]:
        """Return the rows of a table that can be used."""
        data = self._settings.data
        cells: dict[str, list[str]] = {str(column): table.frame[column].tolist() for column in table.frame}
        texts = render(data.text, cells)
        groups = self._groups(cells) if data.split.group_by else [""] * len(texts)
        heads = {head: cells[column] for head, column in self._heads.items() if column in cells}
        rows = []
        for position, (number, text, group) in enumerate(zip(table.numbers, texts, groups, strict=True)):
            labels = {head: label for head, column in heads.items() if (label := column[position].strip()) not in self._no_labels}
            row = Row(text, labels, f"{table.name}, row {number}", group)
            if self._is_usable(row):
                rows.append(row)
        return rows

    def _groups(self, cells: Mapping[str, Sequence[str]]) -> list[str]:
        template = self._settings.data.split.group_by or ""
        # By a stray space, or one more of them, nobody is somebody else.
        return render(template, {column: [text_key(cell) for cell in cells[column]] for column in template_columns(template)})

    def _is_usable(self, row: Row) -> bool:
        if not row.labels:
            self._left_out["unlabelled"].append(row.where)
        elif is_blank(row.text):
            self._left_out["empty_text"].append(row.where)
            if self._settings.data.empty_texts == "error":
                self.findings.add(f"{row.where}: the text is empty", "set training.data.empty_texts to drop to leave such rows out")
        else:
            return self._has_known_classes(row)
        return False

    def _has_known_classes(self, row: Row) -> bool:
        before = self.findings.count
        for head, label in row.labels.items():
            classes = self._settings.heads[head].classes
            if classes is not None and label not in classes:
                allowed = ", ".join(map(repr, classes))
                self.findings.add(
                    f"{row.where}: column {self._heads[head]!r} is {label!r}, but head {head!r} has the classes {allowed}",
                    f"correct the cells, or add the class to training.heads.{head}.classes",
                )
        return self.findings.count == before

    def notes(self) -> list[Note]:
        """Return what was left out."""
        texts: dict[NoteKind, str] = {"unlabelled": "without a label on any head left out", "empty_text": "with an empty text left out"}
        return [
            Note(kind, f"{counted(len(places), 'row', 'rows')} {texts[kind]}", len(places), tuple(places[:SHOWN_ROWS]))
            for kind, places in self._left_out.items()
            if places
        ]


def without_duplicates(name: str, pool: list[Row], data: DataSettings) -> tuple[list[Row], list[Note]]:
    """Count later copies of the same text and labels in one pool, and leave them out with `duplicates: drop`."""
    seen: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    first: list[Row] = []
    copies: list[str] = []
    for row in pool:
        content = (row.key, tuple(row.labels.items()))
        if content in seen:
            copies.append(row.where)
        else:
            seen.add(content)
            first.append(row)
    if not copies:
        return pool, []
    fate = "left out" if data.duplicates == "drop" else "kept"
    message = f"{counted(len(copies), 'copy', 'copies')} of an earlier {name} row (same text, same labels) {fate}"
    note = Note("duplicate", message, len(copies), tuple(copies[:SHOWN_ROWS]))
    return (first if data.duplicates == "drop" else pool), [note]


def without_leaks(pools: Pools, data: DataSettings, findings: Findings) -> tuple[Pools, list[Note]]:
    """Find texts that stand in two pools; the later pool (test, then validation, then training) keeps them.

    With `leaks: error` each such row is added to the findings.
    """
    clean = dict(pools)
    notes: list[Note] = []
    for position, name in enumerate(SPLITS):
        later = {row.key: row.where for other in SPLITS[position + 1 :] for row in pools[other]}
        leaks = [row for row in pools[name] if row.key in later]
        if not leaks:
            continue
        if data.leaks == "drop":
            clean[name] = [row for row in pools[name] if row.key not in later]
        if data.leaks == "error":
            for row in leaks:
                hint = "set training.data.leaks to drop to leave such rows out of the earlier split"
                findings.add(f"{row.where} ({name}): the same text as {later[row.key]}", hint)
            continue
        fate = "left out" if data.leaks == "drop" else "kept"
        message = f"{counted(len(leaks), 'row', 'rows')} for {name} with a text of a later split {fate}"
        notes.append(Note("leak", message, len(leaks), tuple(row.where for row in leaks[:SHOWN_ROWS])))
    return clean, notes
