"""How the report writes numbers: three digits, no zero before the point, a true minus sign, intervals in brackets.

It does not know what a number means.
"""

from collections.abc import Sequence

NOTHING = "–"
MINUS = "−"
_SMALLEST_PLAIN = 1e-3


def fraction(value: float | None, *, is_signed: bool = False) -> str:
    """Write a score with three decimals: `.742`, `−.012`, signed `+.031`; a dash for none."""
    if value is None:
        return NOTHING
    text = f"{abs(value):.3f}"
    bare = text[1:] if text.startswith("0.") else text
    if not float(text):
        return bare
    return f"{MINUS}{bare}" if value < 0 else f"{'+' if is_signed else ''}{bare}"


def threshold(value: float | None) -> str:
    """Write a threshold on a probability: one above 1 is never reached."""
    return "abstains always" if value is not None and value > 1 else fraction(value)


def interval(value: float | None, ends: Sequence[float] | None, *, is_signed: bool = False) -> str:
    """Write a score with its interval: `.742 [.690, .788]`."""
    if value is None or ends is None:
        return fraction(value, is_signed=is_signed)
    low, high = (fraction(end, is_signed=is_signed) for end in ends)
    return f"{fraction(value, is_signed=is_signed)} [{low}, {high}]"


def setting(value: object) -> str:
    """Write the value of a setting: three significant digits for a fraction, words as they are."""
    if value is None:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if 0 < abs(value) < _SMALLEST_PLAIN:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return scientific(f"{mantissa.rstrip('0').rstrip('.')}e{exponent}")
    return scientific(f"{value:.3g}" if isinstance(value, float) else str(value))


def scientific(text: str) -> str:
    """Shorten Python's exponents: `2e-05` becomes `2e−5`."""
    mantissa, found, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}".replace("-", MINUS) if found else text.replace("-", MINUS)


def duration(seconds: float | None) -> str:
    """Write a time in the two largest units that matter: `31 s`, `12 min`, `3 h 20 min`."""
    if seconds is None:
        return NOTHING
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def count(value: int | None) -> str:
    """Write a whole number with thousands set apart: `12,345`."""
    return NOTHING if value is None else f"{value:,}"


def plural(value: int, word: str) -> str:
    """Write a number with its noun: `1 trial`, `8 trials`."""
    return f"{value:,} {word}{'' if value == 1 else 's'}"
