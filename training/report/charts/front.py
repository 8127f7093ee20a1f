"""The Pareto front of two heads: trials that no other beats on both."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from training.report.charts.axes import PANEL, Area, frame, heading
from training.report.charts.numerals import fraction
from training.report.charts.scales import fitted
from training.report.charts.svg import drawing, mark, path, text_width, words

_AREA = Area(38, 66, PANEL - 14, 282)


def draw_front(
    heads: tuple[str, str], scores: Mapping[int, tuple[float, float]], front: Sequence[int], best: int, *, is_line: bool = True
) -> Markup:
    """Draw one pair of heads.

    Args:
        heads: Across, and up.
        scores: Position → scores of the two.
        front: Positions on the front of all heads.
        best: The chosen one.
        is_line: There are no other heads, so that the front is a line.
    """
    x = fitted([one for one, _ in scores.values()], _AREA.left, _AREA.right, count=4)
    y = fitted([one for _, one in scores.values()], _AREA.bottom, _AREA.top, count=4)
    places = {position: (x(one), y(two)) for position, (one, two) in scores.items()}
    shown = sorted((position for position in front if position in places), key=lambda position: places[position])
    parts = [mark(*place, "other-dot", radius=3, title=f"trial {position}") for position, place in places.items() if position not in shown]
    # Of more than two heads, a pair shows the shadow of a surface: its points make no line.
    parts += [path([places[position] for position in shown], "step")] if is_line else []
    for position in shown:
        said = f"trial {position}: {heads[0]} {fraction(scores[position][0])}, {heads[1]} {fraction(scores[position][1])}"
        parts.append(
            mark(
                *places[position],
                "ours" if position == best else "dark",
                shape="diamond" if position == best else "dot",
                radius=4.5,
                title=said,
            )
        )
    parts += _numbers(shown, places)
    title = f"{heads[1]} over {heads[0]}"
    framed = frame(_AREA, x, y, f"{heads[0]} →", f"↑ {heads[1]}")
    said = f"{len(shown)} trials on the front, trial {best} chosen"
    return drawing(PANEL, _AREA.bottom + 40, f"Pareto front: {title}", said, *heading(title, said), *framed, *parts)


def _numbers(shown: Sequence[int], places: Mapping[int, tuple[float, float]]) -> list[Markup]:
    # A number that would touch one already written, or leave the panel, is left to the tooltip.
    taken: list[tuple[float, float]] = []
    parts = []
    for position in shown:
        x, y = places[position][0] + 7, places[position][1] - 7
        is_free = all(abs(x - other) > 20 or abs(y - height) > 13 for other, height in taken)
        if is_free and x + text_width(str(position)) < PANEL and y > _AREA.top:
            taken.append((x, y))
            parts.append(words(x, y, str(position), class_="figure"))
    return parts
