"""README.md tells the truth: its commands exist, its settings are settings; and the file tree of docs/structure.md is the tree."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:console|sh)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = sorted(
    {
        line.strip().partition("  #")[0].strip()
        for block in BLOCKS
        for line in block.splitlines()
        if line.startswith(("python -m ", "make "))
    }
)


def parser_of(folder: str) -> object:
    import importlib

    return importlib.import_module(f"{folder}.__main__").make_parser()


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_the_readme_is_understood(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, check=True)
        return
    options = parser_of(words[2]).parse_args(words[3 : words.index("--")] if "--" in words else words[3:])
    assert callable(options.verb)


@pytest.mark.parametrize("folder", ["cluster", "training", "serving"])
def test_every_verb_is_in_the_readme(folder: str) -> None:
    import argparse

    actions = [action for action in parser_of(folder)._actions if isinstance(action, argparse._SubParsersAction)]
    missing = [verb for verb in actions[0].choices if not re.search(rf"python -m {folder} (?:[\w| ]*\b)?{verb}\b", README)]
    assert not missing


def test_the_file_tree_is_the_tree() -> None:
    section = re.search(r"```text\n(.*?)```", (ROOT / "docs/structure.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert section is not None
    named: set[str] = set()
    folders: list[str] = []
    for line in section.group(1).splitlines():
        depth, entry = (len(line) - len(line.lstrip())) // 2, line.strip().split("  ")[0]
        folders[depth:] = [entry]
        named.add("".join(folders))
    # A package inside a room is named as a whole.
    sources = {
        str(path.relative_to(ROOT))
        for name in ("cluster", "training", "serving")
        for path in [*(ROOT / name).glob("*.py"), *(ROOT / name).glob("*/*.py")]
        if path.name != "__init__.py" and "hub_code" not in path.parts
    }
    assert sources <= named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_settings_named_in_the_readme_are_settings() -> None:
    from cluster.settings import ClusterSettings
    from serving.settings import ServingSettings
    from training.settings import TrainingSettings

    models = {"cluster": ClusterSettings, "training": TrainingSettings, "serving": ServingSettings}
    for dotted in set(re.findall(r"\b((?:cluster|training|serving)(?:\.[a-z_]+){1,3})=", README)):
        section, *names = dotted.split(".")
        model = models[section]
        for name in names:
            assert name in model.model_fields, dotted
            model = model.model_fields[name].annotation
