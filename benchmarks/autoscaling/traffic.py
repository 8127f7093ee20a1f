"""Traffic for the model: requests at a rate that changes, texts of log-normal length."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

# Tokens of a text, as the other benchmarks have them.
_MEDIAN_TOKENS, _SIGMA, _MOST_TOKENS = 50, 0.8, 512
MEAN_TOKENS = 67.0
# Requests that are drawn at once, which is what drawing them costs.
_BLOCK = 4_096

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
    drawn = np.random.default_rng(seed)
    most_per_s = most_tokens_per_s / (MEAN_TOKENS * texts)
    now = 0.0
    while True:
        times = now + np.cumsum(drawn.exponential(1 / most_per_s, _BLOCK))
        chances = drawn.random(_BLOCK)
        lengths = drawn.lognormal(math.log(_MEDIAN_TOKENS), _SIGMA, (_BLOCK, texts)).round().clip(3, _MOST_TOKENS).astype(int)
        for when, chance, tokens in zip(times.tolist(), chances.tolist(), lengths.tolist(), strict=True):
            if when >= shape.seconds:
                return
            if chance < shape.load(when):
                yield when, tokens
        now = float(times[-1])
