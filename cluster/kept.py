"""Runs before HAProxy takes a new configuration: replicas that live keep getting requests while Serve builds their application anew.

As long as Serve builds an application from changed arguments or code, it names none of its replicas to HAProxy, though all of them run.
Its own proxy gets the requests meanwhile, which needs some eight milliseconds of CPU for each; where the building takes the cores too, they
pile up. Applications that were taken away, and replicas that drain because there shall be none, are not kept. It is run by itself, and
imports nothing of this project.
"""

import http.client
import json
import re
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Sections begin without a space; a remark may, too.
_SECTION = re.compile(r"^(?=[^\s#])", re.MULTILINE)
_SERVER = re.compile(r"^ *server \S+ (\S+) check(?!.* backup$)")
_CHECK = re.compile(r"^ *option httpchk GET (\S+)$")
_PATIENCE_S = 1.0
_AT_ONCE = 16

# Backend → lines of its replicas.
Servers = dict[str, list[str]]
# Address and path of a health check → whether a replica that takes requests is there.
Lives = Callable[[str, str], bool]


def complete(text: str, known: Mapping[str, list[str]], lives: Lives) -> tuple[str, Servers]:
    """Give the backends without replicas those that they had, as far as these live.

    Args:
        text: A configuration of Ray's.
        known: What was returned for the one before.
        lives: Asks a replica.

    Returns:
        The configuration, and the replicas of each of its backends.
    """
    blocks = _SECTION.split(text)
    named = {name: place for place, block in enumerate(blocks) if (name := _name(block)) is not None}
    found: Servers = {name: [line for line in blocks[place].splitlines() if _SERVER.match(line)] for name, place in named.items()}
    taken = {_address(line) for lines in found.values() for line in lines}
    for name, place in named.items():
        if not found[name]:
            # A port may be another application's by now.
            candidates = [line for line in known.get(name, []) if _address(line) not in taken]
            found[name] = _living(candidates, _path(blocks[place]), lives)
            blocks[place] += "".join(f"{line}\n" for line in found[name])
    return "".join(blocks), {name: lines for name, lines in found.items() if lines}


def _name(block: str) -> str | None:
    words = block.split(maxsplit=2)
    return words[1] if words[:1] == ["backend"] else None


def _address(line: str) -> str:
    match = _SERVER.match(line)
    return match[1] if match else ""


def _path(block: str) -> str:
    return next((match[1] for line in block.splitlines() if (match := _CHECK.match(line))), "/")


def _living(lines: list[str], path: str, lives: Lives) -> list[str]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        told = list(pool.map(lambda line: lives(_address(line), path), lines))
    return [line for line, is_alive in zip(lines, told, strict=True) if is_alive]


def takes_requests(address: str, path: str) -> bool:
    """Tell whether a replica listens there that does not say that it goes; one that is too busy to say anything stays."""
    connection = http.client.HTTPConnection(address, timeout=_PATIENCE_S)
    try:
        connection.connect()
    except OSError:
        return False
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except TimeoutError:
        return True
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main(configuration: Path, memory: Path) -> None:
    """Complete a configuration in its place.

    Args:
        configuration: Of Ray's.
        memory: What was known at the last one; need not exist.
    """
    try:
        known: Servers = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    text, found = complete(configuration.read_text(encoding="utf-8"), known, takes_requests)
    configuration.write_text(text, encoding="utf-8")
    memory.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
