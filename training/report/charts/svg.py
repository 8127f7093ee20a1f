"""Elements of an SVG drawing, escaped, and how wide a text will be.

Widths are estimates for Helvetica and its kin, a little generous: a page cannot measure without a script.
"""

from collections.abc import Sequence
from unicodedata import combining, east_asian_width

from markupsafe import Markup, escape

SMALL = 12.0
NAME = 13.0
_NARROW = frozenset("iljtfrI.,;:'|!()[]{}/\\ -−·")
_WIDE = frozenset("mwMW@%&—")


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """Make an element; underscores in attribute names become hyphens, and `None` leaves an attribute out."""
    given = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), _plain(value))
        for name, value in attributes.items()
        if value is not None
    )
    return Markup("<{tag}{given}>{children}</{tag}>").format(
        tag=Markup(tag),  # noqa: S704 - tags are ours, never data
        given=given,
        children=Markup("").join(children),
    )


def _plain(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def drawing(width: float, height: float, title: str, description: str, *children: str) -> Markup:
    """Make a whole drawing that scales with its box.

    Args:
        width: In pixels at its natural size.
        height: Likewise.
        title: What it shows, for those who cannot see it.
        description: What there is to see in it.
        children: Its elements.
    """
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *children,
        viewBox=f"0 0 {_plain(float(width))} {_plain(float(height))}",
        width=float(width),
        height=float(height),
        role="img",
        aria_label=f"{title}. {description}",
    )


def text_width(text: str, size: float = SMALL) -> float:
    """Estimate how wide a text is, in pixels."""
    return size * sum(_letter_width(letter) for letter in text)


def _letter_width(letter: str) -> float:
    if combining(letter):
        return 0.0
    if letter in _NARROW:
        return 0.36
    if letter in _WIDE or east_asian_width(letter) in "WF":
        return 1.02
    return 0.74 if letter.isupper() else 0.59


def shortened(text: str, limit: float, size: float = SMALL) -> str:
    """Cut a text to a width in pixels; an ellipsis says so."""
    if text_width(text, size) <= limit:
        return text
    # The last part of a path tells dimensions of a head apart, so it stays.
    before, slash, last = text.rpartition("/")
    end = slash + last if slash and text_width(slash + last, size) < limit / 2 else ""
    kept = before if end else text
    while kept and text_width(kept + end, size) + size > limit:
        kept = kept[:-1]
    return f"{kept.rstrip()}…{end}"


def words(
    x: float, y: float, text: str, *, anchor: str = "start", class_: str | None = None, limit: float | None = None, size: float = SMALL
) -> Markup:
    """Write a text; one cut to `limit` pixels keeps its whole wording as a tooltip."""
    shown = text if limit is None else shortened(text, limit, size)
    tip = element("title", text) if shown != text else Markup("")
    attributes = {"x": float(x), "y": float(y), "font_size": size, "text_anchor": None if anchor == "start" else anchor}
    return element("text", escape(shown), tip, **attributes, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Draw a straight line."""
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def path(points: Sequence[tuple[float, float]], class_: str, *, title: str | None = None) -> Markup:
    """Draw a line through points; nothing for fewer than one."""
    steps = " ".join(f"{_plain(float(x))},{_plain(float(y))}" for x, y in points)
    return element("polyline", *([element("title", title)] if title else []), points=steps, class_=class_) if points else Markup("")


def mark(x: float, y: float, class_: str, *, shape: str = "dot", radius: float = 3.5, title: str | None = None) -> Markup:
    """Draw a mark: a `dot`, a `cross`, an `up` or a `down` triangle, or a `diamond`."""
    tip = [element("title", title)] if title else []
    if shape == "dot":
        return element("circle", *tip, cx=float(x), cy=float(y), r=float(radius), class_=class_)
    r = radius * 1.15
    outlines = {
        "cross": f"M{x - r:.1f} {y - r:.1f}L{x + r:.1f} {y + r:.1f}M{x - r:.1f} {y + r:.1f}L{x + r:.1f} {y - r:.1f}",
        "up": f"M{x:.1f} {y - r:.1f}L{x + r:.1f} {y + r * 0.8:.1f}L{x - r:.1f} {y + r * 0.8:.1f}Z",
        "down": f"M{x:.1f} {y + r:.1f}L{x + r:.1f} {y - r * 0.8:.1f}L{x - r:.1f} {y - r * 0.8:.1f}Z",
        "diamond": f"M{x:.1f} {y - r:.1f}L{x + r:.1f} {y:.1f}L{x:.1f} {y + r:.1f}L{x - r:.1f} {y:.1f}Z",
    }
    return element("path", *tip, d=outlines[shape], class_=class_)
