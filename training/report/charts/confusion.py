"""A confusion matrix: true classes down, answers across, each row shaded by its shares.

It does not measure; figures class by class are the page's tables.
"""

from collections.abc import Sequence

from markupsafe import Markup

from training.report.charts.numerals import fraction
from training.report.charts.svg import NAME, drawing, element, text_width, words

_FEW, _SOME = 6, 10
# More rows than this nobody reads; those that are most often confused are what the matrix is looked at for.
_MOST = 30
_NAMES = 150.0
_FAINTEST = 0.06
# Shares above which a count needs another colour than the page's text to be read; on a dark page the lower one.
_MID, _DEEP = 0.6, 0.78


def draw_confusion(head: str, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Markup:
    """Draw one head's matrix at its natural size; columns carry the numbers of the rows.

    Args:
        head: Its name.
        classes: Their names.
        counts: (classes, classes), true class × answer. Of more than 30 classes those with the most wrong answers, from or to them, are
            drawn, under the numbers that they have among all.
    """
    shown = _most_confused(counts)
    cell = 46.0 if len(shown) <= _FEW else 34.0 if len(shown) <= _SOME else 25.0
    left = min(_NAMES, max(text_width(classes[one]) for one in shown)) + 34
    top, side = 44.0, cell * len(shown)
    width = max(left + side + 4, 190.0)
    parts = [
        words(left, 12, "answer →", class_="soft"),
        words(left - 8, top - 8, "truth ↓", anchor="end", class_="soft"),
    ]
    for place, one in enumerate(shown):
        middle = top + (place + 0.5) * cell
        parts.append(words(left + (place + 0.5) * cell, top - 8, str(one + 1), anchor="middle", class_="tick"))
        parts.append(words(left - 27, middle + 4, classes[one], anchor="end", limit=left - 30))
        parts.append(words(left - 8, middle + 4, str(one + 1), anchor="end", class_="tick"))
        parts.extend(_cells(counts[one], place, shown, classes, left, top, cell))
    parts.append(element("rect", x=left, y=top, width=side, height=side, class_="outline"))
    right, total = sum(row[number] for number, row in enumerate(counts)), sum(map(sum, counts))
    said = f"{right} of {total} answers on the diagonal"
    if len(shown) < len(classes):
        said += f"; drawn are the {len(shown)} of {len(classes)} classes that are most often confused"
    return drawing(width, top + side + 4, f"Confusion matrix of {head}", said, *parts)


def _most_confused(counts: Sequence[Sequence[int]]) -> list[int]:
    """Return the classes with the most wrong answers, in their order; all of few."""
    if len(counts) <= _MOST:
        return list(range(len(counts)))
    wrong = [sum(row) + sum(other[number] for other in counts) - 2 * row[number] for number, row in enumerate(counts)]
    return sorted(sorted(range(len(counts)), key=lambda number: -wrong[number])[:_MOST])


def _cells(
    row: Sequence[int], place: int, shown: Sequence[int], classes: Sequence[str], left: float, top: float, cell: float
) -> list[Markup]:
    # Shares are of all answers, also of those to classes that are not drawn.
    total, parts = max(sum(row), 1), []
    y = top + place * cell
    for across, column in enumerate(shown):
        count = row[column]
        if not count:
            continue
        share, x = count / total, left + across * cell
        said = f"{classes[shown[place]]} answered as {classes[column]}: {count} of {total} ({fraction(share)})"
        kind = "cell right" if across == place else "cell wrong"
        opacity = f"{max(share, _FAINTEST):.2f}"
        parts.append(element("rect", element("title", said), x=x, y=y, width=cell, height=cell, class_=kind, fill_opacity=opacity))
        size = NAME if cell > 30 and count < 1000 else min(11.0, (cell - 3) / (0.6 * len(str(count))))
        parts.append(
            words(
                x + cell / 2,
                y + cell / 2 + 4,
                str(count),
                anchor="middle",
                class_="deep" if share > _DEEP else "mid" if share > _MID else None,
                size=size,
            )
        )
    return parts
