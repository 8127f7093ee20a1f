"""The folder of answers: one Parquet file a block, and a manifest that says what they are answers to.

A part is written whole or not at all, so that those which are there are done. The same command goes on with the missing ones; another
version, table or setting is refused, because one folder holds answers of one kind. It does not know how answers are made.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from cluster.storage import Storage
from serving.errors import ScoringError
from serving.messages import Message
from serving.scoring.answers import answer_schema
from serving.scoring.files import JSON_LINES, File, suffix_of
from training.checkpoint import WEIGHTS_FILE
from training.manifest import Manifest
from training.template import template_columns

# Readers of a folder of Parquet files pass over names like this.
MANIFEST = "_manifest.json"

_PART = re.compile(r"part-(\d{6,})\.parquet")
# What may differ between two calls that make the same answers.
_NOT_COMPARED = {"begun", "inputs", "heads", "rows", "parts"}


class Wanted(Message):
    """What is asked of a scoring.

    Attributes:
        text: Column with finished texts; None: the version's template joins columns.
        columns: Which are kept; None: all.
        scores: Whether the probabilities of all classes are told.
        block_rows: Most rows of a part.
    """

    text: str | None = None
    columns: tuple[str, ...] | None = None
    scores: bool = False
    block_rows: int = Field(default=4096, ge=1)


class Input(Message):
    """One file that was scored."""

    name: str
    size_bytes: int
    sha256: str
    rows: int


class Scoring(Message):
    """What a folder's answers are answers to.

    Attributes:
        weights: Digest of the version's.
        text: What makes a text: a column, or the template.
        columns: What is kept, with types.
        heads: Head → its classes, in the order of the scores.
    """

    version: int
    weights: str
    precision: str
    inputs: tuple[Input, ...]
    text: str
    columns: dict[str, str]
    heads: dict[str, tuple[str, ...]]
    scores: bool
    max_characters: int
    block_rows: int
    rows: int
    parts: int
    begun: str


def part_name(number: int) -> str:
    """Return the name of a block's part."""
    return f"part-{number:06d}.parquet"


def write_part(storage: Storage, number: int, table: pa.Table) -> None:
    """Write the part of a block, whole or not at all."""
    content = pa.BufferOutputStream()
    pq.write_table(table, content)
    storage.write_bytes(part_name(number), content.getvalue().to_pybytes())


