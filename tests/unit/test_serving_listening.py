"""serving.listening: what Serve opens to every address is opened on a loopback address where the cluster is one machine."""

import sys
from types import ModuleType

import pytest

from serving.listening import listen_to_this_machine_alone


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Serve's replica opens, as far as it has opened anything."""
    found: list[str] = []
    module = ModuleType("ray.serve._private.replica")
    module.add_port_to_grpc_server = lambda server, address: found.append(address)  # type: ignore[attr-defined]  # a module of our own
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return found


def _open() -> None:
    sys.modules["ray.serve._private.replica"].add_port_to_grpc_server(None, "[::]:0")


@pytest.mark.parametrize(("node", "address"), [("127.0.0.1", "127.0.0.1:0"), ("::1", "[::1]:0"), ("10.0.0.7", "[::]:0")])
def test_where_the_port_is_opened(opened: list[str], node: str, address: str) -> None:
    listen_to_this_machine_alone(node)
    _open()
    assert opened == [address]


def test_without_serve_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray.serve._private.replica", raising=False)
    listen_to_this_machine_alone("127.0.0.1")
    assert "ray.serve._private.replica" not in sys.modules
