"""How long what waits takes, by what batches took before."""

import pytest

from serving.scheduling.pace import Pace

WHOLE = 1000


def made(*batches: tuple[int, float], expected: float = 0.0) -> Pace:
    pace = Pace()
    if expected:
        pace.expect(expected)
    for tokens, seconds in batches:
        pace.note(tokens, seconds, is_large=tokens >= WHOLE)
    return pace


def test_before_anything_was_measured_nothing_is_known() -> None:
    pace = made()
    assert (pace.batch_s(100), pace.queue_s(5_000, WHOLE), pace.tokens_per_s) == (0.0, 0.0, 0.0)


def test_what_was_expected_counts_until_batches_come() -> None:
    pace = made(expected=500.0)
    assert (pace.batch_s(100), pace.queue_s(100, WHOLE), pace.queue_s(5_000, WHOLE)) == (0.2, 0.2, 10.0)


def test_many_small_batches_say_nothing_of_what_waits_together() -> None:
    # A text of ten tokens takes ten milliseconds alone, and a whole batch a tenth of a second.
    pace = made(*[(WHOLE, 0.1)] * 50, *[(10, 0.01)] * 200)
    assert pace.tokens_per_s == pytest.approx(10_000)
    assert pace.batch_s(10) == pytest.approx(0.01, rel=0.1)
    assert pace.queue_s(10, WHOLE) == pytest.approx(0.01, rel=0.1)
    # By the small ones alone it were half a second, and twenty.
    assert pace.queue_s(500, WHOLE) == pytest.approx(0.1)
    assert pace.queue_s(20_000, WHOLE) == pytest.approx(2.0)


def test_small_batches_that_become_slow_tell_of_whole_ones() -> None:
    # A whole one takes no less, although none was seen.
    pace = made(*[(10, 2.0)] * 50, expected=10_000.0)
    assert pace.queue_s(500, WHOLE) == pytest.approx(2.0, rel=0.01)
    assert pace.queue_s(5_000, WHOLE) == pytest.approx(10.0, rel=0.01)
    # It is not held against the engine for good.
    for _ in range(100):
        pace.note(10, 0.001, is_large=False)
    assert pace.queue_s(5_000, WHOLE) == pytest.approx(0.5, rel=0.01)


def test_one_batch_that_stood_still_does_not_slow_the_rest() -> None:
    pace = made(*[(16, 0.004)] * 50, expected=10_000.0)
    pace.note(16, 1.5, is_large=False)
    # By the last batches alone it were three quarters of a minute.
    assert pace.batch_s(6_000) > 40
    assert pace.queue_s(6_000, WHOLE) < 1.5


def test_without_a_large_batch_the_small_ones_are_believed() -> None:
    pace = made((10, 0.1))
    assert pace.queue_s(1_000, WHOLE) == pytest.approx(10.0)


def test_where_padding_fills_large_batches_their_tokens_tell_the_speed() -> None:
    # Of a thousand tokens that are computed 375 are texts'.
    pace = made(expected=2_560.0)
    for _ in range(100):
        pace.note(375, 0.4, is_large=True)
    assert pace.queue_s(11_250, WHOLE) == pytest.approx(12.0, rel=0.01)
