"""README.md tells the truth: its commands exist, its settings are settings; and the file tree of docs/structure.md is the tree."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any, get_args, get_origin

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


def named_in_documents() -> set[str]:
    """Find what stands in backticks, or is set on a command line, under one of our three names."""
    pages = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
    found: set[str] = set()
    for page in pages:
        found |= set(re.findall(r"(?:`|--set )((?:cluster|training|serving)(?:\.[A-Za-z_]+)+)", page.read_text(encoding="utf-8")))
    return found


def is_setting(dotted: str) -> bool:
    from cluster.settings import ClusterSettings
    from serving.settings import ServingSettings
    from training.settings import TrainingSettings

    section, *names = dotted.split(".")
    model: Any = {"cluster": ClusterSettings, "training": TrainingSettings, "serving": ServingSettings}[section]
    for name in names:
        if get_origin(model) is dict:
            # A head's name, say.
            model = get_args(model)[1]
            continue
        if name not in getattr(model, "model_fields", {}):
            return False
        model = model.model_fields[name].annotation
        model = next((one for one in get_args(model) if hasattr(one, "model_fields")), model) if get_origin(model) is not dict else model
    return True


def is_ours(dotted: str) -> bool:
    """Tell whether it is a module of ours, or something in one."""
    path = ROOT.joinpath(*dotted.split("."))
    module = path.parent.with_suffix(".py")
    return path.is_dir() or path.with_suffix(".py").is_file() or (module.is_file() and path.name in module.read_text(encoding="utf-8"))


def test_settings_that_documents_name_are_settings() -> None:
    named = named_in_documents()
    settings = {dotted for dotted in named if is_setting(dotted)}
    assert {dotted for dotted in named - settings if not is_ours(dotted)} == set()
    assert len(settings) > 30
    assert {"training.heads.NAME.loss_weight", "cluster.storage"} <= settings
    assert is_setting("serving.autoscaling.idle_s")
    assert not is_setting("serving.autoscaling.idle_seconds")
    assert not is_ours("serving.autoscaling.idle_seconds")