def plan(files: Sequence[File], wanted: Wanted, version: int, manifest: Manifest, *, precision: str, max_characters: int) -> Scoring:
    """Check that a table has what is wanted, and say what the answers will be answers to.

    Raises:
        ScoringError: A column is missing, of another type in another file, or named like one of the answers.
    """
    schema = _common_schema(files, wanted, manifest)
    heads = {head.name: tuple(head.classes) for head in manifest.heads}
    kept = schema.names if wanted.columns is None else wanted.columns
    _refuse_taken(kept, answer_schema(heads, with_scores=wanted.scores).names)
    return Scoring(
        version=version,
        weights=manifest.files[WEIGHTS_FILE].sha256,
        precision=precision,
        inputs=tuple(Input(name=file.name, size_bytes=file.size_bytes, sha256=file.sha256, rows=file.rows) for file in files),
        text=manifest.text_template if wanted.text is None else wanted.text,
        columns={column: str(schema.field(column).type) for column in kept},
        heads=heads,
        scores=wanted.scores,
        max_characters=max_characters,
        block_rows=wanted.block_rows,
        rows=sum(file.rows for file in files),
        parts=sum(len(file.spans) for file in files),
        begun=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def needed_columns(wanted: Wanted, template: str) -> list[str]:
    """List the columns that texts are made of."""
    return template_columns(template) if wanted.text is None else [wanted.text]


def _common_schema(files: Sequence[File], wanted: Wanted, manifest: Manifest) -> pa.Schema:
    """Return the columns that are kept; every file must have them, and those that make texts."""
    schemas = _schemas(files)
    first = schemas[0]
    asked = list(first.names if wanted.columns is None else wanted.columns)
    for file, schema in zip(files, schemas, strict=True):
        for column in needed_columns(wanted, manifest.text_template):
            if column not in schema.names:
                hint = "--text COLUMN names one with finished texts; --delimiter ';' reads other CSV"
                named = "" if wanted.text else f", which the version's text template {manifest.text_template!r} names"
                raise ScoringError(f"{file.name}: has no column {column!r}{named}; its columns are {_listed(schema.names)}", hint)
        for column in asked if wanted.columns is not None else dict.fromkeys([*asked, *schema.names]):
            types = [str(one.field(column).type) if column in one.names else "missing" for one in (first, schema)]
            if types[0] != types[1] or column not in schema.names:
                found = f"{file.name}: column {column!r} is {types[1]}, but {types[0]} in {files[0].name}"
                if types == ["missing"] * 2:
                    found = f"{file.name}: has no column {column!r}; its columns are {_listed(schema.names)}"
                raise ScoringError(found, "--columns A,B names those to keep")
    return pa.schema([first.field(column) for column in asked])


def _schemas(files: Sequence[File]) -> list[pa.Schema]:
    """Return the columns of each file; what a file of JSON Lines never names is null there."""
    if all(suffix_of(file.path) in JSON_LINES for file in files):
        return [pa.unify_schemas([file.schema for file in files])] * len(files)
    return [file.schema for file in files]


def _refuse_taken(kept: Sequence[str], answers: Sequence[str]) -> None:
    if taken := [column for column in kept if column in answers]:
        others = ",".join(column for column in kept if column not in answers)
        raise ScoringError(f"column {taken[0]!r} of the table has the name of a column of answers", f"leave it out: --columns '{others}'")


def open_folder(storage: Storage, scoring: Scoring, *, overwrite: bool = False) -> set[int]:
    """Prepare a folder for a scoring, or to go on with it.

    Args:
        storage: The folder.
        scoring: What it is to hold.
        overwrite: Take away what is there, where that is another scoring.

    Returns:
        The parts that are there.

    Raises:
        ScoringError: The folder holds something else.
    """
    names = storage.names()
    if names and MANIFEST not in names:
        raise ScoringError(f"{storage.uri}: holds {names[0]!r}, but no scoring", "name a new folder")
    if others := [name for name in names if name != MANIFEST and not _PART.fullmatch(name)]:
        raise ScoringError(f"{storage.uri}: holds {others[0]!r}, which is no part of a scoring", "name a new folder")
    if names and (different := _differences(_read(storage), scoring)):
        if not overwrite:
            raise ScoringError(
                f"{storage.uri}: holds another scoring: {'; '.join(different)}",
                "name a new folder, ask for the same as before, or give --overwrite to begin again",
            )
        storage.remove()
        names = []
    storage.remove_drafts()
    if not names:
        storage.create_own(MANIFEST, scoring.model_dump_json(indent=2).encode())
    return {int(found[1]) for name in names if (found := _PART.fullmatch(name))}


def _read(storage: Storage) -> Scoring:
    try:
        return Scoring.model_validate_json(storage.read_bytes(MANIFEST))
    except ValidationError:
        # Whose it is cannot be told, so that it is not overwritten either.
        raise ScoringError(f"{storage.uri}: holds a {MANIFEST} that is none of a scoring", "name a new folder") from None


def _differences(before: Scoring, now: Scoring) -> list[str]:
    old, new = (one.model_dump(mode="json", exclude=_NOT_COMPARED) for one in (before, now))
    found = [f"{name} was {_shown(value)}, but is {_shown(new[name])}" for name, value in old.items() if value != new[name]]
    return [*found, *_other_inputs(before.inputs, now.inputs)]


def _other_inputs(before: Sequence[Input], now: Sequence[Input]) -> list[str]:
    if len(before) != len(now):
        return [f"the table had {len(before)} files, but has {len(now)}"]
    changed = [new.name for old, new in zip(before, now, strict=True) if old.sha256 != new.sha256]
    return [f"{changed[0]} has another content than before"] if changed else []


def _shown(value: object) -> str:
    return ", ".join(value) if isinstance(value, Mapping) else repr(value)


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns[:20])) + (", …" if len(columns) > 20 else "")
