"""cluster.session: folders, tokens, marks, and ending exactly our own processes."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import processes
from cluster import session as module
from cluster.errors import ClusterError
from cluster.processes import MARK_VARIABLE, end_processes, is_marked, name_of, words_of
from cluster.session import (
    OWNER_FILE,
    Session,
    applied,
    applied_to_ray,
    client_environment,
    new_session,
    private_session,
    sweep,
    write_token,
)

STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
WILLING = "import signal; print('ready', flush=True); signal.pause()"


@pytest.fixture
def session() -> Iterator[Session]:
    """A session in a folder of its own."""
    found = new_session()
    yield found
    found.end()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process with some variables, and wait until it is ready for signals."""
    processes: list[subprocess.Popen[str]] = []

    def _start(code: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, **variables})
        processes.append(process)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        return process

    yield _start
    for process in processes:
        process.kill()
        process.communicate()


def test_folder_and_token_are_for_the_owner_only(session: Session) -> None:
    assert session.folder.stat().st_mode & 0o777 == 0o700
    assert session.token_path.stat().st_mode & 0o777 == 0o600
    assert len(session.token_path.read_text()) == 64


def test_every_session_has_its_own_token(session: Session) -> None:
    other = new_session()
    try:
        assert other.token_path.read_text() != session.token_path.read_text()
    finally:
        other.end()


