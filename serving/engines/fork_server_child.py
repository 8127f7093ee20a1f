"""The other end of `fork_server`: imports what engines need, then copies itself for whoever asks.

    python -m serving.engines.fork_server_child DESCRIPTOR

It must not have begun a thread or asked for a GPU when it is copied.
"""

import gc
import importlib
import os
import signal
import socket
import sys

from serving.engines.child import work_to_the_end
from serving.engines.fork_server import PID

# What `TorchEngine` imports when it is made, and what transformers does for an encoder. Others are imported by the copies that need them.
NEEDED = (
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "serving.engines.graphs",
    "serving.engines.int8",
    "serving.engines.kernels",
    "serving.engines.linear",
    "training.checkpoint",
    "training.network.model",
    "training.network.packed",
)
# What a copy answers through, and what it holds while it lives.
_DESCRIPTORS = 2


def copy_for_whom_asks(requests: socket.socket) -> None:
    """Copy this process for each request, until the other end is closed."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1, _DESCRIPTORS)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            work_to_the_end(descriptors[0])
        for descriptor in descriptors:
            os.close(descriptor)
        requests.sendall(PID.pack(pid))


def main() -> None:
    """Import, then wait for requests."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Nobody here asks how a copy ended; its pipe says that it did.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for module in NEEDED:
        importlib.import_module(module)
    # What is collected in a copy must not be written to in all the pages that it shares.
    gc.collect()
    gc.freeze()
    copy_for_whom_asks(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)


if __name__ == "__main__":
    main()
