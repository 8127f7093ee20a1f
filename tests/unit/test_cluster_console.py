"""cluster.console: exit codes, messages and tables."""

import argparse
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.console import print_error, run_command, say, settings_options, table
from cluster.errors import TwoheadError


def _parser(verb: Callable[[argparse.Namespace], int] | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="it", parents=[settings_options()])
    if verb:
        parser.set_defaults(verb=verb)
    return parser


def _raise(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def verb(options: argparse.Namespace) -> int:
        raise error

    return verb


def test_the_verb_gets_the_options_and_gives_the_exit_code() -> None:
    seen = {}

    def verb(options: argparse.Namespace) -> int:
        seen.update(vars(options))
        return 7

    assert run_command(_parser(verb), ["--config", "a.yaml", "--set", "x.y=1", "--set", "x.z=2"]) == 7
    assert (str(seen["config"]), seen["overrides"], seen["debug"]) == ("a.yaml", ["x.y=1", "x.z=2"], False)


def test_the_shared_options_have_defaults() -> None:
    options = settings_options().parse_args([])
    assert (str(options.config), options.overrides) == ("ray_config.yaml", [])


def test_without_a_verb_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(_parser(None), []) == 2
    assert capsys.readouterr().out.startswith("usage: it")


def test_an_error_is_two_lines_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(_parser(_raise(TwoheadError("it is so", "do this"))), []) == 2
    assert capsys.readouterr().err == "error: it is so\nhint:  do this\n"


def test_an_error_names_its_own_exit_code() -> None:
    class OtherError(TwoheadError):
        exit_code = 3

    assert run_command(_parser(_raise(OtherError("it is so"))), []) == 3


def test_debug_prints_the_traceback_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(_parser(_raise(TwoheadError("it is so"))), ["--debug"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("error: it is so\n")


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(_parser(_raise(KeyboardInterrupt())), []) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_unexpected_error_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(_parser(_raise(ZeroDivisionError())), [])


def test_an_error_of_a_file_says_where_and_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write(options: argparse.Namespace) -> int:
        return (tmp_path / "none/file").write_text("")

    assert run_command(_parser(write), []) == 2
    told = f"error: {tmp_path}/none/file: No such file or directory\nhint:  --debug tells who wanted it\n"
    assert capsys.readouterr().err == told
    assert run_command(_parser(write), ["--debug"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith(told)
    assert run_command(_parser(_raise(OSError(errno.ENOSPC, "No space left on device"))), []) == 2
    assert capsys.readouterr().err.startswith("error: a file: No space left on device\n")


def test_an_error_of_a_connection_is_not_taken_for_one_of_a_file() -> None:
    with pytest.raises(ConnectionResetError):
        run_command(_parser(_raise(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))), [])


def test_a_closed_pipe_is_quiet() -> None:
    code = (
        "import argparse, sys; from cluster.console import run_command, say\n"
        "def verb(options):\n"
        "    for _ in range(100000): say('line')\n"
        "    return 0\n"
        "parser = argparse.ArgumentParser(); parser.set_defaults(verb=verb); sys.exit(run_command(parser, []))"
    )
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    os.read(reader, 10)
    os.close(reader)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 0


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
def test_what_an_encoding_cannot_hold_ends_no_command(environment: dict[str, str]) -> None:
    code = (
        "import argparse, sys; from cluster.console import run_command, say, warn\n"
        "parser = argparse.ArgumentParser(description='a \\u2192 b')\n"
        "parser.set_defaults(verb=lambda options: say('production \\u2192 3') or warn('\\u2192 4') or 0)\n"
        "sys.exit(run_command(parser, sys.argv[1:]))"
    )
    names = {name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL")} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=names, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("production \\u2192 3\n", "warning: \\u2192 4\n")
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, env=names, timeout=60, check=True)
    assert "a \\u2192 b" in done.stdout


def test_print_error_without_a_hint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(TwoheadError("it is so"))
    assert capsys.readouterr().err == "error: it is so\n"


def test_say_prints_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("one")
    say()
    assert capsys.readouterr().out == "one\n\n"


def test_a_table_aligns_its_columns() -> None:
    lines = table(("HEAD", "F1"), [("category", 0.5), ("education", 12), ("x", None)], right=(1,)).splitlines()
    assert lines == ["HEAD          F1", "category   0.500", "education     12", "x              –"]


def test_a_table_without_rows_is_its_header() -> None:
    assert table(("A", "B"), []) == "A  B"
