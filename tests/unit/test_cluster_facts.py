"""cluster.facts: what `up` writes down, and when it is believed."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.facts import FACTS_FILE, LOCK_FILE, Facts, alone, facts_folder, read_facts, write_facts
from cluster.session import new_session
from cluster.settings import ClusterSettings
from tests.waiting import until

FACTS = Facts("127.0.0.1:1", "http://127.0.0.1:2", "/tmp/twohead-x", "/tmp/token", (3, 4), socket.gethostname(), 5.5)


def test_facts_are_read_as_they_were_written(tmp_path: Path) -> None:
    settings = ClusterSettings(storage=str(tmp_path))
    assert read_facts(settings) is None
    write_facts(settings, FACTS)
    assert read_facts(settings) == FACTS
    assert FACTS.session.ray_folder == Path("/tmp/twohead-x/ray")


def test_facts_of_a_remote_storage_lie_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = facts_folder(ClusterSettings(storage="memory://bucket/ads"))
    assert folder.parent.parent == tmp_path / ".twohead"
    assert folder.parent.name.startswith("bucket-ads-")
    assert folder == facts_folder(ClusterSettings(storage="memory://bucket/ads"))
    others = {facts_folder(ClusterSettings(storage=place)) for place in ("memory://bucket/titles", "memory://bucket-ads")}
    assert len(others | {folder}) == 3


def test_whoever_waited_while_the_folder_was_taken_away_waits_with_the_next_one(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    order: list[str] = []

    def wait_and_enter(name: str) -> None:
        with alone(folder, "hint"):
            order.append(f"{name} in")
            assert (folder / LOCK_FILE).exists()
            order.append(f"{name} out")

    with alone(folder, "hint"):
        waiting = threading.Thread(target=wait_and_enter, args=("one",))
        waiting.start()
        until("it waits", lambda: len(_holders(folder / LOCK_FILE)) == 2, 10)
        # As `down` does.
        shutil.rmtree(folder)
    waiting.join(10)
    wait_and_enter("two")
    assert order == ["one in", "one out", "two in", "two out"]


def _holders(file: Path) -> list[str]:
    return [one.name for one in Path("/proc/self/fd").iterdir() if one.exists() and one.samefile(file)]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '"text"',
        json.dumps({**dataclasses.asdict(FACTS), "pids": 3}),
        json.dumps({**dataclasses.asdict(FACTS), "more": 1}),
    ],
)
def test_illegible_facts_are_no_facts(tmp_path: Path, content: str) -> None:
    settings = ClusterSettings(storage=str(tmp_path))
    facts_folder(settings).mkdir()
    (facts_folder(settings) / FACTS_FILE).write_text(content)
    assert read_facts(settings) is None


def test_facts_cannot_name_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    settings = ClusterSettings(storage=str(tmp_path))
    write_facts(settings, dataclasses.replace(FACTS, session_folder=str(tmp_path)))
    assert read_facts(settings) is None


def test_facts_are_alive_while_all_processes_are_and_carry_the_mark() -> None:
    session = new_session()
    sleeper = [sys.executable, "-c", "import signal; print('ready', flush=True); signal.pause()"]
    with subprocess.Popen(sleeper, stdout=subprocess.PIPE, env={**os.environ, **session.environment()}) as process:
        assert process.stdout
        process.stdout.readline()
        facts = dataclasses.replace(FACTS, session_folder=str(session.folder), pids=(process.pid,))
        assert facts.is_alive()
        assert not dataclasses.replace(facts, pids=()).is_alive()
        assert not dataclasses.replace(facts, pids=(process.pid, os.getpid())).is_alive()
        assert not dataclasses.replace(facts, host="elsewhere").is_alive()
        assert not dataclasses.replace(facts, session_folder="/tmp/twohead-other").is_alive()
        session.end()
        process.wait(10)
    assert not facts.is_alive()
