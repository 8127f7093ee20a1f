"""The house keeps its promises: import floors, no circles, light start-up, file tree, settings file, sizes."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("cluster", "training", "serving")
HEAVY = ("torch", "ray", "pandas", "transformers", "optuna", "fastapi", "numpy")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path) -> set[str]:
    """All modules a file imports anywhere, inside functions too."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_folder_imports_itself_and_those_to_its_left(path: Path) -> None:
    own = FOLDERS.index(path.relative_to(ROOT).parts[0])
    forbidden = FOLDERS[own + 1 :]
    assert not [name for name in imported_modules(path) if name.partition(".")[0] in forbidden]


def test_there_is_no_import_circle() -> None:
    modules = {module_of(path): path for path in SOURCES}
    graph = {name: {other for other in imported_modules(path) if other in modules and other != name} for name, path in modules.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"circle: {' → '.join([*trail, name])}"
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    assert done == set(graph)


def test_only_the_seams_of_training_know_ray() -> None:
    seams = {
        "trials": ("slots", "first_rung", "together", "trial"),
        "deciding": ("schedulers", "group_scheduler"),
        "": ("agenda", "recorder", "progress", "experiment", "tuning"),
    }
    allowed = {f"training.search.{room}.{name}".replace("..", ".") for room, names in seams.items() for name in names}
    sources = [path for path in SOURCES if path.relative_to(ROOT).parts[0] == "training"]
    assert {module_of(path) for path in sources if any(name.partition(".")[0] == "ray" for name in imported_modules(path))} <= allowed


def test_only_the_seam_of_scoring_knows_ray() -> None:
    sources = (ROOT / "serving" / "scoring").glob("*.py")
    assert {path.stem for path in sources if any(name.partition(".")[0] == "ray" for name in imported_modules(path))} == {"workers"}


def test_the_rooms_of_training_stand_one_above_the_other() -> None:
    rooms = ("data", "activations", "network", "judging", "fitting", "report", "search", "export")
    assert {path.name for path in (ROOT / "training").iterdir() if (path / "__init__.py").exists()} == set(rooms)
    for position, room in enumerate(rooms):
        above = tuple(f"training.{name}." for name in rooms[position + 1 :])
        for path in (ROOT / "training" / room).rglob("*.py"):
            assert not [name for name in imported_modules(path) if name.startswith(above)], path


def test_the_rooms_of_the_search_stand_one_above_the_other() -> None:
    floors = ("proposing", "trials", "deciding")
    search = ROOT / "training" / "search"
    assert {path.parent.name for path in search.glob("*/__init__.py")} == set(floors)
    upper = {f"training.search.{path.stem}" for path in search.glob("*.py") if path.stem != "__init__"}
    for position, room in enumerate(floors):
        above = {f"training.search.{name}" for name in floors[position + 1 :]} | upper
        for path in (search / room).glob("*.py"):
            assert not [name for name in imported_modules(path) if name in above or name.rpartition(".")[0] in above], path


@pytest.mark.parametrize("folder", FOLDERS)
def test_help_imports_nothing_heavy(folder: str) -> None:
    lines = [
        "import runpy, sys",
        f"sys.argv = ['{folder}', '--help']",
        "try:",
        f"    runpy.run_module('{folder}', run_name='__main__')",
        "except SystemExit:",
        "    print('modules', *sorted(sys.modules))",
    ]
    result = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = result.stdout.rpartition("modules ")[2].split()
    assert folder in loaded or "__main__" in loaded
    assert not set(HEAVY) & set(loaded)


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_has_its_four_doors_and_names_its_files(folder: str) -> None:
    files = {path.stem for path in (ROOT / folder).glob("*.py")}
    assert {"__init__", "__main__", "settings", "errors"} <= files
    for room in [ROOT / folder, *(path.parent for path in (ROOT / folder).rglob("*/__init__.py"))]:
        files = {path.stem for path in room.glob("*.py")}
        docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
        named = set(re.findall(r"`(\w+)`", docstring.partition("Files in floor order:")[2]))
        assert named == files - {"__init__", "__main__"}, room


def test_every_room_is_installed() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    rooms = [path.parent.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")]
    assert sorted(listed) == sorted(".".join(room.parts) for room in rooms)


def test_the_shipped_settings_are_valid_in_every_section() -> None:
    from cluster.settings import load_settings as load_cluster
    from serving.settings import load_settings as load_serving
    from training.search.proposing.search_space import check_space
    from training.settings import load_settings as load_training

    path = ROOT / "ray_config.yaml"
    load_cluster(path)
    load_serving(path, [])
    check_space(load_training(path, []))


def test_the_lock_pins_everything_pyproject_asks_for() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    # What only follows a search elsewhere is not installed for the tests.
    extras = [names for extra, names in project["optional-dependencies"].items() if extra not in ("trackers", "dashboard")]
    asked = [*project["dependencies"], *(name for names in extras for name in names)]
    locked = {
        line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    }
    missing = [name for name in asked if re.split(r"[\[<>=]", name)[0].lower() not in locked]
    assert not missing
    # What installs torch first reads it up to the blank.
    assert "\ntorch==2.13.0 " in (ROOT / "requirements.lock").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 55, node.name


def test_every_test_is_among_those_that_are_run() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = [ROOT / place for words in re.findall(r"^(?:TOGETHER|ALONE) *= (.*)$", makefile, flags=re.MULTILINE) for place in words.split()]
    left_out = [path for path in (ROOT / "tests").rglob("test_*.py") if not any(path.is_relative_to(place) for place in named)]
    assert len(named) == len(set(named)) > 5
    assert left_out == []
