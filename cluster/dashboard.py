"""Asks the REST interface of Ray's dashboard, with and without the cluster's token.

Without it, to prove that strangers are kept out. It does not know what the answers mean, and never prints a token.
"""

import http.client
import importlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import ClusterError
from cluster.session import TOKEN_VARIABLE

ANSWER_TIMEOUT_S = 10.0
# The dashboard gives the control service a tenth of a second, which a busy one may need more than once.
_LOOKS, _LOOK_S = 3, 1.0


def answer_status(url: str, method: str, path: str) -> int:
    """Return the status of a request that carries no token.

    Args:
        url: Scheme, host and port.
        method: `GET`, `POST`, ….
        path: Path below the host.

    Raises:
        ClusterError: Nothing answers there.
    """
    return _request(url, method, path, {})[0]


def ask(url: str, path: str) -> Any:
    """Return the JSON that the dashboard answers to a `GET` with the token of `reach`.

    Raises:
        ClusterError: Nothing answers there, the token is missing or wrong, or the answer is no JSON.
    """
    raylet: Any = importlib.import_module("ray._raylet")
    is_closed = os.environ.get("RAY_AUTH_MODE") == "token"
    headers = raylet.AuthenticationTokenLoader.instance().get_token_for_http_header() if is_closed else {}
    status, body = _request(url, "GET", path, headers)
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
    for look in range(_LOOKS):
        if look:
            time.sleep(_LOOK_S)  # nothing tells when it is there again
        if _request(url, "GET", "/api/gcs_healthz", {})[0] != http.client.SERVICE_UNAVAILABLE:
            return
    raise ClusterError(
        f"{url}: Ray's control service does not answer its dashboard; replicas go on answering for some minutes",
        "with cluster.head_store it is begun anew by itself, once its Redis is there; otherwise bring the head back: python -m cluster up",
    )


def list_nodes(url: str) -> list[dict[str, Any]]:
    """Return what the dashboard knows of every node there is or was.

    Raises:
        ClusterError: As `ask`.
    """
    return list_state(url, "nodes")


def list_state(url: str, what: str) -> list[dict[str, Any]]:
    """Return what Ray's state API lists.

    Args:
        url: Of the dashboard.
        what: Its path below the API, with filters.

    Raises:
        ClusterError: As `ask`, or what knows it does not answer the dashboard.
    """
    answer = ask(url, f"/api/v0/{what}")
    # Where the source of a list does not answer, there is a message in its place.
    found: list[dict[str, Any]] | None = ((answer.get("data") or {}).get("result") or {}).get("result")
    if found is None:
        raise ClusterError(f"{url}: {answer.get('msg') or 'Ray lists nothing'}", "ask again in a moment")
    return found


def _request(url: str, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    body = "{}" if method == "POST" else None
    try:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        with closing(kind(parts.netloc, timeout=ANSWER_TIMEOUT_S)) as connection:
            connection.request(method, path, body=body, headers={"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            return answer.status, answer.read()
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
