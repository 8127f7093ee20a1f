"""Asks the head, on the head: how many nodes are in, and does a stranger get in?

This file is sent to the head and run there by Ray's interpreter, so it needs nothing but Python. It prints one line.
"""

import http.client
import json
import sys
import time
from pathlib import Path

MARK = "twohead-probe "
_POLL_S = 1.0


def probe(port: int, wanted: int, patience_s: float) -> dict[str, object]:
    """Wait until so many nodes are in.

    Args:
        port: Of the dashboard.
        wanted: Nodes.
        patience_s: At most.

    Returns:
        `alive`: nodes that are in, the head too. `stranger`: the status that a request without the token gets where a job is submitted;
        None where nothing answers.
    """
    token = Path("~/.ray/auth_token").expanduser().read_text(encoding="utf-8").strip()
    deadline = time.monotonic() + patience_s
    while True:
        alive = _alive(port, token)
        if alive >= wanted or time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    return {"alive": alive, "stranger": _ask(port, "POST", "/api/jobs/", {})[0]}


def _alive(port: int, token: str) -> int:
    _, body = _ask(port, "GET", "/api/v0/nodes", {"Authorization": f"Bearer {token}"})
    try:
        nodes = json.loads(body)["data"]["result"]["result"]
    except (ValueError, KeyError, TypeError):
        return 0
    return sum(node["state"] == "ALIVE" for node in nodes)


def _ask(port: int, method: str, path: str, headers: dict[str, str]) -> tuple[int | None, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, "{}" if method == "POST" else None, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return None, b""
    finally:
        connection.close()


if __name__ == "__main__":
    print(MARK + json.dumps(probe(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))  # its one line is its answer
