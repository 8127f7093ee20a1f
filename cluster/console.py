"""What a command prints and how it ends: errors with hints, tables, exit codes.

Knows nothing of Ray or texts. Every `__main__` is built on `run_command`.
"""

import argparse
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.errors import TwoheadError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Verb = Callable[[argparse.Namespace], int]


def settings_options() -> argparse.ArgumentParser:
    """Make the options that every verb shares, to be given as `parents=[...]`."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--config", type=Path, default=Path("ray_config.yaml"), metavar="FILE", help="settings file (default: %(default)s)"
    )
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override one setting, like training.tuning.num_samples=40",
    )
    options.add_argument("--debug", action="store_true", help="print a traceback with an error")
    return options


def run_command(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, call the verb's `verb` default and turn errors into exit codes.

    Returns:
        The verb's own code; the error's `exit_code` after a `TwoheadError`; 2 after an error of a file; 130 after Ctrl-C.
    """
    _let_all_characters_out()
    namespace = parser.parse_args(arguments)
    verb: Verb | None = getattr(namespace, "verb", None)
    if verb is None:
        parser.print_help()
        return 2
    try:
        return verb(namespace)
    except TwoheadError as error:
        return _told(error, namespace)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `... | head` closed our output: point it elsewhere, so that the interpreter's flush at exit is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # Of a file, or of a disk without room. What has neither, like a connection, is somebody's to foresee.
        if error.filename is None and error.errno not in _NO_ROOM:
            raise
        where = "a file" if error.filename is None else error.filename
        return _told(TwoheadError(f"{where}: {error.strerror}", "--debug tells who wanted it"), namespace)


def _let_all_characters_out() -> None:
    """Write what a terminal's or a pipe's encoding cannot hold as an escape, instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _told(error: TwoheadError, namespace: argparse.Namespace) -> int:
    if getattr(namespace, "debug", False):
        traceback.print_exc()
    print_error(error)
    return error.exit_code


def print_error(error: TwoheadError) -> None:
    """Print `error:` and, where there is one, `hint:` to standard error."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint:  {error.hint}", file=sys.stderr)


def warn(text: str) -> None:
    """Print `warning:` and what should be looked at, though it fails nothing, to standard error."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def say(text: str = "") -> None:
    """Print one line at once, also into a pipe."""
    print(text, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Lay rows out in columns two spaces apart.

    Args:
        header: One title a column.
        rows: Cells; each is shown with `str`, and a float with three decimals.
        right: Columns to align to the right (numbers).

    Returns:
        The lines, without a final newline.
    """
    cells = [[str(title) for title in header], *[[_shown(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        parts = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _shown(cell: object) -> str:
    if cell is None:
        return "–"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)
