"""Connections that notice that the machine at their other end is gone.

A machine without power closes nothing: who waits for its answer waits until the end of its patience. Linux can ask whether it is still
there (tcp(7): TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT) and bound how long what was sent stays unacknowledged (TCP_USER_TIMEOUT, RFC 5482).
A machine that lives acknowledges however long its answer takes. It knows neither requests nor answers.
"""

import errno
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

# A machine that has said nothing for so long is asked, and asked again each second; after five it is gone.
_IDLE_S, _EVERY_S, _TIMES = 2, 1, 3
_GONE_S = _IDLE_S + _EVERY_S * _TIMES
# Where a system does not know one of them, its own patience holds.
_OPTIONS = {"TCP_KEEPIDLE": _IDLE_S, "TCP_KEEPINTVL": _EVERY_S, "TCP_KEEPCNT": _TIMES, "TCP_USER_TIMEOUT": 1000 * _GONE_S}


def socket_options() -> list[tuple[int, int, int]]:
    """Return the level, name and value of each option that this system knows."""
    known = [(socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in _OPTIONS.items() if hasattr(socket, name)]
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *known]


def transport(url: str) -> httpx.HTTPTransport | None:
    """Return what a client sends requests with; None where a proxy of the environment stands between, whose connection it is then."""
    return None if _has_proxy(url) else httpx.HTTPTransport(socket_options=socket_options())


def async_transport(url: str, limits: httpx.Limits) -> httpx.AsyncHTTPTransport | None:
    """Return the same for asyncio.

    Args:
        url: Where requests go.
        limits: Of connections.
    """
    return None if _has_proxy(url) else httpx.AsyncHTTPTransport(socket_options=socket_options(), limits=limits)


def is_late(error: httpx.TransportError) -> bool:
    """Tell whether an answer is late; where the system has given a connection up, which also ends as a timeout, nobody is there."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno == errno.ETIMEDOUT:
            return False
        # httpcore takes the cause away, and the context stays.
        cause = cause.__cause__ or cause.__context__
    return isinstance(error, httpx.TimeoutException)


def _has_proxy(url: str) -> bool:
    parts = urlsplit(url)
    found = getproxies()
    return bool(found.get(parts.scheme) or found.get("all")) and not proxy_bypass(parts.hostname or "")
