"""A head's own processes: which they are, which of them is started again, and when not."""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.machines import keeper
from cluster.machines.keeper import CONTROL, OTHERS, RAYLET, Process, keep, of_the_head, processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found as Linux shows them")


def made(*words: str, pid: int, **environment: str) -> Process:
    return Process(pid, "1", [word.encode() for word in words], {name.encode(): value.encode() for name, value in environment.items()})


def test_the_heads_processes_are_those_of_the_session_whose_control_service_keeps_what_it_knows() -> None:
    alone = [made(f"/ray{CONTROL}", "--session-dir=/tmp/a", pid=1), made(f"/ray{RAYLET}", "--socket=/tmp/a/s", pid=2)]
    assert of_the_head(alone) is None
    control = made(f"/ray{CONTROL}", "--session-dir=/tmp/b", pid=3, RAY_REDIS_ADDRESS="r:1")
    assert of_the_head([*alone, control]) is None
    monitor, dashboard = (made("python", f"/ray{part}", "--logs=/tmp/b/logs", pid=pid) for pid, part in enumerate(OTHERS, start=4))
    raylet = made(f"/ray{RAYLET}", "--socket=/tmp/b/s", pid=6)
    other = made("python", f"/ray{OTHERS[1]}", "--logs=/tmp/a/logs", pid=7)
    assert of_the_head([*alone, other, dashboard, control, raylet, monitor]) == (raylet, [control, monitor, dashboard])


def test_a_head_that_keeps_nothing_has_no_keeper(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(keeper, "processes", lambda: iter(()))
    assert keeper.main() == 1
    assert "no head of Ray that keeps what it knows runs here" in capsys.readouterr().err


class Head:
    """A raylet and a control service that only wait, and who keeps them, a hundred times as fast."""

    def __init__(self, folder: Path) -> None:
        self.raylet = self._begin(folder / RAYLET[1:])
        self.control = self._begin(folder / CONTROL[1:])
        self.kept = [self._seen(self.control)]
        self.keeping = threading.Thread(target=keep, args=(self._seen(self.raylet), self.kept))
        self.keeping.start()

    @staticmethod
    def _begin(program: Path) -> "subprocess.Popen[bytes]":
        program.parent.mkdir(parents=True)
        waits = shutil.which("sleep")
        assert waits
        program.symlink_to(waits)
        return subprocess.Popen([str(program), "600"], env={"MARK": "mine"})

    @staticmethod
    def _seen(process: "subprocess.Popen[bytes]") -> Process:
        return next(one for one in processes() if one.pid == process.pid)

    def until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.01)  # the keeper tells nobody

    def end(self) -> None:
        for process in (self.raylet, self.control):
            process.kill()
            process.wait()
        self.keeping.join(30)


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    monkeypatch.setattr(keeper, "_POLL_S", 0.01)
    monkeypatch.setattr(keeper, "_ALONE_S", 0.05)
    found = Head(tmp_path)
    yield found
    found.end()


def test_who_ends_alone_is_started_again_word_for_word_each_time(head: Head, capsys: pytest.CaptureFixture[str]) -> None:
    first = head.kept[0]
    head.control.kill()
    head.until(lambda: head.kept[0] is not first)
    second = head.kept[0]
    assert second.child
    again = Head._seen(second.child)
    assert (again.words, again.environment[b"MARK"]) == (first.words, b"mine")
    second.child.kill()
    head.until(lambda: head.kept[0] is not second)
    assert head.kept[0].is_alive()
    assert capsys.readouterr().out.count("again\n") == 2


def test_what_was_started_again_ends_with_the_raylet(head: Head) -> None:
    first = head.kept[0]
    head.control.kill()
    head.until(lambda: head.kept[0] is not first)
    child = head.kept[0].child
    assert child
    head.raylet.kill()
    head.raylet.wait()
    head.keeping.join(30)
    assert child.wait(30) != 0


def test_where_ray_is_stopped_nothing_is_started_again(head: Head, capsys: pytest.CaptureFixture[str]) -> None:
    # As `ray stop` does it: one after the other.
    head.control.kill()
    head.raylet.kill()
    head.raylet.wait()
    head.keeping.join(30)
    assert not head.keeping.is_alive()
    assert head.kept[0].child is None
    assert capsys.readouterr().out == ""
