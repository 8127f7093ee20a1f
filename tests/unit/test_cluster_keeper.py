"""A head's own processes: which they are, which of them is started again, and when not."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.machines import keeper
from cluster.machines.keeper import AUTOSCALER, CONTROL, DASHBOARD, RAYLET, Keeper, Process, of_the_head, processes
from cluster.session import free_port
from tests.ports import port_shift

ALONE_S = keeper._ALONE_S
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found as Linux shows them")


def made(*words: str, pid: int, **environment: str) -> Process:
    return Process(pid, "1", [word.encode() for word in words], {name.encode(): value.encode() for name, value in environment.items()})


def test_the_heads_processes_are_those_of_the_session_whose_control_service_keeps_what_it_knows() -> None:
    alone = [made(f"/ray{CONTROL}", "--session-dir=/tmp/a", pid=1), made(f"/ray{RAYLET}", "--socket=/tmp/a/s", pid=2)]
    assert of_the_head(alone) is None
    control = made(f"/ray{CONTROL}", "--session-dir=/tmp/b", pid=3, RAY_REDIS_ADDRESS="r:1")
    assert of_the_head([*alone, control]) is None
    monitor, dashboard = (made("python", f"/ray{part}", "--logs=/tmp/b/logs", pid=pid) for pid, part in ((4, AUTOSCALER), (5, DASHBOARD)))
    raylet = made(f"/ray{RAYLET}", "--socket=/tmp/b/s", pid=6)
    other = made("python", f"/ray{DASHBOARD}", "--logs=/tmp/a/logs", pid=7)
    assert of_the_head([*alone, other, dashboard, control, raylet, monitor]) == (raylet, [control, monitor, dashboard])


def test_a_head_that_keeps_nothing_has_no_keeper(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(keeper, "processes", lambda: iter(()))
    assert keeper.main() == 1
    assert "no head of Ray that keeps what it knows runs here" in capsys.readouterr().err


# Each of them waits; a control service listens once it may, a dashboard has a part of its own.
WAITS = """
import os, socket, subprocess, sys, time
part, folder, *options = sys.argv[1:]
if part == "control":
    while not os.path.exists(f"{folder}/may-listen"):
        time.sleep(0.01)
    port = int(options[-1].partition("=")[2])
    listening = socket.create_server(("127.0.0.1", port))
if part == "dashboard":
    # As Ray's: each part is the child of a server that forks.
    read = "import sys; sys.stdin.read()"
    parts = [(f"ray-dashboard-{name}-0 (python)", "-c", read) for name in ("NodeHead", "ReportHead", "ServeHead")]
    begin = f"[subprocess.Popen(part, executable=sys.executable, stdin=subprocess.PIPE) for part in {parts}]"
    subprocess.Popen([sys.executable, "-c", f"import subprocess, sys; begun = {begin}; sys.stdin.read()"], stdin=subprocess.PIPE)
time.sleep(600)
"""


class Head:
    """A raylet, a control service, an autoscaler and a dashboard that only wait, and who keeps them, a hundred times as fast."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.may_listen = folder / "may-listen"
        self.may_listen.touch()
        self.raylet = self._begin(RAYLET, "raylet")
        port = free_port(19_500 + port_shift())
        begun = [
            self._begin(CONTROL, "control", "--node-ip-address=127.0.0.1", f"--gcs_server_port={port}"),
            self._begin(AUTOSCALER, "autoscaler"),
            self._begin(DASHBOARD, "dashboard"),
        ]
        self.control, self.autoscaler, self.dashboard = begun
        self.kept = [self.seen(process.pid) for process in begun]
        until(lambda: self.parts() == "SSSS")
        self.keeping = threading.Thread(target=Keeper(self.seen(self.raylet.pid), self.kept).run)
        self.keeping.start()

    def _begin(self, place: str, *words: str) -> "subprocess.Popen[bytes]":
        program = self.folder / place[1:]
        program.parent.mkdir(parents=True)
        program.write_text(WAITS)
        command = [sys.executable, str(program), words[0], str(self.folder), *words[1:]]
        return subprocess.Popen(command, env={"MARK": "mine"})

    @staticmethod
    def seen(pid: int) -> Process:
        return next(one for one in processes() if one.pid == pid)

    def parts(self) -> str:
        """Return the states of what the dashboard has started, as Linux shows them: of the server that forks, and its three parts."""
        return "".join(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in _below(self.dashboard.pid))

    def end(self) -> None:
        for process in (self.raylet, self.control, self.autoscaler, self.dashboard):
            process.kill()
            process.wait()
        self.keeping.join(30)


