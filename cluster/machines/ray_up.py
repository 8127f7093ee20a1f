"""Starts and ends several machines through Ray's own launcher, and proves that they keep strangers out.

Ray's commands are called as a person would call them; what they print is kept in a file. It does not know what runs on the machines.
"""

import base64
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError, SettingsError
from cluster.facts import alone
from cluster.machines import notice, probe
from cluster.machines.completing import END_KEEPER, HEADS_PYTHON, KEEPER_PLACE, dashboard_port, store_removal
from cluster.machines.known import TOKEN_PLACE, Known, expanded, forget, known_folder, read_known, token_file, write_known
from cluster.machines.launcher_file import check_launcher, complete
from cluster.machines.said import unreached, why
from cluster.session import write_token
from cluster.settings import ClusterSettings

Say = Callable[[str], None]


class UnreachedError(ClusterError):
    """A host refuses, is not there, or nobody knows its name."""


LAUNCHER_FILE = "launcher.yaml"
# What `drain` hands to Ray: where nobody called `up`, it must not look to `down` as if somebody had.
_DRAIN_FILE = "drain.yaml"
LOG_FILE = "ray.log"
# A cloud takes minutes to start a machine, and `pip` some to fill it.
NODES_TIMEOUT_S = 1_200.0
_CONNECT_S = 30
# A host that acknowledges nothing for four times so long is gone, also in the middle of a command.
_ALIVE_S = 15
# So long a control service that is started again may take.
_CONTROL_S = 30.0
_FOLDER_HINT = "what Ray's launcher says is kept there"
_AT_ONCE = 16


def up(settings: ClusterSettings, say: Say) -> tuple[Known, bool]:
    """Start the machines of `cluster.launcher`, or find them running; what runs there is not disturbed.

    Args:
        settings: The section `cluster`.
        say: Gets one line a step.

    Returns:
        Where they are, and whether this call started them.

    Raises:
        SettingsError: The configuration would not do.
        ClusterError: They did not start, or would have let strangers in; then they are ended again.
    """
    folder = _folder(settings)
    launcher = check_launcher(settings)
    with alone(folder, _FOLDER_HINT):
        token = token_file(settings)
        if token and not token.exists():
            _make_token(token)
        return _up(settings, _Machines(launcher, folder), say)


def _up(settings: ClusterSettings, machines: "_Machines", say: Say) -> tuple[Known, bool]:
    before = read_known(settings)
    if before and (found := _look_again(machines)):
        _require_closed(found, machines)
        return before, False
    launcher = machines.launcher
    say(f"{'bringing back' if before else 'starting'} {_described(launcher)} with Ray's launcher; what it says is in {machines.log}")
    try:
        _start(machines, say)
        _wait(machines, wanted_nodes(launcher), say)
    except BaseException:
        # Also after Ctrl-C: what came up so far may be open, and costs money. A head that came back has others' work to go on with.
        if before is None:
            with suppress(ClusterError):
                machines.end(say)
        raise
    url = settings.address if settings.address != "local" else f"http://{machines.head_ip()}:{dashboard_port(launcher)}"
    known = Known(url, time.time())
    write_known(machines.folder, known)
    return known, True


def _start(machines: "_Machines", say: Say) -> None:
    try:
        machines.ray("up", "--yes", "--no-config-cache")
    except UnreachedError:
        # Ray has waited for minutes already.
        raise
    except ClusterError as error:
        # Ray gives its own processes 30 s to start, which a busy machine may need.
        say(f"once more: {error.message}")
        machines.ray("up", "--yes", "--no-config-cache")


def _look_again(machines: "_Machines") -> dict[str, Any] | None:
    try:
        found = machines.look(wanted=1, patience_s=_CONTROL_S)
    except ClusterError as error:
        # Nobody knows what runs there, and starting it anew would end that.
        hint = f"{error.hint}; where the head is gone for good, `python -m cluster down` forgets it"
        raise ClusterError(f"the head of {machines.name} is not reached: {error.message}", hint) from None
    # Its dashboard may still answer where what it asks, the control service, has ended.
    return found if found and found["alive"] else None


def is_started_here(settings: ClusterSettings) -> bool:
    """Tell whether `down` has machines to end, and they are those that `cluster.address`, where it is set, leads to."""
    if not (_folder(settings) / LAUNCHER_FILE).exists():
        return False
    known = read_known(settings)
    return settings.address == "local" or (known is not None and known.dashboard_url == settings.address)


