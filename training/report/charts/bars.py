"""Level bars with their figures: which dimensions moved the score."""

from collections.abc import Mapping

from markupsafe import Markup

from training.report.charts.numerals import fraction
from training.report.charts.svg import NAME, drawing, element, text_width, words

_NARROW = 600.0


def draw_importance(importance: Mapping[str, float], width: float) -> Markup:
    """Draw each dimension's share of what the search explains, the largest first."""
    ranked = sorted(importance.items(), key=lambda item: item[1], reverse=True)
    is_narrow = width < _NARROW
    left = 4.0 if is_narrow else min(260.0, max(text_width(name, NAME) for name, _ in ranked) + 14)
    gap, most = (36.0, ranked[0][1] or 1.0) if is_narrow else (24.0, ranked[0][1] or 1.0)
    parts = []
    for number, (name, share) in enumerate(ranked):
        y = number * gap + (20 if is_narrow else 6)
        long = max(share / most * (width - left - 50), 1.0)
        named = (
            words(4, y - 5, name, limit=width - 8, size=NAME)
            if is_narrow
            else words(left - 10, y + 11, name, anchor="end", limit=left - 12, size=NAME)
        )
        parts += [named, element("rect", x=left, y=y + 2, width=long, height=11, class_="bar")]
        parts.append(words(left + long + 6, y + 12, fraction(share), class_="figure"))
    said = ", ".join(f"{name} {fraction(share)}" for name, share in ranked)
    return drawing(width, len(ranked) * gap + 8, "Importance of the searched dimensions", said, *parts)