def _below(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [found for child in children for found in (child, *_below(child))]


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # the keeper tells nobody


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    monkeypatch.setattr(keeper, "_POLL_S", 0.01)
    monkeypatch.setattr(keeper, "_ALONE_S", 0.05)
    monkeypatch.setattr(keeper, "_SETTLED_S", 0.2)
    found = Head(tmp_path)
    yield found
    found.end()


def test_who_ends_alone_is_started_again_word_for_word_each_time(head: Head, capsys: pytest.CaptureFixture[str]) -> None:
    first = head.kept[0]
    head.control.kill()
    until(lambda: head.kept[0] is not first)
    second = head.kept[0]
    assert second.child
    again = head.seen(second.child.pid)
    assert (again.words, again.environment[b"MARK"]) == (first.words, b"mine")
    second.child.kill()
    until(lambda: head.kept[0] is not second)
    assert head.kept[0].is_alive()
    assert capsys.readouterr().out.count("gcs_server again\n") == 2


def test_what_was_started_again_ends_with_the_raylet(head: Head) -> None:
    first = head.kept[0]
    head.control.kill()
    until(lambda: head.kept[0] is not first)
    child = head.kept[0].child
    assert child
    head.raylet.kill()
    head.raylet.wait()
    head.keeping.join(30)
    assert child.wait(30) != 0


def test_where_ray_is_stopped_nothing_is_started_again(
    head: Head, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As long as it really is: on a busy machine what is killed takes its time to end.
    monkeypatch.setattr(keeper, "_ALONE_S", ALONE_S)
    # As `ray stop` does it: one after the other.
    head.control.kill()
    head.raylet.kill()
    head.raylet.wait()
    head.keeping.join(30)
    assert not head.keeping.is_alive()
    assert head.kept[0].child is None
    assert capsys.readouterr().out == ""


def test_the_autoscaler_is_ended_while_the_control_service_is_away_and_begins_anew_when_all_is_settled(head: Head) -> None:
    head.may_listen.unlink()
    head.control.kill()
    head.autoscaler.wait(30)
    until(lambda: head.kept[0].child is not None)
    # It runs, but does not listen yet: the hosts cannot tell it that they live.
    time.sleep(0.5)  # longer than a settled control service would need
    assert head.kept[1].child is None
    head.may_listen.touch()
    until(lambda: head.kept[1].child is not None)
    assert head.kept[1].is_alive()


def test_the_dashboards_parts_leave_the_cores_to_others_while_the_control_service_is_away(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_BREATH_EVERY_S", 0.5)
    monkeypatch.setattr(keeper, "_BREATH_S", 0.1)
    head.may_listen.unlink()
    head.control.kill()
    until(lambda: head.parts() == "STST")
    # From time to time they tell the dashboard that they live.
    until(lambda: head.parts() == "SSSS")
    until(lambda: head.parts() == "STST")
    head.may_listen.touch()
    until(lambda: head.kept[1].child is not None)
    # One that waits for a core does not sleep.
    assert "T" not in head.parts()
    time.sleep(0.6)  # longer than they were halted before
    assert "T" not in head.parts()
    until(lambda: head.parts() == "SSSS")


def test_the_dashboards_parts_go_on_where_the_keeper_ends(head: Head) -> None:
    head.may_listen.unlink()
    head.control.kill()
    until(lambda: head.parts() == "STST")
    head.raylet.kill()
    head.raylet.wait()
    head.keeping.join(30)
    until(lambda: head.parts() == "SSSS")


def test_who_ends_the_keeper_alone_leaves_what_it_started(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    head.control.kill()
    until(lambda: head.kept[0].child is not None)
    started = head.kept[0].child
    assert started

    def told_to_end(now: float) -> None:
        raise SystemExit

    another = Keeper(head.seen(head.raylet.pid), head.kept)
    monkeypatch.setattr(another, "_look", told_to_end)
    with pytest.raises(SystemExit):
        another.run()
    assert started.poll() is None


def test_parts_are_woken_though_their_dashboard_has_ended(head: Head) -> None:
    parts = _below(head.dashboard.pid)
    head.may_listen.unlink()
    head.control.kill()
    until(lambda: head.parts() == "STST")
    head.dashboard.kill()
    head.dashboard.wait()
    assert any(keeper._began(pid) for pid in parts)
    head.may_listen.touch()
    # Awake, they see that nobody needs them.
    until(lambda: not any(keeper._began(pid) for pid in parts))


def test_a_keeper_wakes_what_one_before_it_has_halted(head: Head) -> None:
    _, first, *_ = _below(head.dashboard.pid)

    def is_halted() -> bool:
        # The first keeper may just have begun, and wakes it.
        os.kill(first, signal.SIGSTOP)
        return "T" in head.parts()

    until(is_halted)
    keeping = threading.Thread(target=Keeper(head.seen(head.raylet.pid), head.kept).run)
    keeping.start()
    until(lambda: head.parts() == "SSSS")
    head.raylet.kill()
    keeping.join(30)