def down(settings: ClusterSettings, say: Say) -> bool:
    """End the machines, and take the token away.

    Returns:
        Whether there were any.

    Raises:
        ClusterError: Ray's launcher could not.
    """
    folder = _folder(settings)
    if not (folder / LAUNCHER_FILE).exists():
        return False
    with alone(folder, _FOLDER_HINT):
        machines = _Machines(complete(settings), folder)
        machines.end(say, store_removal(settings))
        if settings.head_store == "redis" and not machines.is_local:
            left = f"what {machines.name} kept in {settings.redis_address} is still there"
            say(f"{left}: the next cluster of that name begins with it")
        forget(folder)
    return True


def drain(settings: ClusterSettings, node_id: str, within_s: int) -> None:
    """Tell Ray that a node goes within so long: nothing new starts there, and replicas move.

    Raises:
        ClusterError: The head is not reached, Ray refuses, or there is no place for what it says.
    """
    folder = _folder(settings)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ClusterError(f"{error.filename}: {error.strerror}", _FOLDER_HINT) from None
    machines = _Machines(complete(settings), folder, _DRAIN_FILE)
    machines.ray("exec", "--no-config-cache", after=[shlex.join([*notice.drain_command(within_s), f"--node-id={node_id}"])])


def wanted_nodes(launcher: Mapping[str, Any]) -> int:
    """Count the nodes that are always there, with the head."""
    kinds: Mapping[str, Any] = launcher.get("available_node_types", {})
    named = len(launcher["provider"].get("worker_ips", ()))
    return 1 + named + sum(int(kind.get("min_workers", 0)) for kind in kinds.values())


def _wait(machines: "_Machines", wanted: int, say: Say) -> None:
    say(f"the head is up; waiting for {wanted} nodes …")
    found = machines.look(wanted, NODES_TIMEOUT_S)
    if found is not None:
        # First: whoever is missing, nobody may get in.
        _require_closed(found, machines)
    if found is None or found["alive"] < wanted:
        there = found["alive"] if found else 0
        hint = f"{machines.log}, and /tmp/ray/session_latest/logs/monitor.log on the head, tell why"
        raise ClusterError(f"{there} of {wanted} nodes came within {NODES_TIMEOUT_S / 60:.0f} minutes", hint)


def _folder(settings: ClusterSettings) -> Path:
    folder = known_folder(settings)
    if folder is None:
        raise SettingsError("cluster.launcher is null, but must describe machines", "examples are in cluster/examples")
    return folder


def _make_token(path: Path) -> None:
    try:
        write_token(path)
    except OSError as error:
        raise ClusterError(f"{error.filename}: {error.strerror}", "the token needs a folder that you can write") from None


def _described(launcher: Mapping[str, Any]) -> str:
    return f"{launcher['cluster_name']} ({launcher['provider']['type']})"


def _require_closed(found: Mapping[str, Any], machines: "_Machines") -> None:
    if found["stranger"] != 401:
        raise ClusterError(
            f"{machines.name}: the Jobs API answered {found['stranger']} without a token, but must answer 401",
            "these machines do not keep strangers out: `python -m cluster down` ends them; do the start commands set RAY_AUTH_MODE?",
        )


