"""benchmarks.drills.soak: what it calls lost, and when it fails."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from benchmarks.drills.asking import Asked, Asking
from benchmarks.drills.crowd import Crowd, Unanswered
from benchmarks.drills.drills import kill_the_front, swap
from benchmarks.drills.soak import Done, Life, Rude, Seen, report

NOBODY = 1


def life_of(*unanswered: Unanswered, failed: tuple[Asked, ...] = (), megabytes: float = 0.0) -> Life:
    """A thousand answers, a front that was lost from the 100th second to the 110th, and memory that grows by so much a minute."""
    crowd, asking = Crowd(NOBODY), Asking("http://127.0.0.1:1", 1.0, 0)
    crowd.statuses[200] = 1_000
    crowd.unanswered.extend(unanswered)
    asking.done.extend(failed)
    times = [60.0 * minute for minute in range(60)]
    # Something was done every minute; after every sixth thing much more is held.
    held = {
        "kept": [1400.0 if minute % 6 == 5 else 400.0 for minute in range(60)],
        "grows": [100 + megabytes * minute for minute in range(60)],
    }
    seen = Seen(times, list(range(60)), held, {"kept": [9.0] * 60})
    done = [Done(swap.__name__, 20.0, 60.0), Done(kill_the_front.__name__, 100.0, 110.0)]
    return Life(crowd, asking, Rude("http://127.0.0.1:1"), seen, done)


def test_what_is_lost_while_there_is_no_door_is_forgiven() -> None:
    life = life_of(Unanswered(99.0, 101.0, 0), Unanswered(109.0, 112.0, 503), failed=(Asked(100.0, 104.0, "refused"),))
    assert life.unexplained() == ([], [], [])
    assert life.is_good()


@pytest.mark.parametrize("status", [0, 500, 504])
def test_one_lost_while_there_is_a_door_fails_it(status: int) -> None:
    life = life_of(lost := Unanswered(30.0, 31.0, status))
    assert life.unexplained() == ([], [lost], [])
    assert not life.is_good()


def test_one_that_our_client_lost_fails_it() -> None:
    assert not life_of(failed=(Asked(30.0, 61.0, "late"),)).is_good()


def test_few_may_be_refused() -> None:
    assert life_of(*[Unanswered(30.0, 30.1, 503)] * 10).is_good()
    assert not life_of(*[Unanswered(30.0, 30.1, 503)] * 11).is_good()


def test_growing_memory_fails_it() -> None:
    assert life_of(megabytes=0.9).memory() == (pytest.approx(0.9), pytest.approx(0.9 * 42))
    assert life_of(megabytes=0.9).is_good()
    assert not life_of(megabytes=1.1).is_good()


def test_one_round_tells_no_slope() -> None:
    life = life_of(megabytes=1.5)
    seen = life.seen
    seen.times, seen.after, seen.files = seen.times[:6], seen.after[:6], {"grows": [9.0] * 6}
    seen.megabytes = {"grows": seen.megabytes["grows"][:6]}
    life.crowd.waits_s.append(0.1)
    assert "memory +nan MB a minute" in report(life)
    assert life.is_good()


def test_it_says_what_grew_and_when_something_was_lost() -> None:
    life = life_of(Unanswered(30.0, 31.5, 504), failed=(Asked(70.0, 71.0, "late"),), megabytes=1.5)
    life.crowd.waits_s.append(0.1)
    life.seen.files["grows"] = [float(minute) for minute in range(60)]
    told = report(life)
    assert "  kept: 400 MB, +0.00 MB a minute, +0 MB in all; open files +0\n" in told
    assert "  grows: 144 MB, +1.50 MB a minute, +63 MB in all; open files +42\n" in told
    assert "  504: 10.0 s after swap began, told after 1.50 s\n" in told
    assert "  late: 50.0 s after swap began, told after 1.00 s\n" in told


def test_what_was_not_whole_in_time_fails_it() -> None:
    life = life_of()
    life.late.append("swap: not within 180 s")
    assert not life.is_good()


class Every(http.server.BaseHTTPRequestHandler):
    """Refuses one request in three."""

    protocol_version = "HTTP/1.1"
    asked = 0
    counting = threading.Lock()

    def do_POST(self) -> None:
        with self.counting:
            type(self).asked += 1
            number = self.asked
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(503 if number % 3 == 0 else 200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *told: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    """It runs."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Every) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.mark.parametrize("rate", [None, 500.0])
def test_a_crowd_counts_every_request(server: http.server.ThreadingHTTPServer, rate: float | None) -> None:
    Every.asked, enough = 0, threading.Event()
    with Crowd(server.server_address[1], rate) as crowd:
        while Every.asked < 30:
            enough.wait(0.01)  # who is asked tells nobody
    assert sum(crowd.statuses.values()) == Every.asked
    assert crowd.answered == len(crowd.waits_s)
    assert {one.status for one in crowd.unanswered} == {503}
    assert len(crowd.unanswered) == Every.asked // 3
