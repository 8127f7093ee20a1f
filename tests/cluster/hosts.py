"""Hosts for tests: network namespaces on one machine, each with its own address, processes, folders, name and sshd.

A host is more than a process here: it can lose its cable and its power at once, as a machine does. What is below `/srv` is one folder
for all of them, as a network file system would be. Needs root.
"""

import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).parents[2]
NETWORK = "10.77.0"
START_TIMEOUT_S = 20.0
PROGRAMS = ("ip", "unshare", "nsenter", "sshd", "ssh", "rsync", "redis-server", "redis-cli")
_PATH = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"

# Its disk holds /root and /tmp, and outlives its power. The source and Python's own folder are put
# back over it, because both may well lie there.
_BOOT = """\
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir -p /mnt/source /mnt/python
mount --bind {source} /mnt/source
mount --bind {python} /mnt/python
mount --bind {shared} /srv
mkdir -p -m 0700 {disk}/root
mkdir -p -m 1777 {disk}/tmp
for place in /run /dev/shm; do mount -t tmpfs tmpfs $place; done
chmod 1777 /dev/shm
mount --bind {disk}/root /root
mount --bind {disk}/tmp /tmp
if [ ! -e {source}/pyproject.toml ]; then mkdir -p {source}; mount --bind /mnt/source {source}; fi
if [ ! -e {python}/bin ]; then mkdir -p {python}; mount --bind /mnt/python {python}; fi
hostname {name}
ip link set lo up
mkdir -p -m 0755 /run/sshd
mkdir -p -m 0700 /root/.ssh
cp /srv/.keys/id.pub /root/.ssh/authorized_keys
cp /srv/.keys/id /root/.ssh/id
chmod 0600 /root/.ssh/*
echo 'export PATH={path}' > /root/.profile
cp /root/.profile /root/.bash_profile
exec /usr/sbin/sshd -D -e -f /srv/.keys/sshd_config
"""
_TRY = "set -e; mount -t tmpfs tmpfs /mnt; ip link add br0 type bridge; ip link add v0 type veth peer name v1; hostname try"
_SSHD = """\
HostKey /srv/.keys/host
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
PidFile none
MaxStartups 100
"""


def missing_programs() -> list[str]:
    """Name the programs that are missing here."""
    return [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]


def why_not() -> str:
    """Say what keeps this machine from having hosts; nothing where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts are network namespaces, which only root of a Linux machine makes"
    own = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc", "sh", "-c"]
    name = f"th{secrets.token_hex(2)}-try"
    tries = [[*own, _TRY], ["ip", "netns", "add", name], ["ip", "netns", "del", name]]
    for words in tries:
        done = subprocess.run(words, env={"PATH": _PATH}, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"hosts are network namespaces, and this machine lets root make none: {done.stderr.strip()}"
    return ""


@dataclass
class Host:
    """One of them.

    Attributes:
        name: Its host name.
        address: On the network of all hosts.
        namespace: Name of its network namespace.
        shared: The folder that all of them see as `/srv`.
        disk: The folder that holds its own `/root` and `/tmp`.
        log: What its sshd says.
    """

    name: str
    address: str
    namespace: str
    shared: Path
    disk: Path
    log: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Give it power, and wait until its sshd listens."""
        _ip("link", "set", "eth0", "up", namespace=self.namespace)
        boot = _BOOT.format(source=SOURCE, python=sys.base_prefix, shared=self.shared, disk=self.disk, name=self.name, path=_PATH)
        own = ["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        command = ["ip", "netns", "exec", self.namespace, "unshare", *own, "bash", "-c", boot]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env={"PATH": _PATH}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while "Server listening" not in self.log.read_text().rpartition("\0")[2]:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start: {self.log.read_text()}")
            time.sleep(0.05)  # sshd says it in a file, and has no other event for it

    @property
    def is_on(self) -> bool:
        """Whether it has power."""
        return self._process is not None

    @property
    def first_pid(self) -> int:
        """Its process number one, as this machine counts."""
        assert self._process
        (child,) = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(child)

    def command(self, *words: str, folder: str = "/root", environment: Mapping[str, str] | None = None) -> list[str]:
        """Make the command line that runs these words on this host, as a login would."""
        variables = {"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", **(environment or {})}
        inside = f"cd {shlex.quote(folder)} && exec {shlex.join(words)}"
        entered = ["nsenter", f"--target={self.first_pid}", "--mount", "--pid", "--uts", "--ipc", "--net"]
        return [*entered, "env", "-i", *(f"{name}={value}" for name, value in variables.items()), "bash", "-c", inside]

    def run(self, *words: str, folder: str = "/root", timeout_s: float = 900.0, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run these words on this host and wait for their end."""
        command = self.command(*words, folder=folder, environment=variables)
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False)

    def lose(self) -> None:
        """Take its cable and its power away: nobody hears a goodbye."""
        if self._process is None:
            return
        _ip("link", "set", "eth0", "down", namespace=self.namespace)
        if self._process.poll() is None:
            os.kill(self.first_pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        with self.log.open("ab") as log:
            log.write(b"\0")


@contextmanager
def hosts(*names: str) -> Iterator[dict[str, Host]]:
    """Give hosts with these names, all on one network, for the length of the block."""
    mark = f"th{secrets.token_hex(2)}"
    folder = Path(tempfile.mkdtemp(prefix="hosts-"))
    shared = folder / "srv"
    _write_keys(shared / ".keys")
    switch = f"{mark}-sw"
    made: dict[str, Host] = {}
    try:
        _ip("netns", "add", switch)
        _ip("link", "add", "br0", "type", "bridge", namespace=switch)
        _ip("link", "set", "br0", "up", namespace=switch)
        for number, name in enumerate(names, start=1):
            made[name] = _plug(
                Host(name, f"{NETWORK}.{number}", f"{mark}-{name}", shared, folder / name, folder / f"{name}.log"), switch, number
            )
            made[name].start()
        yield dict(made)
    finally:
        for host in made.values():
            host.lose()
        for namespace in (*(host.namespace for host in made.values()), switch):
            _ip("netns", "del", namespace)
        shutil.rmtree(folder, ignore_errors=True)


def _write_keys(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True)
    for name in ("id", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "sshd_config").write_text(_SSHD)


def _plug(host: Host, switch: str, number: int) -> Host:
    _ip("netns", "add", host.namespace)
    _ip("link", "add", f"to{number}", "type", "veth", "peer", "name", "eth0", "netns", host.namespace, namespace=switch)
    _ip("link", "set", f"to{number}", "master", "br0", "up", namespace=switch)
    _ip("addr", "add", f"{host.address}/24", "dev", "eth0", namespace=host.namespace)
    return host


def _ip(*words: str, namespace: str | None = None) -> None:
    where = ["-n", namespace] if namespace else []
    subprocess.run(["ip", *where, *words], env={"PATH": _PATH}, check=True)
