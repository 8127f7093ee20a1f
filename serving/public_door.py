"""Makes a configuration of HAProxy for the one door that others than this machine reach: TLS, and the paths that a key for `predict` opens.

It passes on what is listed and nothing else, by the path as it was sent: one that is written in another way is unknown here, so nobody
has to know how it would be read behind it. It does not ask for keys: every replica does, and with `serving.require_keys` off none is made.

Source: HAProxy's configuration manual, version 2.8, https://docs.haproxy.org/2.8/configuration.html
"""

import re

from cluster.errors import SettingsError
from serving.door import CLIENT_ID_HEADER
from serving.keys.scopes import PROBES, SCOPE_OF
from serving.settings import ServingSettings

# A replica tells by then that it is too late.
_GRACE_S = 5
_CONFIGURATION = """\
# The one public door of {url}, for HAProxy 2.4 or later: python -m serving render haproxy > haproxy.cfg
# CERTIFICATE names a file with the certificate, its chain and its key; DOOR is where to listen.
# Nothing listens at port 80: a key that was sent there would have been read already.

global
    maxconn 2000
    ssl-default-bind-options ssl-min-ver TLSv1.2

defaults
    mode http
    timeout connect 2s
    # Who sends or reads slower than this is closed.
    timeout http-request 10s
    timeout client 10s
    timeout http-keep-alive 60s
    # A request may take {deadline_ms} ms (serving.deadline_ms).
    timeout server {server_s}s

frontend public
    bind "${{DOOR-:443}}" ssl crt "${{CERTIFICATE-/etc/haproxy/twohead.pem}}" alpn h2,http/1.1
    acl asks path {plain}
    acl asks path_reg {patterns}
    http-request return status 404 content-type application/problem+json string '{unknown}' unless asks
    http-request deny deny_status 413 if {{ req.body_size gt {max_body_bytes} }}
    http-request set-header {client_id} %[src]
    http-request set-header x-forwarded-proto https
    # By these a client would tell Ray Serve how long to wait and where to send a request.
    http-request del-header x-request-timeout-seconds
    http-request del-header x-request-disconnect-disabled
    http-request del-header '^(serve|x)[-_](multiplexed[-_]model|session)[-_]id$' -m reg
    http-response set-header strict-transport-security max-age=31536000
    default_backend twohead

backend twohead
    server here {address}
"""
_UNKNOWN = '{"type":"about:blank","title":"Not Found","status":404}'


def write_public_door(settings: ServingSettings) -> str:
    """Return the configuration.

    Raises:
        SettingsError: Nobody would be asked for a key.
    """
    if not settings.require_keys:
        raise SettingsError(
            "serving.require_keys is false: whoever reaches the door could ask",
            "set serving.require_keys to true, make keys with `python -m serving keys create`, and deploy",
        )
    public = [path for path, scope in SCOPE_OF.items() if path in PROBES or scope == "predict"]
    url = settings.url_from_here
    return _CONFIGURATION.format(
        url=url,
        address=url.removeprefix("http://"),
        deadline_ms=settings.deadline_ms,
        server_s=-(-settings.deadline_ms // 1000) + _GRACE_S,
        plain=" ".join(path for path in public if "{" not in path),
        patterns=" ".join(_pattern(path) for path in public if "{" in path),
        max_body_bytes=settings.max_body_bytes,
        client_id=CLIENT_ID_HEADER,
        unknown=_UNKNOWN,
    )


def _pattern(path: str) -> str:
    return f"'^{re.sub(r'{[^}]*}', '[^/]+', path)}$'"
