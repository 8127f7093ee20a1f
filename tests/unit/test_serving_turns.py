"""Turns are shared between clients by tokens, from now on, and never go back."""

import random

from serving.scheduling import turns
from serving.scheduling.turns import Turns


def test_a_clients_texts_follow_each_other_and_a_newcomer_begins_now() -> None:
    clock = Turns()
    assert clock.take("a", [5, 3, 2]) == [0, 5, 8]
    assert clock.take("a", [1]) == [10]
    assert clock.take("b", [4, 4]) == [0, 4]
    # Eighteen tokens for two: each has had nine.
    clock.serve(18, 2, 0.0)
    assert clock.take("b", [1]) == [9]
    assert clock.take("c", [1, 1]) == [9, 10]
    assert clock.take("a", [1]) == [11]


def test_nobody_known_stands_for_himself() -> None:
    clock = Turns()
    assert clock.take("", [5, 5]) == [0, 5]
    assert clock.take("", [5, 5]) == [0, 5]


def test_who_always_has_work_gets_an_equal_share_of_tokens() -> None:
    """Three clients whose texts differ in length by a factor of ten, with a hundred texts waiting each."""
    sizes = {"small": 10, "middle": 30, "large": 100}
    clock, chance = Turns(), random.Random(1)
    waiting = {name: clock.take(name, [size] * 100) for name, size in sizes.items()}
    served = dict.fromkeys(sizes, 0)
    for _ in range(3_000):
        name = min(waiting, key=lambda one: (waiting[one][0], chance.random()))
        waiting[name].pop(0)
        clock.serve(sizes[name], len(waiting), min(places[0] for places in waiting.values() if places))
        served[name] += sizes[name]
        waiting[name] += clock.take(name, [sizes[name]])
    assert max(served.values()) - min(served.values()) <= 2 * max(sizes.values())


def test_what_was_not_computed_is_not_paid_for() -> None:
    clock = Turns()
    assert clock.take("a", [5, 5]) == [0, 5]
    clock.give_back("a", 10)
    assert clock.take("a", [1]) == [0]
    clock.give_back("nobody", 10)


def test_ever_new_ones_do_not_keep_a_second_text_waiting() -> None:
    clock = Turns()
    _, second = clock.take("", [10, 10])
    for _ in range(100):
        (place,) = clock.take("", [10])
        if place > second:
            break
        clock.serve(10, 25, 0.0)
    else:
        raise AssertionError("newcomers always come first")


def test_the_clock_is_not_behind_all_who_wait() -> None:
    clock = Turns()
    clock.serve(10, 2, 3.0)
    assert clock.peek("") == 5
    clock.serve(10, 2, 30.0)
    assert clock.peek("") == clock.peek("a") == 30


def test_clients_of_the_past_are_forgotten() -> None:
    clock = Turns()
    for number in range(5 * turns._MOST_CLIENTS):
        clock.take(f"client-{number}", [1])
        clock.serve(2, 1, 0.0)
    assert len(clock._next) <= turns._MOST_CLIENTS + 1
