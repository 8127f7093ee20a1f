"""Waits on a machine for the notice that it will be taken away, and has Ray move what it can before.

This file is sent to the machines of a cloud and run there beside Ray, so it needs nothing but Python. From a notice on, nothing new starts
there, and Ray Serve moves the replicas; a trial goes on elsewhere from its last epoch when the machine is gone.

    python3 notice.py aws|gcp         wait for the cloud's notice
    python3 notice.py now SECONDS     it is coming: drain, and wait at most so long until no replica runs here

Sources: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html (two minutes) and
https://docs.cloud.google.com/compute/docs/instances/preemptible (half a minute).
"""

import http.client
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

AWS = os.environ.get("TWOHEAD_METADATA", "http://169.254.169.254")
GCP = os.environ.get("TWOHEAD_METADATA", "http://metadata.google.internal")
# So long after its notice a machine is gone, less a moment.
WARNING_S = {"aws": 110, "gcp": 25}
_POLL_S = 2.0
_TIMEOUT_S = 5.0
_REPLICA = b"ray::ServeReplica"


def noticed_by_aws() -> bool:
    """Ask AWS once."""
    token = _ask(f"{AWS}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    return token is not None and _ask(f"{AWS}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token}) is not None


def noticed_by_gcp() -> bool:
    """Ask Google Cloud once."""
    return _ask(f"{GCP}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}) == "TRUE"


def drain_command(within_s: int) -> list[str]:
    """Return the command that tells Ray on a machine that the machine goes within so long."""
    # Every cluster of ours wants a token, which lies where Ray looks for it.
    ray = ["env", "RAY_AUTH_MODE=token", "ray", "drain-node", "--address=auto"]
    return [*ray, "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=notice", f"--deadline-remaining-seconds={within_s}"]


def drain(within_s: int) -> None:
    """Tell Ray that this machine goes within so long."""
    subprocess.run(drain_command(within_s), check=True)


def replicas_here() -> int:
    """Count the replicas that still run here, by how Ray names their processes."""
    found = 0
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += command.read_bytes().startswith(_REPLICA)
        except OSError:
            # It ended meanwhile.
            continue
    return found


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    request = urllib.request.Request(url, headers=headers, method=method)  # noqa: S310  # the clouds' own addresses
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            return str(answer.read().decode())
    except (OSError, http.client.HTTPException):
        # No notice is a 404; and whoever does not answer now may later.
        return None


def main(words: list[str]) -> None:
    """Do what the command line says."""
    if words[0] == "now":
        within_s = int(words[1])
        deadline = time.monotonic() + within_s
        drain(within_s)
        while replicas_here() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return
    noticed: Callable[[], bool] = {"aws": noticed_by_aws, "gcp": noticed_by_gcp}[words[0]]
    while not noticed():
        time.sleep(_POLL_S)
    drain(WARNING_S[words[0]])


if __name__ == "__main__":
    main(sys.argv[1:])
