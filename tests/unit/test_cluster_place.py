"""cluster.place: which node a job waits for."""

import re

import pytest

from cluster.errors import JobError
from cluster.place import NODE_TYPE, Place, missing, read_place

LAUNCHER = {"available_node_types": {"head": {}, "trials": {}}}


def test_types_and_labels_are_told_apart() -> None:
    assert read_place(["trials", "market=spot", "example.com/zone=a_1"], 1.0, 0.0) == Place(
        {NODE_TYPE: "trials", "market": "spot", "example.com/zone": "a_1"}, 1.0
    )
    assert read_place([], 0.0, 0.0) == Place()


@pytest.mark.parametrize("text", ["", "a b", "-x", "a=", "=b", "a=b=c", "a/b", "x" * 64])
def test_what_is_no_label_is_refused(text: str) -> None:
    with pytest.raises(JobError, match=f"--on {re.escape(text)}: must be"):
        read_place([text], 0.0, 0.0)


def test_nothing_is_missing_where_a_node_has_every_label() -> None:
    place = Place({NODE_TYPE: "trials", "market": "spot"})
    assert missing(place, [{}, {NODE_TYPE: "trials", "market": "spot", "zone": "a"}], None) == ""
    # Two nodes that have one each are no node that has both.
    found = missing(place, [{NODE_TYPE: "trials"}, {"market": "spot"}], LAUNCHER)
    assert found == "no node has ray.io/node-group=trials and market=spot yet: the job waits for one"


def test_a_type_that_there_never_will_be_is_refused() -> None:
    with pytest.raises(JobError, match=r"--on trails: is no node type of cluster\.launcher, which has head, trials"):
        missing(Place({NODE_TYPE: "trails"}), [{}], LAUNCHER)
    # Of a cluster that somebody else started, nobody here knows all types.
    assert "waits for one" in missing(Place({NODE_TYPE: "trails"}), [{}], None)