class _Machines:
    """The machines that one configuration describes.

    Args:
        launcher: The completed configuration.
        folder: For it, and for what Ray says.
        file: Its name there.
    """

    def __init__(self, launcher: Mapping[str, Any], folder: Path, file: str = LAUNCHER_FILE) -> None:
        self.launcher = launcher
        self.folder = folder
        self.file = folder / file
        self.name = str(launcher["cluster_name"])
        self.log = folder / LOG_FILE

    def ray(self, verb: str, *words: str, after: Sequence[str] = ()) -> str:
        """Run one of Ray's commands on the configuration.

        Returns:
            What it printed to standard output.

        Raises:
            UnreachedError: No host was reached.
            ClusterError: It failed otherwise.
        """
        try:
            return self._ray(verb, words, after)
        except OSError as error:
            raise ClusterError(f"{error.filename or self.folder}: {error.strerror}", _FOLDER_HINT) from None

    def _ray(self, verb: str, words: Sequence[str], after: Sequence[str]) -> str:
        self.file.write_text(json.dumps(self.launcher, indent=2), encoding="utf-8")
        command = [sys.executable, "-m", "ray.scripts.scripts", verb, *words, str(self.file), *after]
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_COLOR_MODE": "false"}
        if self.is_local:
            # The other autoscaler never asks for a machine of this provider (ray-project/ray issue 57153).
            environment["RAY_UP_enable_autoscaler_v2"] = "0"
        with self.log.open("ab") as log:
            log.write(f"\n$ ray {verb}\n".encode())
            log.flush()
            done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, check=False)
            log.write(done.stdout)
        text = done.stdout.decode(errors="replace")
        if done.returncode != 0:
            said = self.log.read_text(encoding="utf-8", errors="replace").rpartition(f"$ ray {verb}")[2]
            ended, everything = f"`ray {verb}` ended with exit code {done.returncode}", f"all of it is in {self.log}"
            if (fault := unreached(verb, said, self.launcher["provider"].get("head_ip"))) is None:
                raise ClusterError(f"{ended}: {why(said)}", everything)
            raise UnreachedError(f"{ended}: {fault[0]}", f"{fault[1]}; {everything}")
        return text

    def look(self, wanted: int, patience_s: float) -> dict[str, Any] | None:
        """Ask the head on the head, see `probe`; None where no Ray answers there.

        Raises:
            ClusterError: The head is not reached.
        """
        source = base64.b64encode(Path(probe.__file__).read_bytes()).decode()
        program = f"import base64; exec(base64.b64decode('{source}'))"
        words = f"{HEADS_PYTHON} -c {shlex.quote(program)} {dashboard_port(self.launcher)} {wanted} {patience_s:g}"
        lines = [line for line in self.ray("exec", "--no-config-cache", after=[words]).splitlines() if line.startswith(probe.MARK)]
        found: dict[str, Any] = json.loads(lines[-1].removeprefix(probe.MARK)) if lines else {"stranger": None}
        return None if found["stranger"] is None else found

    def head_ip(self) -> str:
        """Tell the address at which the head is reached from here."""
        return self.ray("get-head-ip").strip().splitlines()[-1]

    def end(self, say: Say, forgetting: str = "") -> None:
        """End them all.

        Args:
            say: Gets a line for each host that could not be ended.
            forgetting: A command that takes away what the head kept for when it is lost; not for machines of a cloud, which go themselves.
        """
        if self.is_local and KEEPER_PLACE in self.launcher["file_mounts"]:
            # It would take Ray's control service, ended first, for one that ended alone.
            self._over_ssh(str(self.launcher["provider"]["head_ip"]), END_KEEPER)
        self.ray("down", "--yes")
        if not self.is_local:
            return
        # Ray's launcher only forgets hosts of one's own: their Ray would go on, and what it brought would stay.
        provider = self.launcher["provider"]
        workers = [str(address) for address in provider.get("worker_ips", ())]
        # The launcher copies the key it logs in with to the head. A token that was not made by `up` may be somebody's own.
        is_ours = self.launcher["file_mounts"][TOKEN_PLACE].startswith(str(self.folder))
        tidy = f"rm -f ~/ray_bootstrap_key.pem {TOKEN_PLACE if is_ours else ''}"
        head = str(provider["head_ip"])
        commands = dict.fromkeys(workers, f"ray stop; {tidy}") | {head: tidy}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for address, why in zip(commands, pool.map(self._over_ssh, commands, commands.values()), strict=True):
                if why:
                    say(f"{address}: {why}; Ray may still run there")
        if forgetting and (why := self._over_ssh(head, forgetting)):
            say(f"{head}: {why}; what this cluster kept in its head store may be there still, and the next one of its name begins with it")

    @property
    def is_local(self) -> bool:
        """Whether they are hosts of one's own, which Ray's launcher only forgets."""
        return bool(self.launcher["provider"]["type"] == "local")

    def _over_ssh(self, address: str, command: str) -> str:
        auth = self.launcher.get("auth", {})
        options = [
            "BatchMode=yes",
            f"ConnectTimeout={_CONNECT_S}",
            f"ServerAliveInterval={_ALIVE_S}",
            "ServerAliveCountMax=4",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
        ]
        if proxy := auth.get("ssh_proxy_command"):
            options.append(f"ProxyCommand={proxy}")
        words = ["ssh", *(word for option in options for word in ("-o", option))]
        if key := auth.get("ssh_private_key"):
            words += ["-i", str(expanded(str(key)))]
        words += [f"{auth['ssh_user']}@{address}" if "ssh_user" in auth else address, f"bash --login -c {shlex.quote(command)}"]
        try:
            done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
