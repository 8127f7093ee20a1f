import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.console import run_command
from cluster.errors import TwoheadError
from serving.__main__ import make_parser

HEAVY = ("torch", "ray", "pandas", "transformers", "optuna", "fastapi", "pydantic", "httpx", "aiohttp")
VERBS = ("run", "ask", "deploy", "scale", "status", "stop", "check", "load", "score", "promote", "keys", "render")


def command(tmp_path: Path, *words: str) -> tuple[str, ...]:
    return (*words, "--set", f"cluster.storage={tmp_path / 'storage'}")


@pytest.mark.parametrize("words", [[], *[[verb] for verb in VERBS]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom cluster.console import run_command\nfrom serving.__main__ import make_parser\n"
        "try:\n    run_command(make_parser(), sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--help"], cwd=root, env=os.environ, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_command_surface() -> None:
    text = make_parser().format_help()
    for verb in VERBS:
        assert f"\n    {verb} " in text


@pytest.mark.parametrize("verb", ["check", "run", "deploy"])
def test_nothing_starts_without_a_version(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(make_parser(), command(tmp_path, verb)) == 2
    printed = capsys.readouterr().err
    assert "error: no version is promoted to 'production'; names: none yet" in printed
    assert "hint:  python -m training promote VERSION --name production" in printed


def test_check_names_the_heads(tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cluster.storage import Storage
    from training.registry import Registry

    registry = Registry(Storage(str(tmp_path / "storage")))
    registry.promote(registry.publish(tiny_checkpoint))
    assert run_command(make_parser(), command(tmp_path, "check")) == 0
    expected = "serving is valid; the version 'production' points to is whole and answers category (3 classes), education (4 classes)"
    assert expected in capsys.readouterr().out
    weights = tmp_path / "storage/registry/versions/000001/weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)
    assert run_command(make_parser(), command(tmp_path, "check", "--version", "1")) == 2
    assert "has SHA-256" in capsys.readouterr().err


def test_scale_checks_its_bounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(make_parser(), command(tmp_path, "scale", "--min", "3", "--max", "2")) == 2
    assert "error: --max is 2, but must be at least --min (3)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_command(make_parser(), command(tmp_path, "scale", "--min", "0", "--max", "0"))
    assert "argument --max: is '0', but must be a whole number of at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_command(make_parser(), command(tmp_path, "scale", "--min", "-1", "--max", "2"))
    assert "argument --min: is '-1', but must be a whole number" in capsys.readouterr().err
    for words in ([], ["--min", "1"], ["--max", "1"], ["--to", "2", "--min", "1"], ["--to", "2", "--min", "1", "--max", "2"]):
        assert run_command(make_parser(), command(tmp_path, "scale", *words)) == 2
        assert "error: must have either --min and --max, or --to" in capsys.readouterr().err


def test_nothing_is_scored_without_a_version_or_a_table(tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cluster.storage import Storage
    from training.registry import Registry

    words = ("score", str(tmp_path / "ads.csv"), str(tmp_path / "out"))
    assert run_command(make_parser(), command(tmp_path, *words)) == 2
    assert "error: no version is promoted to 'production'" in capsys.readouterr().err
    registry = Registry(Storage(str(tmp_path / "storage")))
    registry.promote(registry.publish(tiny_checkpoint))
    assert run_command(make_parser(), command(tmp_path, *words)) == 2
    assert "ads.csv: no such file, or no file in it" in capsys.readouterr().err
    (tmp_path / "ads.csv").write_text("title\nnurse\n")
    assert run_command(make_parser(), command(tmp_path, *words)) == 2
    assert "has no column 'text', which the version's text template '{title}: {text}' names" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        run_command(make_parser(), command(tmp_path, *words, "--delimiter", ";;"))
    assert "argument --delimiter: is ';;', but must be one character" in capsys.readouterr().err


EVERYWHERE = ("serving.host=0.0.0.0", "serving.port=8123", "serving.require_keys=true")


@pytest.mark.parametrize("words", [["run", "--ask", "a"], ["ask", "a"], ["load", "--count", "1"]], ids=lambda words: words[0])
def test_what_listens_everywhere_is_asked_on_this_machine(words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from serving import __main__ as program
    from serving import client
    from serving.loading import command as loading

    class AskedError(TwoheadError):
        """Ends a command that is about to ask."""

    def asked(url: str, **_: object) -> None:
        raise AskedError(url)

    monkeypatch.setattr(client, "Client", asked)
    settings = [word for override in EVERYWHERE for word in ("--set", override)]
    arguments = make_parser().parse_args([*command(tmp_path, *words), *settings])
    if words[0] == "load":
        assert loading._url(arguments) == "http://127.0.0.1:8123"
        return
    with pytest.raises(AskedError, match=r"^http://127\.0\.0\.1:8123$"):
        program._ask(arguments) if words[0] == "ask" else program._print_doors(*program._sections(arguments), arguments)


@pytest.mark.parametrize("failed", [0, 1])
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_a_text_without_an_answer_is_told_beside_the_others(
    failed: int, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from serving import client
    from serving.messages import Answer, HeadAnswer, Prediction

    answers = [
        Answer(heads={"job": HeadAnswer(class_="nurse", probability=0.75)}, tokens=3, truncated=False),
        Answer(heads={}, tokens=3, truncated=False, error="the engine failed"),
    ]
    texts = ["good", "bad"]
    if failed == 0:
        answers.reverse()
        texts.reverse()
    monkeypatch.setattr(client.Client, "predict", lambda _, asked: Prediction(version=7, answers=answers))
    assert run_command(make_parser(), ["ask", *texts, "--url", "http://127.0.0.1:9", *options]) == 1
    printed = capsys.readouterr().out
    if options:
        assert Prediction.model_validate_json(printed).answers == answers
        return
    shown = {"good": ["good", "nurse", "0.750"], "bad": ["bad", "the engine failed"]}
    rows = [[cell for cell in re.split(r" {2,}", line) if cell] for line in printed.splitlines()]
    assert rows == [["text", "job", "probability", "error"], *(shown[text] for text in texts), ["version 7"]]


def test_asking_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(make_parser(), command(tmp_path, "ask", "text", "--url", "http://127.0.0.1:9")) == 2
    printed = capsys.readouterr().err
    assert "error: http://127.0.0.1:9: " in printed
    assert "hint:  is it running? python -m serving run" in printed