def test_a_socket_fits_below_the_folder(session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    below = "session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store"
    assert len(str(session.ray_folder / below)) <= 103
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    other = new_session()
    try:
        assert len(str(other.ray_folder / below)) <= 103
    finally:
        other.end()


def test_each_ray_of_a_machine_tells_prometheus_its_own_figures(session: Session) -> None:
    # Ray reads these names, each into the port that stands in its list of targets.
    from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
    from ray.dashboard.consts import DASHBOARD_METRIC_PORT

    environment = session.environment()
    ports = {int(environment["AUTOSCALER_METRIC_PORT"]), int(environment["DASHBOARD_METRIC_PORT"])}
    assert len(ports - {AUTOSCALER_METRIC_PORT, DASHBOARD_METRIC_PORT}) == 2


def test_the_environment_closes_ray(session: Session) -> None:
    environment = session.environment()
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == str(session.token_path)
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment[MARK_VARIABLE] == str(session.folder)
    assert session.token_path.read_text() not in "".join(environment.values())
    assert MARK_VARIABLE not in client_environment(session.token_path)


def test_an_old_token_is_replaced_even_if_others_could_read_it(tmp_path: Path) -> None:
    path = tmp_path / "cluster/token"
    path.parent.mkdir(mode=0o755)
    path.write_text("old")
    path.chmod(0o644)
    other = new_session(path)
    try:
        assert path.read_text() != "old"
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    finally:
        other.end()


def test_a_folder_that_is_somebodys_own_stays_open_and_one_that_is_made_is_closed(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    own.chmod(0o755)
    for folder, mode in ((own, 0o755), (tmp_path / "made", 0o700)):
        write_token(folder / "token")
        assert [path.stat().st_mode & 0o777 for path in (folder, folder / "token")] == [mode, 0o600]


def test_a_file_system_without_permissions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, mode=0o777: before(path, flags, 0o644))
    with pytest.raises(ClusterError) as raised:
        write_token(tmp_path / "cluster/token")
    assert raised.value.message == f"{tmp_path}/cluster/token: has mode 0644, but must have 0600"
    assert raised.value.hint == "keep cluster.storage on a file system with permissions"
    assert not (tmp_path / "cluster/token").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST_ROOT", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError) as raised:
        new_session(tmp_path / "file/token")
    assert raised.value.message == f"{tmp_path}/file: File exists"
    assert raised.value.hint == "Ray needs a writable folder for sockets, logs and its token"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(ClusterError, match=r"/none/twohead-\w+: No such file or directory$"):
        new_session()


def test_what_was_found_and_has_ended_has_no_name(session: Session, start: Callable[..., subprocess.Popen[str]]) -> None:
    mine = start(WILLING, **session.environment())
    (found,) = session.processes()
    assert name_of(found).startswith("python")
    assert words_of(found).endswith("signal.pause()")
    mine.kill()
    mine.wait(10)
    assert (name_of(found), words_of(found)) == ("", "")


def test_a_session_finds_and_ends_its_own_processes_only(session: Session, start: Callable[..., subprocess.Popen[str]]) -> None:
    mine = start(WILLING, **session.environment())
    stranger = start(WILLING, **{MARK_VARIABLE: f"{session.folder}-other"})
    assert [process.pid for process in session.processes()] == [mine.pid]
    assert is_marked(mine.pid, session.folder)
    assert not is_marked(stranger.pid, session.folder)
    assert session.end() == 1
    assert mine.wait(10) == -signal.SIGTERM
    assert stranger.poll() is None
    assert not session.folder.exists()
    assert not is_marked(mine.pid, session.folder)


def test_ending_twice_is_ending_once(session: Session) -> None:
    assert session.end() == 0
    assert session.end() == 0


def test_a_process_that_ignores_sigterm_is_killed(session: Session, start: Callable[..., subprocess.Popen[str]]) -> None:
    mine = start(STUBBORN, **session.environment())
    assert session.end(grace_s=0.1) == 1
    assert mine.wait(10) == -signal.SIGKILL


def test_a_process_that_survives_sigkill_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Immortal:
        pid = 77

        def terminate(self) -> None: ...
        def kill(self) -> None: ...

    monkeypatch.setattr(processes, "_lives", lambda process: True)
    monkeypatch.setattr(processes, "END_GRACE_S", 0.0)
    with pytest.raises(ClusterError) as raised:
        end_processes([Immortal()], 0.0)
    assert raised.value.message == "processes 77: did not end 0 s after SIGKILL"
    assert raised.value.hint == "they wait for a disk or a device; see `ps`"


def test_a_dead_process_is_not_marked(session: Session, start: Callable[..., subprocess.Popen[str]]) -> None:
    mine = start(WILLING, **session.environment())
    mine.kill()
    os.waitid(os.P_PID, mine.pid, os.WEXITED | os.WNOWAIT)
    # A zombie now: it has a number, but does not live.
    assert not is_marked(mine.pid, session.folder)


def test_applied_variables_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOHEAD_TEST_OLD", "before")
    monkeypatch.delenv("TWOHEAD_TEST_NEW", raising=False)
    with applied({"TWOHEAD_TEST_OLD": "within", "TWOHEAD_TEST_NEW": "within"}):
        assert (os.environ["TWOHEAD_TEST_OLD"], os.environ["TWOHEAD_TEST_NEW"]) == ("within", "within")
    assert os.environ["TWOHEAD_TEST_OLD"] == "before"
    assert "TWOHEAD_TEST_NEW" not in os.environ


def test_a_ray_that_was_imported_long_ago_takes_the_token_of_the_block(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray  # noqa: F401
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another cluster")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    other = new_session()
    try:
        for found in (session, other):
            with applied_to_ray(client_environment(found.token_path)):
                headers = get_auth_headers_if_auth_enabled({})
                assert {name.lower(): value for name, value in headers.items()} == {
                    "authorization": f"Bearer {found.token_path.read_text()}"
                }
        # What comes after the block is not asked for the token of a cluster that is gone.
        headers = get_auth_headers_if_auth_enabled({})
        assert [value for name, value in headers.items() if name.lower() == "authorization"] == ["Bearer of another cluster"]
    finally:
        other.end()


def test_a_private_session_leaves_nothing_even_after_an_error() -> None:
    sessions = []

    def fail() -> None:
        with private_session() as session:
            sessions.append(session)
            assert (session.folder / OWNER_FILE).exists()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not sessions[0].folder.exists()


def test_sweeping_spares_the_living_and_clears_the_dead(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(root))
    monkeypatch.setattr(module, "_LONGEST_ROOT", 1000)
    with private_session() as living:
        dead = new_session()
        (dead.folder / OWNER_FILE).touch()
        lasting = new_session()
        child = start(WILLING, **dead.environment())
        sweep()
        assert living.folder.exists()
        assert not dead.folder.exists()
        assert child.wait(10) == -signal.SIGTERM
        # A cluster of `up` has no owner: it is meant to stay.
        assert lasting.folder.exists()


def test_sweeping_looks_where_sessions_are_made_that_have_too_long_a_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "short").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "_SHORT_ROOT", tmp_path / "short")
    monkeypatch.setattr(module, "_LONGEST_ROOT", 1)
    dead = new_session()
    assert dead.folder.parent == tmp_path / "short"
    (dead.folder / OWNER_FILE).touch()
    sweep()
    assert not dead.folder.exists()
