"""benchmarks/search_cost: what is measured of a command, and what is made of two curves."""

import ctypes
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "search_cost"
# It burns CPU seconds in a process that it leaves behind, which ends when its file is gone.
PROGRAM = """
import os, sys, time
if os.fork():
    sys.exit()
while time.process_time() < 0.5:
    pass
open(sys.argv[1], "w").close()
while os.path.exists(sys.argv[1]):
    time.sleep(0.05)
"""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The benchmark's own modules, which find each other beside themselves."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    import meter
    import search_cost

    yield {"meter": meter, "search_cost": search_cost}
    # No orphan of other tests is to become this process's child.
    ctypes.CDLL(None).prctl(meter._PR_SET_CHILD_SUBREAPER, 0)
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def curve(scripts: dict[str, ModuleType], readings: list[tuple[float, list[float], list[float]]]) -> Any:
    """A curve after readings of CPU seconds, scores of models, and scores of looks."""
    made, meter = scripts["search_cost"].Curve(), scripts["meter"].Meter()
    for cpu_s, saved, looks in readings:
        meter.cpu_s = cpu_s
        made.note(meter, saved, looks)
    return made


def test_a_look_is_held_and_only_a_model_is_saved(scripts: dict[str, ModuleType]) -> None:
    ours = curve(scripts, [(5.0, [], []), (10.0, [], [0.6]), (30.0, [0.5], [0.6]), (40.0, [0.5, 0.4], [0.6]), (90.0, [0.7], [0.6])])
    assert [(cpu_s, score) for cpu_s, _, score in ours.points] == [(10.0, 0.6), (90.0, 0.7)]
    assert [(cpu_s, score) for cpu_s, _, score in ours.saved] == [(30.0, 0.5), (90.0, 0.7)]
    recipe = curve(scripts, [(50.0, [0.3], []), (80.0, [0.3, 0.5], [])])
    said = scripts["search_cost"].said_of(recipe, ours)
    assert (said["recipe_score"], said["recipe_cpu_s"]) == (0.5, 80.0)
    assert (said["held_cpu_s"], said["ratio"]) == (10.0, 8.0)
    assert (said["saved_cpu_s"], said["saved_ratio"]) == (30.0, pytest.approx(80 / 30))
    # At the recipe's cost; what came later does not count.
    assert said["our_score"] == 0.5


def test_a_score_that_is_never_held_is_no_number(scripts: dict[str, ModuleType]) -> None:
    recipe, ours = curve(scripts, [(80.0, [0.5], [])]), curve(scripts, [(10.0, [0.4], [])])
    said = scripts["search_cost"].said_of(recipe, ours)
    assert said["ratio"] != said["ratio"]
    assert said["our_score"] == 0.4


def test_what_a_command_leaves_behind_counts_once_and_for_it_alone(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    measure, flag, log = scripts["meter"].measure, tmp_path / "flag", tmp_path / "log"
    seen = threading.Event()

    def wait_for_flag(meter: Any) -> bool:
        # Whoever looked before may have read its seconds of before.
        was_seen = seen.is_set()
        if flag.exists():
            seen.set()
        return was_seen

    # The first waits until what it left has burnt its seconds.
    waiting = f"import os, time, subprocess, sys\nsubprocess.run([sys.executable, '-c', {PROGRAM!r}, {str(flag)!r}])\n"
    waiting += f"while not os.path.exists({str(flag)!r}): time.sleep(0.05)\ntime.sleep(0.5)\n"
    first = measure([sys.executable, "-c", waiting], {}, tmp_path, wait_for_flag, log)
    second = measure([sys.executable, "-c", "pass"], {}, tmp_path, lambda _: False, log)
    flag.unlink()
    assert first.cpu_s >= 0.4
    assert second.cpu_s < 0.4
    third = measure([sys.executable, "-c", "pass"], {}, tmp_path, lambda _: False, log)
    assert third.cpu_s < 0.4


def test_a_command_that_fails_is_an_error(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exited with 3"):
        scripts["meter"].measure([sys.executable, "-c", "raise SystemExit(3)"], {}, tmp_path, lambda _: False, tmp_path / "log")
