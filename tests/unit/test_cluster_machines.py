"""cluster.machines: what is added to a configuration, what is remembered, and when machines are ended again; Ray itself is not called."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.connection import reach
from cluster.errors import ClusterError, SettingsError
from cluster.facts import alone
from cluster.machines import keeper, ray_up
from cluster.machines.completing import END_KEEPER, KEEPER_PLACE, completed, dashboard_port
from cluster.machines.known import Known, known_folder, read_known, token_file, write_known
from cluster.machines.launcher_file import check_launcher
from cluster.machines.probe import MARK
from cluster.machines.said import unreached
from cluster.settings import ClusterSettings
from cluster.storage import Storage

LAUNCHER: dict[str, Any] = {"cluster_name": "lab", "provider": {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]}}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def make(change: dict[str, Any] | None = None, **settings: Any) -> ClusterSettings:
    return ClusterSettings(launcher=LAUNCHER | {"auth": {"ssh_user": "me"}} | (change or {}), **settings)


def test_what_is_missing_is_added(home: Path) -> None:
    found = completed(make())
    assert found["file_mounts"] == {"~/.ray/auth_token": f"{home}/.twohead/clusters/lab/token"}
    assert found["setup_commands"] == ["chmod 700 ~/.ray && chmod 600 ~/.ray/auth_token"]
    for key, option in (("head_start_ray_commands", " --node-ip-address=10.0.0.1"), ("worker_start_ray_commands", " --node-ip-address=$(")):
        stop, start = found[key]
        assert stop == "ray stop"
        assert "; env RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 " in start
        assert {"RAY_grpc_client_keepalive_timeout_ms=5000", "RAY_SERVE_PROXY_USE_GRPC=1"} < set(start.split())
        assert option in start
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in json.dumps(found)


def test_what_is_there_stays(home: Path) -> None:
    own = {
        "file_mounts": {"~/.ray/auth_token": "~/mine", "~/x": "x"},
        "setup_commands": ["pip install ray"],
        "head_start_ray_commands": ["ray stop", "RAY_AUTH_MODE=token nohup ray start --head --dashboard-port=9000", "echo ray starts"],
    }
    before = json.dumps(own)
    settings = make(own)
    found = completed(settings)
    assert json.dumps(own) == before
    assert found["file_mounts"] == own["file_mounts"]
    assert found["setup_commands"][1:] == ["pip install ray"]
    started = found["head_start_ray_commands"][1]
    assert started.startswith("RAY_AUTH_MODE=token nohup env RAY_USAGE_STATS_ENABLED=0 ")
    assert started.endswith(" ray start --head --dashboard-port=9000")
    assert found["head_start_ray_commands"][2] == "echo ray starts"
    assert dashboard_port(found) == 9000
    assert token_file(settings) == home / "mine"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ""),
        ({"head_store": "embedded"}, "RAY_gcs_storage=rocksdb RAY_gcs_storage_path=$HOME/.twohead/head-lab"),
        ({"head_store": "redis", "redis_address": "r:1"}, "RAY_REDIS_ADDRESS=r:1 RAY_external_storage_namespace=lab"),
    ],
)
def test_a_head_store_is_the_heads_alone(settings: dict[str, Any], expected: str) -> None:
    found = completed(make(**settings))
    (start,) = [command for command in found["head_start_ray_commands"] if "ray start" in command]
    assert expected in start
    assert "RAY_gcs_storage" not in found["worker_start_ray_commands"][1]
    # With one, workers wait for their head.
    assert ("reconnect_timeout_s=600" in found["worker_start_ray_commands"][1]) == bool(settings)
    assert ("RAY_REDIS" in start) == (settings.get("head_store") == "redis")


def test_a_head_that_can_come_back_has_a_keeper(home: Path) -> None:
    assert not [command for command in completed(make())["head_start_ray_commands"] if KEEPER_PLACE in command]
    found = completed(make(head_store="embedded"))
    assert Path(found["file_mounts"][KEEPER_PLACE]) == Path(keeper.__file__)
    end, _, _, begin = found["head_start_ray_commands"]
    assert (end, KEEPER_PLACE in begin) == (END_KEEPER, True)
    assert not [command for command in found["worker_start_ray_commands"] if KEEPER_PLACE in command]


def test_a_cluster_is_remembered_by_its_name_and_by_nothing_else(home: Path) -> None:
    settings = make({"cluster_name": "x_1.y-z"})
    folder = known_folder(settings)
    assert folder == home / ".twohead/clusters/x_1.y-z"
    assert read_known(settings) is None
    write_known(folder, Known("http://h:1", 5.0))
    assert read_known(settings) == Known("http://h:1", 5.0)
    (folder / "facts.json").write_text("{")
    assert read_known(settings) is None
    assert known_folder(ClusterSettings()) is None


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../../x", "/x", "a b", "-x", "x\n", "$(x)"])
def test_a_name_that_leads_elsewhere_is_refused_before_anything_is_read_or_removed(home: Path, name: str) -> None:
    settings = make({"cluster_name": name})
    Storage(str(home / ".twohead")).write_bytes("launcher.yaml", b"{}")
    uses: list[Callable[[], object]] = [
        lambda: known_folder(settings),
        lambda: read_known(settings),
        lambda: check_launcher(settings),
        lambda: ray_up.down(settings, print),
    ]
    for use in uses:
        with pytest.raises(SettingsError) as raised:
            use()
        assert raised.value.message.startswith(f"cluster.launcher.cluster_name is {name!r}, but must begin with a letter or digit")
    assert (home / ".twohead/launcher.yaml").exists()


def test_machines_that_are_not_up_are_not_reached() -> None:
    with pytest.raises(ClusterError) as raised, reach(make()):
        pass
    assert raised.value.message == "the machines of cluster.launcher are not up"
    assert raised.value.hint == "start them: python -m cluster up"


class Calls(list[str]):
    """Ray's verbs that were called, and how the head's probe answers."""

    answers: list[dict[str, Any] | None]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made = Calls()

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[Any]:
        verb = "ssh" if command[0] == "ssh" else command[3]
        made.append(verb)
        answer = made.answers.pop(0) if verb == "exec" else None
        told = {"exec": f"noise\n{MARK}{json.dumps(answer)}\n" if answer else "", "get-head-ip": "noise\n10.0.0.1\n"}.get(verb, "")
        return subprocess.CompletedProcess(command, 0, told if verb == "ssh" else told.encode(), "")

    monkeypatch.setattr(subprocess, "run", run)
    return made


def _up(settings: ClusterSettings) -> tuple[Known, bool]:
    return ray_up.up(settings, lambda _: None)


def test_up_starts_them_and_makes_a_token_that_only_its_owner_reads(calls: Calls, home: Path) -> None:
    calls.answers = [{"alive": 2, "stranger": 401}]
    known, is_new = _up(make())
    assert (known.dashboard_url, is_new, calls) == ("http://10.0.0.1:8265", True, ["up", "exec", "get-head-ip"])
    folder = home / ".twohead/clusters/lab"
    assert [path.stat().st_mode & 0o777 for path in (folder, folder / "token")] == [0o700, 0o600]
    assert read_known(make()) == known


def test_a_token_that_is_brought_along_is_made_where_it_is_missing_and_its_folder_stays_as_it_is(calls: Calls, home: Path) -> None:
    calls.answers = [{"alive": 2, "stranger": 401}]
    home.chmod(0o755)
    _up(make({"file_mounts": {"~/.ray/auth_token": "~/mine"}}))
    assert [path.stat().st_mode & 0o777 for path in (home, home / "mine")] == [0o755, 0o600]


def test_machines_that_run_are_not_started_again(calls: Calls) -> None:
    calls.answers = [{"alive": 2, "stranger": 401}, {"alive": 1, "stranger": 401}]
    first, _ = _up(make())
    calls.clear()
    assert _up(make()) == (first, False)
    assert calls == ["exec"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"alive": 2, "stranger": 200}, "lab: the Jobs API answered 200 without a token, but must answer 401"),
        ({"alive": 1, "stranger": 401}, "1 of 2 nodes came within 20 minutes"),
        (None, "0 of 2 nodes came within 20 minutes"),
    ],
)
def test_machines_that_let_strangers_in_or_did_not_come_are_ended(calls: Calls, answer: dict[str, Any] | None, message: str) -> None:
    calls.answers = [answer]
    with pytest.raises(ClusterError) as raised:
        _up(make())
    assert raised.value.message == message
    assert calls == ["up", "exec", "down", "ssh", "ssh"]
    assert read_known(make()) is None


def test_a_head_that_comes_back_is_not_taken_away_because_others_are_missing(calls: Calls) -> None:
    calls.answers = [{"alive": 2, "stranger": 401}, None, {"alive": 1, "stranger": 401}]
    _up(make())
    calls.clear()
    with pytest.raises(ClusterError, match="1 of 2 nodes"):
        _up(make())
    assert calls == ["exec", "up", "exec"]


def test_a_head_whose_dashboard_alone_answers_is_brought_back(calls: Calls) -> None:
    calls.answers = [{"alive": 2, "stranger": 401}, {"alive": 0, "stranger": 401}, {"alive": 2, "stranger": 401}]
    _up(make())
    calls.clear()
    assert _up(make())[1]
    assert calls == ["exec", "up", "exec", "get-head-ip"]


def test_a_head_that_is_not_reached_is_not_started_anew(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    calls.answers = [{"alive": 2, "stranger": 401}]
    _up(make())
    calls.clear()

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        calls.append(command[3])
        return subprocess.CompletedProcess(command, 255, b"ssh: connect: no route to host\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ClusterError) as raised:
        _up(make())
    found = "`ray exec` ended with exit code 255: ssh: connect: no route to host"
    assert raised.value.message == f"the head of lab is not reached: {found}"
    assert raised.value.hint.endswith("; where the head is gone for good, `python -m cluster down` forgets it")
    assert raised.value.hint.startswith("is the machine on, and may you reach its sshd from here?; all of it is in ")
    assert calls == ["exec"]


def test_two_at_once_take_turns(home: Path) -> None:
    code = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with alone(home / "x", ""):
        assert (home / "x").stat().st_mode & 0o777 == 0o700
        done = subprocess.run([sys.executable, "-c", code, str(home / "x/lock")], capture_output=True, text=True, check=False)
        assert "BlockingIOError" in done.stderr
    (home / "file").touch()
    with pytest.raises(ClusterError, match="Not a directory"), alone(home / "file/x", ""):
        pass


def test_a_command_of_ray_that_fails_is_told_with_its_last_line(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    verbs: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        verbs.append(command[3])
        said = (
            b"2026 ERR updater.py:1 -- \x1b[31m!!!\x1b[39m\n\x1b[31mError: no such host\x1b[39m\nsee above\n2026 ERR updater.py:1 -- !!!\n"
        )
        return subprocess.CompletedProcess(command, 3, said)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ClusterError) as raised:
        _up(make())
    assert raised.value.message == "`ray up` ended with exit code 3: Error: no such host"
    assert raised.value.hint == f"all of it is in {home}/.twohead/clusters/lab/ray.log"
    # Tried once more, and then ended.
    assert verbs == ["up", "up", "down"]


# As Ray 2.60 says it, over and over while it waits; ssh's own words, on standard error, come first in the log.
WAITED = (
    "2026 INFO updater.py:333 -- SSH still not available \x1b[2m({})\x1b[22m, retrying in \x1b[1m5\x1b[22m seconds.\n"
    "Exception: wait_ready timeout exceeded.\n"
    "2026 ERR updater.py:193 -- \x1b[31mError message: wait_ready timeout exceeded.\x1b[39m\n2026 ERR updater.py:194 -- !!!\n"
)


@pytest.mark.parametrize(
    ("ssh", "python", "told", "to_do"),
    [
        ("ssh: connect to host 10.0.0.1 port 22: Connection refused", "SSH command failed.", None, "is the machine on"),
        ("ssh: connect to host 10.0.0.1 port 22: No route to host", "SSH command failed.", None, "is the machine on"),
        ("me@10.0.0.1: Permission denied (publickey)", "SSH command failed.", None, "is auth.ssh_user right"),
        ("ssh: Could not resolve hostname h: Name or service not known", "SSH command failed.", None, "is the address below"),
        ("Host key verification failed", "SSH command failed.", "10.0.0.1: Host key verification failed", "was the machine set up anew"),
        ("", "[Errno -2] Name or service not known", "10.0.0.1: Name or service not known", "is the address below"),
        # As Python writes it in a list of words.
        (
            "", "gaierror('[Errno -3] Temporary failure in name resolution')", "10.0.0.1: Temporary failure in name resolution",
            "is the address below",
        ),
        ("Connection to 10.0.0.1 port 22 timed out", "SSH command failed.", None, "is the machine on"),
        ("Connection closed by 10.0.0.1 port 22", "SSH command failed.", None, "is the machine on"),
        (
            "Connection timed out during banner exchange", "SSH command failed.", "10.0.0.1: Connection timed out during banner exchange",
            "is the machine on",
        ),
        ("Received disconnect from 10.0.0.1 port 22:2: Too many authentication failures", "SSH command failed.", None, "is auth.ssh_user"),
        ("Received disconnect from 10.0.0.1 port 22:11: it goes down", "SSH command failed.", None, "is the machine on"),
        ("Timeout, server 10.0.0.1 not responding.", "SSH command failed.", "Timeout, server 10.0.0.1 not responding", "is the machine on"),
        (
            "", "[Errno 2] No such file or directory: 'ssh'", "10.0.0.1: No such file or directory: 'ssh'", "install ssh here",
        ),
    ],
)  # fmt: skip
def test_up_tells_at_once_which_host_refused_and_why(
    monkeypatch: pytest.MonkeyPatch, home: Path, ssh: str, python: str, told: str | None, to_do: str
) -> None:
    verbs: list[str] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        verb = "ssh" if command[0] == "ssh" else command[3]
        verbs.append(verb)
        if verb != "up":
            return subprocess.CompletedProcess(command, 0, "" if verb == "ssh" else b"", "")
        options["stderr"].write(f"{ssh}\n".encode())
        return subprocess.CompletedProcess(command, 1, WAITED.format(python).encode())

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ClusterError) as raised:
        _up(make())
    assert raised.value.message == f"`ray up` ended with exit code 1: {told or ssh}"
    assert raised.value.hint.startswith(to_do)
    assert raised.value.hint.endswith(f"; all of it is in {home}/.twohead/clusters/lab/ray.log")
    # Ray has waited for minutes: not once more.
    assert verbs == ["up", "down", "ssh", "ssh"]


@pytest.mark.parametrize(
    ("said", "head"),
    [
        ("E1130 chttp2_transport.cc:1 ipv4:10.0.0.1:6379: Connection reset by peer", "10.0.0.1"),
        ("recvmsg: Connection reset by peer", None),
        ("could not reach ec2.eu-west-1.amazonaws.com: [Errno -3] Temporary failure in name resolution", None),
    ],
)
def test_what_others_say_of_connections_and_names_is_no_word_of_ssh(said: str, head: str | None) -> None:
    assert unreached("exec", f"{said}\nError: it ended\n", head) is None


def test_a_host_of_a_cloud_has_no_address_to_be_told() -> None:
    assert unreached("exec", "Host key verification failed", None) == (
        "the head: Host key verification failed", "was the machine set up anew? ssh-keygen -R HOST forgets its old key",
    )  # fmt: skip


def test_a_host_that_refused_at_first_is_not_why_its_setup_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    said = b"ssh: connect to host 10.0.0.1 port 22: Connection refused\nSuccess.\nError: pip is not there\n"
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, said))
    with pytest.raises(ClusterError, match=r"exit code 1: Error: pip is not there$"):
        _up(make())


def test_a_host_that_dies_holds_no_command_up(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    calls.answers = [{"alive": 2, "stranger": 401}]
    _up(make())
    inner: Callable[..., Any] = subprocess.run
    seen: list[list[str]] = []

    def run(command: list[str], **options: Any) -> Any:
        if command[0] == "ssh":
            seen.append(command)
            raise FileNotFoundError(2, "No such file or directory", "ssh")
        return inner(command, **options)

    monkeypatch.setattr(subprocess, "run", run)
    said: list[str] = []
    assert ray_up.down(make(), said.append)
    assert {"ServerAliveInterval=15", "ServerAliveCountMax=4", "ConnectTimeout=30"} <= set(seen[0])
    assert said == [f"10.0.0.{host}: ssh: No such file or directory; Ray may still run there" for host in (2, 1)]


def test_what_the_launcher_says_needs_a_place(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ClusterError) as raised:
        ray_up.drain(make(), "n1", 60)
    assert raised.value.message.endswith("/.twohead/clusters/lab: No space left on device")


@pytest.mark.parametrize("wrong", [{"file_mounts": ["a"]}, {"provider": {"head_ip": "10.0.0.1"}}, {"setup_commands": 3}])
def test_a_mistake_in_the_configuration_is_told_by_every_verb(calls: Calls, wrong: dict[str, Any]) -> None:
    calls.answers = [{"alive": 2, "stranger": 401}]
    _up(make())
    settings = make(wrong)
    for use in (lambda: _up(settings), lambda: ray_up.down(settings, print), lambda: ray_up.drain(settings, "n", 9)):
        with pytest.raises(SettingsError, match=r"^cluster\.launcher"):
            use()
    if "file_mounts" in wrong:
        with pytest.raises(SettingsError, match=r"^cluster\.launcher\.file_mounts is a list, but must be a mapping"), reach(settings):
            pass


def test_down_ends_every_host_and_forgets_the_token(calls: Calls, home: Path) -> None:
    calls.answers = [{"alive": 2, "stranger": 401}]
    _up(make())
    calls.clear()
    assert ray_up.down(make(), lambda _: None)
    assert calls == ["down", "ssh", "ssh"]
    assert not (home / ".twohead/clusters/lab").exists()
    assert not ray_up.down(make(), lambda _: None)


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        ({"head_store": "embedded"}, 'rm -rf "$HOME/.twohead/head-lab"'),
        ({"head_store": "redis", "redis_address": "10.0.0.9:6379"}, "cleanup_redis_storage"),
        ({}, None),
    ],
)
def test_down_takes_away_what_the_head_kept(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, store: dict[str, Any], expected: str | None
) -> None:
    calls.answers = [{"alive": 2, "stranger": 401}]
    settings = make(**store)
    _up(settings)
    inner: Callable[..., Any] = subprocess.run
    told: dict[str, list[str]] = {}

    def run(command: list[str], **options: Any) -> Any:
        if command[0] == "ssh":
            told.setdefault(command[-2], []).append(command[-1])
        return inner(command, **options)

    monkeypatch.setattr(subprocess, "run", run)
    assert ray_up.down(settings, lambda _: None)
    removals = [words for words in told["me@10.0.0.1"] if "rm -rf" in words or "cleanup_redis_storage" in words]
    assert [expected in words for words in removals] == ([True] if expected else [])
    assert not [words for words in told["me@10.0.0.2"] if "rm -rf" in words or "cleanup_redis_storage" in words]


def test_of_a_cloud_down_says_that_a_redis_keeps_what_it_has(calls: Calls) -> None:
    calls.answers = [{"alive": 1, "stranger": 401}]
    cloud = {
        "provider": {"type": "aws", "region": "eu-west-1"},
        "available_node_types": {"head": {"node_config": {}, "resources": {}}},
        "head_node_type": "head",
    }
    settings = make(cloud, head_store="redis", redis_address="10.0.0.9:6379")
    _up(settings)
    said: list[str] = []
    assert ray_up.down(settings, said.append)
    assert said == ["what lab kept in 10.0.0.9:6379 is still there: the next cluster of that name begins with it"]


def test_draining_from_a_machine_that_started_nothing_leaves_nothing_for_down_to_end(calls: Calls, home: Path) -> None:
    calls.answers = [None]
    ray_up.drain(make(), "n1", 60)
    assert calls == ["exec"]
    folder = home / ".twohead/clusters/lab"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not ray_up.is_started_here(make())
    assert not ray_up.down(make(), lambda _: None)
    assert calls == ["exec"]


def test_draining_says_where_it_cannot_write(calls: Calls, home: Path) -> None:
    (home / ".twohead").touch()
    with pytest.raises(ClusterError) as raised:
        ray_up.drain(make(), "n1", 60)
    assert raised.value.message == f"{home}/.twohead/clusters/lab: Not a directory"
    assert raised.value.hint == "what Ray's launcher says is kept there"


def test_down_ends_the_keeper_first(calls: Calls) -> None:
    calls.answers = [{"alive": 2, "stranger": 401}]
    settings = make(head_store="embedded")
    _up(settings)
    calls.clear()
    assert ray_up.down(settings, lambda _: None)
    # The keeper, Ray, what was brought to both hosts, and what the head kept.
    assert calls == ["ssh", "down", "ssh", "ssh", "ssh"]


def test_a_host_that_cannot_be_ended_is_named(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    calls.answers = [{"alive": 2, "stranger": 401}]
    _up(make())
    inner: Callable[..., Any] = subprocess.run

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        if command[0] != "ssh":
            found: subprocess.CompletedProcess[Any] = inner(command, **options)
            return found
        is_worker = "me@10.0.0.2" in command
        assert is_worker or "me@10.0.0.1" in command
        return subprocess.CompletedProcess(command, 255 if is_worker else 0, "", "no route to host\n")

    monkeypatch.setattr(subprocess, "run", run)
    said: list[str] = []
    ray_up.down(make(), said.append)
    assert said == ["10.0.0.2: no route to host; Ray may still run there"]


def test_without_a_launcher_there_is_nothing_to_start() -> None:
    with pytest.raises(SettingsError, match=r"cluster\.launcher is null"):
        _up(ClusterSettings())
