"""A real deployment that is changed, and loses processes, while it is asked; `python -m benchmarks.drills` does the same many times."""

import csv
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.drills.asking import Asking
from benchmarks.drills.drills import DRILLS, RATE_PER_S, Drill, change_settings, is_kept, run
from benchmarks.drills.house import FRONT, House, house, until
from cluster.errors import ClusterError
from serving.status import deployed
from tests.ports import port_shift

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2_400)]

# Swaps, failed versions and scaling are tested in `integration/test_serving.py`.
IDS = {
    "settings rolled out": "d1_rolling_update",
    "replica killed": "d5_replica_killed",
    "engine killed": "d5_engine_killed",
    "replica stopped": "d6_replica_stands_still",
    "HAProxy killed": "d7_front_killed",
    "HAProxy's keeper killed": "d8_front_begins_anew",
    "controller killed": "d9_controller_killed",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, make_checkpoint_in: Callable[[Path], Path]) -> Iterator[House]:
    with house(make_checkpoint_in(tmp_path_factory.mktemp("made") / "checkpoint"), 2, 18_830 + port_shift()) as found:
        yield found


@pytest.mark.parametrize("drill", [pytest.param(drill, id=IDS[drill.name]) for drill in DRILLS if drill.name in IDS])
def test_d1_d5_d6_d7_d8_d9_what_is_asked_meanwhile_is_answered(home: House, drill: Drill) -> None:
    told = run(drill, home)
    assert len(told.again.done) == told.again.begun > 20
    assert is_kept(drill, told), [one.error for one in [*told.once.failed, *told.again.failed]]
    # A door that has just come back does not know yet what is behind it, and says so.
    assert [one.error for one in told.once.failed if " 404 " in one.error] == []
    print(f"{drill.name}: whole after {told.whole_s:.1f} s, {len(told.once.failed)} of {told.once.begun} lost by who asks once")


def test_d12_of_two_deployments_the_last_one_wins_and_the_first_is_told(home: House) -> None:
    first, last = (home.settings.model_copy(update={"deadline_ms": deadline}) for deadline in (27_000, 26_000))
    with Asking(home.settings.url, RATE_PER_S, 5) as asking, ThreadPoolExecutor(1) as elsewhere:
        overtaken = elsewhere.submit(home.rollout.deploy, first, None)
        until("the first is on its way", lambda: deployed_deadline(home) == first.deadline_ms)
        home.rollout.deploy(last, None)
        with pytest.raises(ClusterError, match="somebody deployed something else meanwhile"):
            overtaken.result(home.settings.ready_timeout_s)
        until("only the last one's replicas run", home.is_whole)
    assert deployed_deadline(home) == last.deadline_ms
    assert asking.failed == []
    assert len(asking.done) == asking.begun > 20


def test_d1_the_front_has_replicas_all_the_while(home: House) -> None:
    # Serve names none while it builds the application anew; its own proxy would answer, eight times as dear.
    command = home.processes(FRONT)[-1].cmdline()
    # As `cluster.front` names it, beside the configuration.
    place = Path(command[command.index("-f") + 1]).with_name("a")
    with Asking(home.settings.url, RATE_PER_S, 5) as asking, ThreadPoolExecutor(1) as elsewhere:
        rollout = elsewhere.submit(change_settings, home)
        seen = []
        while not rollout.done():
            seen.append(servers(place))
            wait([rollout], 0.05)
        rollout.result()
    replicas = [{name for name in one if name.startswith("SERVE_REPLICA_")} for one in seen]
    assert all(replicas)
    assert len(set.union(*replicas)) >= 2 * home.settings.min_replicas
    assert [one for one in seen if sum(asked for name, asked in one.items() if not name.startswith("SERVE_REPLICA_"))] == []
    assert asking.failed == []


def servers(place: Path) -> dict[str, int]:
    """Ask HAProxy, by its socket, to whom it may give requests: name → requests that it was given since it began."""
    told = ""

    def is_told() -> bool:
        nonlocal told
        # While the door reads its routes anew, the process of before may go without an answer.
        with suppress(OSError), socket.socket(socket.AF_UNIX) as asked:
            asked.connect(str(place))
            asked.sendall(b"show stat\n")
            told = asked.makefile(encoding="utf-8").read()
        return told.startswith("# ")

    until("the front answers", is_told)
    rows = csv.DictReader(told.removeprefix("# ").splitlines())
    return {row["svname"]: int(row["stot"]) for row in rows if row["pxname"] == "http-twohead" and row["svname"] != "BACKEND"}


def deployed_deadline(home: House) -> int:
    """What Serve is told to run now."""
    found = deployed(home.rollout._serve.details())
    assert found is not None
    deadline: int = found["deployed_app_config"]["args"]["settings"]["deadline_ms"]
    return deadline
