"""What Ray's launcher said when it failed: the one line that tells why, and what to do about it where no host was reached.

The launcher says over and over that it waits, and in the end only that it could not; ssh's own words stand above. It calls nobody.
"""

import re

# What Ray says once it waited long enough for a host.
_WAITED = "wait_ready timeout exceeded"
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_NAME = "is the address below cluster.launcher.provider right?"
_KEY = "is auth.ssh_user right, and may auth.ssh_private_key log in there? Try it with ssh by hand"
_DOOR = "is the machine on, and may you reach its sshd from here?"
# A line of ssh's, or what Python says of a name → what to do.
_UNREACHED = (
    (r"\S+: Permission denied \(.+\)", _KEY),
    (r"Received disconnect from .+: Too many authentication failures", _KEY),
    (r"ssh: Could not resolve hostname .+", _NAME),
    (r"Host key verification failed", "was the machine set up anew? ssh-keygen -R HOST forgets its old key"),
    (r"(?:ssh|kex_exchange_identification): .+", _DOOR),
    # gRPC, too, says that a peer closed a connection, but with no port.
    (r"Connection (?:closed|reset) by \S+ port \d+", _DOOR),
    (r"Connection to \S+ port \d+ timed out", _DOOR),
    (r"Connection timed out during banner exchange", _DOOR),
    (r"Received disconnect from .+", _DOOR),
    (r"Timeout, server \S+ not responding", _DOOR),
    (r"No such file or directory: 'ssh'", "install ssh here"),
)
_PATTERNS = tuple((re.compile(pattern), hint) for pattern, hint in _UNREACHED)
# Python says it of any name, a cloud's own service too.
_UNKNOWN = (re.compile(r"(?<=\[Errno -\d\] )[^()']+"), _NAME)


def why(said: str) -> str:
    """Return the line that tells most of what a command of Ray said: its last error, or else its last line with words in it."""
    lines = [line for line in _STYLE.sub("", said).splitlines() if re.search(r"[A-Za-z]{3}", line.rpartition(" -- ")[2])]
    errors = [line for line in lines if "error" in line.lower()]
    return next(iter([*errors[-1:], *lines[-1:]]), "it said nothing").strip()


def unreached(verb: str, said: str, head: str | None) -> tuple[str, str] | None:
    """Tell why no host was reached, and what to do about it; None where one was.

    Args:
        verb: Of Ray's command. While `up` waits for a host, that refuses at first and then does not.
        said: What the command said.
        head: Its address, for what is said without one; None where the configuration has none.
    """
    if verb == "up" and _WAITED not in said:
        return None
    for line in reversed(_STYLE.sub("", said).splitlines()):
        for pattern, hint in (_UNKNOWN, *_PATTERNS) if head else _PATTERNS:
            if found := pattern.search(line):
                fault, host = found[0].strip(), head or "the head"
                return fault if fault.startswith("ssh: ") or host in fault else f"{host}: {fault}", hint
    return None
