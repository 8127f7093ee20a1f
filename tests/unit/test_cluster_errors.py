"""cluster.errors: the tree, and errors that travel between processes."""

import pickle

import pytest

from cluster.errors import ClusterError, ConflictError, JobError, SettingsError, StorageError, TwoheadError

TREE = {
    SettingsError: TwoheadError,
    StorageError: TwoheadError,
    ConflictError: StorageError,
    ClusterError: TwoheadError,
    JobError: ClusterError,
}


@pytest.mark.parametrize(("error", "parent"), TREE.items())
def test_the_tree_is_the_drawn_one(error: type[TwoheadError], parent: type[TwoheadError]) -> None:
    assert error.__bases__ == (parent,)
    assert error.exit_code == 2


@pytest.mark.parametrize("error", TREE)
def test_an_error_keeps_message_and_hint_between_processes(error: type[TwoheadError]) -> None:
    travelled = pickle.loads(pickle.dumps(error("what was found", "what to do")))
    assert type(travelled) is error
    assert (travelled.message, travelled.hint, str(travelled)) == ("what was found", "what to do", "what was found")


def test_a_hint_is_optional() -> None:
    assert TwoheadError("found").hint == ""
