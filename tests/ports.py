"""Ports for tests that run in several processes: what one finds free, another one may be about to take."""

import os


def port_shift() -> int:
    """Return how far this process keeps away from the others' ports."""
    return 2_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
