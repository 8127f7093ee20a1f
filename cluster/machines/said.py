"""What Ray's launcher said when it failed: the one line that tells why, and what to do about it where no host was reached.

The launcher says over and over that it waits, and in the end only that it could not; ssh's own words stand above. It calls nobody.
"""

import re

# What Ray says once it waited long enough for a host.
_WAITED = "wait_ready timeout exceeded"
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_NAME = "is the address below cluster.launcher.provider right?"
_DOOR = "is the machine on, and may you reach its sshd from here?"
# A line of ssh's, or what Python says of a name → what to do.
_UNREACHED = (
    (r"\S+: Permission denied \(.+\)", "is auth.ssh_user right, and may auth.ssh_private_key log in there? Try it with ssh by hand"),
    (r"ssh: Could not resolve hostname .+", _NAME),
    (r"(?<=\[Errno -\d\] )[^()]+", _NAME),
    (r"Host key verification failed", "was the machine set up anew? ssh-keygen -R HOST forgets its old key"),
    (r"(?:ssh|kex_exchange_identification): .+", _DOOR),
    (r"Connection (?:closed|reset) by .+", _DOOR),
    (r"No such file or directory: 'ssh'", "install ssh here"),
)
_PATTERNS = tuple((re.compile(pattern), hint) for pattern, hint in _UNREACHED)


def why(said: str) -> str:
    """Return the line that tells most of what a command of Ray said: its last error, or else its last line with words in it."""
    lines = [line for line in _STYLE.sub("", said).splitlines() if re.search(r"[A-Za-z]{3}", line.rpartition(" -- ")[2])]
    errors = [line for line in lines if "error" in line.lower()]
    return next(iter([*errors[-1:], *lines[-1:]]), "it said nothing").strip()


def unreached(verb: str, said: str, head: str) -> tuple[str, str] | None:
    """Tell why no host was reached, and what to do about it; None where one was.

    Args:
        verb: Of Ray's command. While `up` waits for a host, that refuses at first and then does not.
        said: What the command said.
        head: Its address, where what is said has none.
    """
    if verb == "up" and _WAITED not in said:
        return None
    for line in reversed(_STYLE.sub("", said).splitlines()):
        for pattern, hint in _PATTERNS:
            if found := pattern.search(line):
                fault = found[0].strip()
                return fault if fault.startswith("ssh: ") or head in fault else f"{head}: {fault}", hint
    return None
