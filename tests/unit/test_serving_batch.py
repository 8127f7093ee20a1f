import pytest

from serving.scheduling.batch import choose


def test_similar_lengths_fill_the_budget() -> None:
    assert choose([100, 100, 100, 100], overdue=0, batch_tokens=300) == [0, 1, 2]


def test_padding_counts() -> None:
    # 200 + 110 tokens would fit into 400 without padding, a third text of 110 (3 x 200) would not.
    assert choose([200, 110, 110], overdue=0, batch_tokens=400) == [0, 1]


def test_closest_lengths_come_first() -> None:
    assert choose([100, 190, 101, 60, 99], overdue=0, batch_tokens=303) == [0, 2, 4]


def test_very_different_lengths_do_not_meet() -> None:
    assert choose([200, 20, 190, 21], overdue=0, batch_tokens=10_000) == [0, 2]
    assert choose([20, 200, 21, 190], overdue=0, batch_tokens=10_000) == [0, 2]


def test_short_texts_always_meet() -> None:
    assert choose([3, 16, 4, 30], overdue=0, batch_tokens=10_000) == [0, 2, 1, 3]


def test_a_text_over_the_budget_is_a_batch_of_its_own() -> None:
    assert choose([500, 10, 490], overdue=0, batch_tokens=100) == [0]


def test_overdue_texts_go_in_their_order() -> None:
    lengths = [100, 190, 100, 100]
    assert choose(lengths, overdue=0, batch_tokens=380) == [0, 2, 3]
    assert choose(lengths, overdue=2, batch_tokens=380) == [0, 1]


def test_without_padding_the_oldest_come_whatever_their_lengths() -> None:
    assert choose([200, 20, 190, 21], overdue=0, batch_tokens=410, pads=False) == [0, 1, 2]
    # Who does not fit is not waited for, and begins the next batch.
    assert choose([200, 20, 190, 21], overdue=0, batch_tokens=250, pads=False) == [0, 1, 3]
    assert choose([500, 10, 490], overdue=0, batch_tokens=100, pads=False) == [0]


@pytest.mark.parametrize("pads", [True, False])
@pytest.mark.parametrize("overdue", [0, 3])
def test_everything_is_computed_in_the_end(overdue: int, pads: bool) -> None:
    waiting = [5, 300, 12, 290, 40, 80, 7, 2000, 41]
    seen: list[int] = []
    while waiting:
        chosen = choose(waiting, overdue, 600, pads=pads)
        assert chosen[0] == 0
        seen += [waiting[index] for index in chosen]
        waiting = [length for index, length in enumerate(waiting) if index not in chosen]
    assert sorted(seen) == sorted([5, 300, 12, 290, 40, 80, 7, 2000, 41])
