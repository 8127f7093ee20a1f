"""Where a replica listens for Serve's own processes: on a cluster of one machine, as everything else there, on this machine alone.

Ray 2.60 opens that port to every address (`[::]:0` in `ray.serve._private.replica`), with the token, once it has made our replica. It
knows neither requests nor answers.
"""

import ipaddress
import sys
from typing import Any

_SERVES_OWN = "ray.serve._private.replica"
_OPENS = "add_port_to_grpc_server"
_EVERY_ADDRESS = "[::]"


def listen_to_this_machine_alone(node_address: str) -> None:
    """Have Serve, in this process, open on a loopback address what it would open on every one; elsewhere it stays.

    Args:
        node_address: Of this node in its cluster.
    """
    opens: Any = getattr(sys.modules.get(_SERVES_OWN), _OPENS, None)
    if opens is None or not ipaddress.ip_address(node_address).is_loopback:
        return
    here = f"[{node_address}]" if ":" in node_address else node_address
    setattr(sys.modules[_SERVES_OWN], _OPENS, lambda server, address: opens(server, address.replace(_EVERY_ADDRESS, here)))
