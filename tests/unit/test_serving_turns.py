"""Turns are shared between clients by tokens, from now on, and never go back."""

import random

from serving import turns
from serving.turns import Turns


def test_a_clients_texts_follow_each_other_and_a_newcomer_begins_now() -> None:
    clock = Turns()
    assert clock.take("a", [5, 3, 2]) == [0, 5, 8]
    assert clock.take("a", [1]) == [10]
    assert clock.take("b", [4, 4]) == [0, 4]
    clock.reach(8)
    assert clock.take("b", [1]) == [8]
    assert clock.take("c", [1, 1]) == [8, 9]
    assert clock.take("a", [1]) == [11]
    # What is computed late does not turn it back.
    clock.reach(2)
    assert clock.take("d", [1]) == [8]


def test_nobody_known_stands_for_himself() -> None:
    clock = Turns()
    assert clock.take("", [5, 5]) == [0, 5]
    assert clock.take("", [5, 5]) == [0, 5]


def test_who_always_has_work_gets_an_equal_share_of_tokens() -> None:
    """Three clients whose texts differ in length by a factor of ten, always waiting."""
    chance, clock = random.Random(1), Turns()
    waiting = {name: clock.take(name, [size])[0] for name, size in (("small", 10), ("middle", 30), ("large", 100))}
    sizes = {"small": 10, "middle": 30, "large": 100}
    served = dict.fromkeys(waiting, 0)
    for _ in range(3_000):
        name = min(waiting, key=lambda one: (waiting[one], chance.random()))
        clock.reach(waiting[name])
        served[name] += sizes[name]
        waiting[name] = clock.take(name, [sizes[name]])[0]
    assert max(served.values()) - min(served.values()) <= 2 * max(sizes.values())


def test_clients_of_the_past_are_forgotten() -> None:
    clock = Turns()
    for number in range(5 * turns._MOST_CLIENTS):
        clock.reach(clock.take(f"client-{number}", [1])[0] + 1)
    assert len(clock._next) <= turns._MOST_CLIENTS + 1
