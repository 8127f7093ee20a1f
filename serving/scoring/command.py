"""What `python -m serving score` does: check everything, then score what is missing, and tell how far it is."""

import argparse
import time
from collections.abc import Iterable, Iterator

from cluster.connection import connect
from cluster.console import say
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from serving.errors import ScoringError
from serving.scoring.files import find_files, make_blocks, survey
from serving.scoring.parts import Wanted, open_folder, part_name, plan
from serving.scoring.workers import Done, Work, score_blocks
from serving.settings import ServingSettings
from training.manifest import Manifest

_TELL_EVERY_S = 10.0


def score(arguments: argparse.Namespace, cluster: ClusterSettings, settings: ServingSettings, version: int, manifest: Manifest) -> int:
    """Score a table with a version.

    Args:
        arguments: Of the command line.
        cluster: The section `cluster`.
        settings: The section `serving`.
        version: Which one.
        manifest: Of it.

    Returns:
        The exit code.

    Raises:
        TwoheadError: See `find_files`, `survey`, `plan`, `open_folder`, `connect` and `score_blocks`; or a part was written elsewhere.
    """
    columns = None if arguments.columns is None else tuple(column for column in arguments.columns.split(",") if column)
    wanted = Wanted(text=arguments.text, columns=columns, scores=arguments.scores, block_rows=arguments.block_rows)
    files = [survey(path, arguments.block_rows, arguments.delimiter) for path in find_files(arguments.table)]
    scoring = plan(files, wanted, version, manifest, precision=settings.precision, max_characters=settings.max_characters)
    out = Storage(arguments.out)
    there = open_folder(out, scoring, overwrite=arguments.overwrite)
    missing = [block for block in make_blocks(files, arguments.delimiter) if block.number not in there]
    say(f"scoring: {scoring.rows} rows with version {version}; {len(there)} of {scoring.parts} parts are there already")
    if missing:
        with connect(cluster):
            work = Work(Storage(cluster.storage).uri, cluster.trusted_keys, out.uri, scoring, wanted, settings)
            _follow(_seen(score_blocks(missing, work, arguments.workers), out))
    _require_all(out, scoring.parts)
    say(f"answers {out.uri}")
    return 0


def _seen(finished: Iterable[Done], out: Storage) -> Iterator[Done]:
    """Pass on what is done and can be seen from here: a worker on another host writes a folder of the same name, of its own."""
    for done in finished:
        if not out.exists(part_name(done.number)):
            raise _elsewhere(out, done.number)
        yield done


def _require_all(out: Storage, parts: int) -> None:
    names = set(out.names())
    # A folder that several machines mount may be listed as it was some seconds ago; who asks for a name learns of it.
    if lost := [number for number in range(parts) if part_name(number) not in names and not out.exists(part_name(number))]:
        raise _elsewhere(out, lost[0])


def _elsewhere(out: Storage, number: int) -> ScoringError:
    return ScoringError(
        f"{out.uri}: {part_name(number)} was written, but is not there",
        "name a folder that every machine mounts at this place, or a URI: a worker writes where it runs",
    )


def _follow(finished: Iterable[Done]) -> None:
    """Print how far it is now and then, and at the end."""
    begun = told = time.monotonic()
    parts = rows = errors = 0

    def said() -> str:
        return f"scored  {rows} rows in {parts} parts, {rows / (time.monotonic() - begun):.1f} texts/s, rows with an error: {errors}"

    for done in finished:
        parts, rows, errors = parts + 1, rows + done.rows, errors + done.errors
        if time.monotonic() - told > _TELL_EVERY_S:
            told = time.monotonic()
            say(said())
    say(said())
