"""Asks the REST interface of Ray's dashboard, with and without the cluster's token.

Without it, to prove that strangers are kept out. It does not know what the answers mean, and never prints a token.
"""

import http.client
import importlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from typing import Any
from urllib.parse import urlsplit

from cluster.cause import cause
from cluster.errors import ClusterError
from cluster.session import TOKEN_VARIABLE

ANSWER_TIMEOUT_S = 10.0
# The first answer of a dashboard about Serve imports it, and Ray gives a list of its own half a minute.
PATIENCE_S = 60.0
# The dashboard gives the control service a tenth of a second, which a busy one may need more than once.
_LOOKS_S, _LOOK_S = 10.0, 1.0


def answer_status(url: str, method: str, path: str) -> int:
    """Return the status of a request that carries no token.

    Args:
        url: Scheme, host and port.
        method: `GET`, `POST`, ….
        path: Path below the host.

    Raises:
        ClusterError: Nothing answers there.
    """
    return _request(url, method, path, {}, PATIENCE_S)[0]


def ask(url: str, path: str, patience_s: float = ANSWER_TIMEOUT_S) -> Any:
    """Return the JSON that the dashboard answers to a `GET` with the token of `reach`.

    Args:
        url: Scheme, host and port.
        path: Path below the host.
        patience_s: How long it may take for an answer; to connect it has `ANSWER_TIMEOUT_S`.

    Raises:
        ClusterError: Nothing answers there in time, the token is missing or wrong, the answer says that it failed, or it is no JSON.
    """
    raylet: Any = importlib.import_module("ray._raylet")
    is_closed = os.environ.get("RAY_AUTH_MODE") == "token"
    headers = raylet.AuthenticationTokenLoader.instance().get_token_for_http_header() if is_closed else {}
    status, body = _request(url, "GET", path, headers, patience_s)
    if status >= http.client.INTERNAL_SERVER_ERROR:
        # What it asks in its turn may only have been busy.
        time.sleep(_LOOK_S)
        status, body = _request(url, "GET", path, headers, patience_s)
    if status >= http.client.INTERNAL_SERVER_ERROR:
        raise ClusterError(f"{url}{path}: answered {status}: {_cause(body)}", "ask again in a moment")
    if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        raise ClusterError(f"{url}: refused the token (status {status})", f"name the file with the cluster's token in {TOKEN_VARIABLE}")
    try:
        return json.loads(body)
    except ValueError:
        raise ClusterError(f"{url}{path}: answered {status}, but must answer JSON", "is this the dashboard of a Ray cluster?") from None


def require_control_service(url: str) -> None:
    """Make sure that what a dashboard asks is there: without it most requests wait for minutes.

    Raises:
        ClusterError: It is not.
    """
    until = time.monotonic() + _LOOKS_S
    while _request(url, "GET", "/api/gcs_healthz", {})[0] == http.client.SERVICE_UNAVAILABLE:
        if time.monotonic() > until:
            break
        time.sleep(_LOOK_S)  # nothing tells when it is there again
    else:
        return
    raise ClusterError(
        f"{url}: Ray's control service does not answer its dashboard; replicas go on answering for some minutes",
        "with cluster.head_store it is begun anew by itself, once its Redis is there; otherwise bring the head back: python -m cluster up",
    )


def list_nodes(url: str, patience_s: float = ANSWER_TIMEOUT_S) -> list[dict[str, Any]]:
    """Return what the dashboard knows of every node there is or was.

    Raises:
        ClusterError: As `list_state`.
    """
    return list_state(url, "nodes", patience_s)


def list_state(url: str, what: str, patience_s: float = ANSWER_TIMEOUT_S) -> list[dict[str, Any]]:
    """Return what Ray's state API lists.

    Args:
        url: Of the dashboard.
        what: Its path below the API, with filters.
        patience_s: As `ask`.

    Raises:
        ClusterError: As `ask`, or what knows it does not answer the dashboard.
    """
    answer = ask(url, f"/api/v0/{what}", patience_s)
    # Where the source of a list does not answer, there is a message in its place.
    found: list[dict[str, Any]] | None = ((answer.get("data") or {}).get("result") or {}).get("result")
    if found is None:
        raise ClusterError(f"{url}: {answer.get('msg') or 'Ray lists nothing'}", "ask again in a moment")
    return found


def _cause(body: bytes) -> str:
    """Shorten what a server says of its failure, which may stand in Ray's JSON."""
    text = body.decode(errors="replace")
    with suppress(ValueError, TypeError, KeyError):
        text = str(json.loads(text)["msg"])
    return cause(text) or "nothing more"


def _request(url: str, method: str, path: str, headers: Mapping[str, str], patience_s: float = ANSWER_TIMEOUT_S) -> tuple[int, bytes]:
    body = "{}" if method == "POST" else None
    try:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        with closing(kind(parts.netloc, timeout=ANSWER_TIMEOUT_S)) as connection:
            connection.connect()
            connection.sock.settimeout(patience_s)
            connection.request(method, path, body=body, headers={"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            return answer.status, answer.read()
    except TimeoutError:
        raise ClusterError(
            f"{url}: does not answer in time ({path})", "it may be busy: ask again in a moment; or is the address right?"
        ) from None
    # The last where the address is none: half an IPv6 address, a host name with an empty part.
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ClusterError(f"{url}: does not answer ({error})", "is the cluster running, and is the address right?") from None


def prove_closed(dashboard_url: str) -> None:
    """Make sure that a request without the token cannot submit a job.

    Raises:
        ClusterError: It could; whoever started that Ray must end it.
    """
    status = answer_status(dashboard_url, "POST", "/api/jobs/")
    if status != http.client.UNAUTHORIZED:
        raise ClusterError(
            f"{dashboard_url}: the Jobs API answered {status} without a token, but must answer 401",
            "this Ray does not keep strangers out, so it was stopped; is RAY_AUTH_MODE known to its version?",
        )
