"""Traffic for the model: requests at a rate that changes, texts of log-normal length."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Tokens of a text, as the other benchmarks have them.
_MEDIAN_TOKENS, _SIGMA, _MOST_TOKENS = 50, 0.8, 512
MEAN_TOKENS = 67.0

Rate = Callable[[float], float]


@dataclass(frozen=True)
class Shape:
    """How traffic changes.

    Attributes:
        name: Of it.
        seconds: It lasts.
        load: Second → work, in replicas that would be always busy, where 1 is the most.
    """

    name: str
    seconds: float
    load: Rate


def _step(at: float) -> float:
    return 0.25 if at < 300 else 1.0 if at < 1_500 else 0.25


def _ramp(at: float) -> float:
    return 0.1 + 0.9 * min(max((at - 120) / 900, 0.0), 1.0) if at < 1_500 else 0.1


def _diurnal(at: float) -> float:
    return 0.1 + 0.9 * (0.5 - 0.5 * math.cos(2 * math.pi * at / 3_600))


def _flash(at: float) -> float:
    return 0.1 if at < 300 else 0.1 + 0.9 * math.exp(-max(at - 310, 0.0) / 240) * min((at - 300) / 10, 1.0)


def _on_off(at: float) -> float:
    return 1.0 if at % 360 >= 180 else 0.1


SHAPES = (
    Shape("step", 2_400, _step),
    Shape("ramp", 2_400, _ramp),
    Shape("diurnal", 7_200, _diurnal),
    Shape("flash crowd", 1_800, _flash),
    Shape("on and off", 2_400, _on_off),
)


def requests(shape: Shape, most_tokens_per_s: float, texts: int, seed: int) -> Iterator[tuple[float, list[int]]]:
    """Draw requests: a Poisson process whose rate follows the shape, thinned from the highest (Lewis and Shedler 1979).

    Args:
        shape: How the rate changes.
        most_tokens_per_s: Where its load is 1.
        texts: In each request.
        seed: Same seed, same traffic.
    """
    drawn = random.Random(seed)
    most_per_s = most_tokens_per_s / (MEAN_TOKENS * texts)
    now = 0.0
    while (now := now + drawn.expovariate(most_per_s)) < shape.seconds:
        if drawn.random() < shape.load(now):
            yield now, [_tokens(drawn) for _ in range(texts)]


def _tokens(drawn: random.Random) -> int:
    return max(3, min(round(drawn.lognormvariate(math.log(_MEDIAN_TOKENS), _SIGMA)), _MOST_TOKENS))
