"""How many layers are frozen on which rung of the ladder."""

# Share of an encoder's layers that the middle rung trains.
_TOP = 1 / 6


def middle_depth(layers: int) -> int:
    """Return how many layers of an encoder the middle rung leaves frozen."""
    return layers - max(1, round(layers * _TOP))


def first_depth(layers: int, frozen: int) -> int:
    """Return the frozen layers of what a configuration trains first: no fewer than it says, and all but the top ones."""
    return max(frozen, min(middle_depth(layers), layers - 1))
