"""serving.retrying: where a request goes next, how long an attempt may take, and what the budget pays for."""

import pytest

from serving import retrying as module
from serving.retrying import Attempts, Shared


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def make(addresses: int = 1, first: int = 0, retries: int = 5, timeout_s: float = 60.0) -> Attempts:
    shared = Shared(addresses)
    shared.first = first
    return Attempts(retries, timeout_s, shared)


def broke(addresses: int) -> Shared:
    """Give a client whose budget is spent."""
    shared = Shared(addresses)
    while shared.budget.spend():
        pass
    return shared


def test_one_address_gets_all_the_time(clock: list[float]) -> None:
    attempts = make()
    assert attempts.share_s == 60
    clock[0] += 20
    assert attempts.share_s == 40
    clock[0] += 50
    assert attempts.share_s == 0.001


def test_each_address_gets_its_share_of_what_is_left(clock: list[float]) -> None:
    attempts = make(addresses=3, first=2)
    assert attempts.share_s == 20
    clock[0] += 20
    assert attempts.after_failure(is_sent=True, is_late=True) == 0
    assert (attempts.address, attempts.share_s) == (0, 20)
    clock[0] += 1
    assert attempts.after_failure(is_sent=True, is_late=False) == 0
    assert (attempts.address, attempts.share_s) == (1, 39)


def test_what_came_too_late_is_not_asked_for_again_where_there_is_nobody_else(clock: list[float]) -> None:
    assert make().after_failure(is_sent=True, is_late=True) is None
    attempts = make(addresses=2)
    assert attempts.after_failure(is_sent=True, is_late=True) == 0
    assert attempts.after_failure(is_sent=True, is_late=True) is None


def test_a_request_that_never_got_there_is_free_to_go_elsewhere(clock: list[float]) -> None:
    attempts = Attempts(0, 60.0, broke(3))
    assert attempts.after_failure(is_sent=False, is_late=True) == 0
    assert attempts.after_failure(is_sent=False, is_late=False) == 0
    assert attempts.address == 2
    # All were asked: once more round is a retry, and there is none left.
    assert attempts.after_failure(is_sent=False, is_late=False) is None


def test_a_request_that_may_have_got_there_is_paid_for(clock: list[float]) -> None:
    assert Attempts(5, 60.0, broke(3)).after_failure(is_sent=True, is_late=False) is None


def test_nothing_is_sent_after_the_time_is_over(clock: list[float]) -> None:
    attempts = make(addresses=2)
    clock[0] += 61
    assert attempts.after_failure(is_sent=False, is_late=False) is None


def test_a_proxy_before_nobody_costs_nothing_and_a_full_replica_does(clock: list[float]) -> None:
    assert Attempts(0, 60.0, broke(2)).after_response(503, "") == 0
    assert Attempts(5, 60.0, broke(2)).after_response(503, "1") is None
    # What has a replica behind it may have had the request.
    assert Attempts(5, 60.0, broke(2)).after_response(502, "") is None


def test_an_address_that_failed_is_not_asked_first_again_until_it_has_answered(clock: list[float]) -> None:
    shared = Shared(3)
    begun_before = Attempts(5, 60.0, shared)
    attempts = Attempts(5, 60.0, shared)
    assert attempts.after_response(503, "") == 0
    assert shared.first == 1
    # One that began before and fails there too changes nothing any more.
    assert begun_before.after_failure(is_sent=False, is_late=False) == 0
    assert shared.first == 1
    assert attempts.after_failure(is_sent=False, is_late=False) == 0
    assert attempts.after_response(200, "") is None
    assert shared.first == attempts.address == 2


def test_a_refusal_that_is_handed_on_is_no_answer(clock: list[float]) -> None:
    shared = broke(2)
    assert Attempts(5, 60.0, shared).after_response(503, "1") is None
    assert shared.first == 1
