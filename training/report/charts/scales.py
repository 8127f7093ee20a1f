"""From numbers and categories to pixels, with round ticks.

It does not draw.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from training.report.charts.numerals import MINUS, scientific

_LOG_SPAN = 30.0
_SMALLEST_PLAIN = 5e-4


@dataclass(frozen=True)
class Scale:
    """A number's place between two pixels.

    Attributes:
        low: Value at `start`.
        high: Value at `end`; above `low`.
        start: Pixel.
        end: Pixel; below `start` for an axis that points up.
        is_log: Equal ratios are equally far apart; needs positive values.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Return a value's pixel; one outside the scale is put at its end."""
        low, high, inside = (math.log(x) if self.is_log else x for x in (self.low, self.high, min(max(value, self.low), self.high)))
        return self.start + (inside - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """Return about `count` round values within the scale."""
        return log_ticks(self.low, self.high, count) if self.is_log else round_ticks(self.low, self.high, count)

    def texts(self, ticks: Sequence[float]) -> list[str]:
        """Write its ticks: with as many decimals each on a linear axis, with as many as each needs on a logarithmic one."""
        if self.is_log and min(ticks, default=1.0) >= _SMALLEST_PLAIN:
            return [tick_texts([tick])[0] if tick >= 0.01 else f"{tick:.3g}".removeprefix("0") for tick in ticks]
        return tick_texts(ticks)


def fitted(
    values: Iterable[float], start: float, end: float, *, count: int = 5, floor: float | None = None, ceiling: float | None = None
) -> Scale:
    """Make a linear scale around values that begins and ends at round numbers.

    Args:
        values: What must be on it.
        start: Pixel of its low end.
        end: Pixel of its high end.
        count: Ticks wished for.
        floor: It does not begin below this.
        ceiling: It does not end above this.
    """
    known = list(values)
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    step = round_step(high - low, count)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    low, high = low if floor is None else max(low, floor), high if ceiling is None else min(high, ceiling)
    return Scale(low, high if high > low else low + step, start, end)


def for_values(values: Sequence[float], start: float, end: float, *, may_be_log: bool = True) -> Scale:
    """Make a scale that ends at the values themselves, logarithmic where they are positive and span more than a factor of 30."""
    low, high = min(values), max(values)
    if high == low:
        margin = abs(low) * 0.5 or 1.0
        return Scale(low - margin, high + margin, start, end)
    return Scale(low, high, start, end, is_log=may_be_log and low > 0 and high / low > _LOG_SPAN)


def round_step(span: float, count: int) -> float:
    """Return the step of 1, 2 or 5 times a power of ten that cuts a span into about `count` parts."""
    raw = span / max(count, 1)
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= raw * 0.999)


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """Return the multiples of a round step between two values; at least one."""
    step = round_step(high - low, count)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    digits = max(0, 2 - math.floor(math.log10(step)))
    ticks = [round(number * step, digits) + 0.0 for number in range(first, last + 1)]
    return ticks if len(ticks) > 1 or count > 8 else round_ticks(low, high, count + 2)


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Return powers of ten between two values, with their 2- and 5-fold where there is room."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [
        [m * 10.0**d for d in decades for m in steps if low * 0.999 <= m * 10.0**d <= high * 1.001] for steps in ((1, 2, 5), (1, 3), (1,))
    ]
    fitting = [ticks for ticks in inside if 2 <= len(ticks) <= count]
    if fitting:
        return fitting[0]
    thinned = inside[2][:: -(-len(inside[2]) // max(count, 1))] if inside[2] else []
    return thinned or inside[0][:count]


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Write the ticks of one axis alike: `.25`, `1,000`, or `3e−4` where all are tiny."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if 0 < largest < 0.01 or largest >= 1e6 or any(0 < abs(tick) < _SMALLEST_PLAIN for tick in ticks):
        return [_tiny_text(tick) for tick in ticks]
    decimals = max((len(f"{tick:.6f}".rstrip("0").partition(".")[2]) for tick in ticks), default=0)
    return [_tick_text(tick, decimals) for tick in ticks]


def _tiny_text(tick: float) -> str:
    mantissa, _, exponent = f"{tick:.1e}".partition("e")
    return scientific(f"{mantissa.removesuffix('.0')}e{exponent}") if tick else "0"


def _tick_text(tick: float, decimals: int) -> str:
    if not tick:
        return "0"
    text = f"{abs(tick):,.{decimals}f}"
    if decimals and not tick % 1:
        text = text.partition(".")[0]
    return f"{MINUS if tick < 0 else ''}{text.removeprefix('0')}"


@dataclass(frozen=True)
class Bands:
    """Places of categories, evenly spread between two pixels."""

    names: tuple[str, ...]
    start: float
    end: float

    @property
    def width(self) -> float:
        """Pixels of one category."""
        return (self.end - self.start) / max(len(self.names), 1)

    def __call__(self, name: str) -> float:
        """Return the middle of a category."""
        return self.start + (self.names.index(name) + 0.5) * self.width
