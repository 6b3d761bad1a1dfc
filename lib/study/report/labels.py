"""Direct labels: what a point is, in its own colour, where nothing is in the way."""

from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from study.report.results import shorten_kind

PAD = 2.5  # points between a label and what it may not cover
HALO = withStroke(linewidth=2.5, foreground="white")  # no line runs through a label
PIECES = 16  # boxes that stand for a line
# Around a point: points to the right and up.
PLACES = ((0, 7), (-8, 0), (8, 0), (5, 6), (-5, 6), (0, -7), (0, 16), (-4, 16), (4, 16))


def print_removed(removed: int, kind: str) -> str:
    """What went, in short: "4 FFs", "2 layers".

    Args:
        removed: how many.
        kind: of what, as in results.csv.
    """
    return f"{removed} {shorten_kind(kind)}"


def write_beside(
    ax: Axes, text: str, at: tuple[float, float], color: str, **kwargs: Any
) -> Annotation:
    """A label at some points from a place in data, in the colour of what it names.

    Args:
        ax: the panel.
        text: the label.
        at: what it labels, in data.
        color: of the text.
        kwargs: matplotlib's, for `Axes.annotate`.
    """
    defaults = {"xytext": (7, 0), "textcoords": "offset points", "fontsize": 8.5, "va": "center"}
    return ax.annotate(text, at, color=color, path_effects=[HALO], **(defaults | kwargs))


def write_apart(
    ax: Axes,
    text: str,
    at: tuple[float, float],
    color: str,
    taken: list[Bbox],
    below: bool = False,
    needed: bool = True,
) -> bool:
    """A label at the first place around a point where nothing is in its way.

    Args:
        ax: a panel whose layout is final (`finish`).
        text, at, color: as in `write_beside`.
        taken: what labels may not cover, in pixels; this one is added.
        below: where to try first, instead of above.
        needed: whether it stands at the first place where none is free, and not nowhere.

    Returns:
        Whether it stands.
    """
    labels = []
    for x, up in PLACES:
        y = -up if below else up
        ha = "center" if x == 0 else "left" if x > 0 else "right"
        va = "center" if y == 0 else "bottom" if y > 0 else "top"
        labels.append(write_beside(ax, text, at, color, xytext=(x, y), ha=ha, va=va))
        if _is_free(labels[-1], ax, taken):
            break
    is_free = _is_free(labels[-1], ax, taken)
    best = labels[-1] if is_free else labels[0] if needed else None
    for label in labels:
        label.set_in_layout(False)
        if label is not best:
            label.remove()
    if best is not None:
        taken.append(best.get_window_extent())
    return best is not None


def _is_free(label: Annotation, ax: Axes, taken: list[Bbox]) -> bool:
    box = label.get_window_extent()
    inside = all(ax.bbox.contains(*corner) for corner in (box.min, box.max))
    box = box.padded(PAD * ax.figure.dpi / 72, 0)
    return inside and not any(box.overlaps(other) for other in taken)


def find_box(ax: Axes, low: tuple[float, float], high: tuple[float, float], pad: float) -> Bbox:
    """What something takes of a panel whose layout is final, in pixels.

    Args:
        ax: the panel.
        low, high: two corners, in data.
        pad: around them, in points.
    """
    return Bbox(ax.transData.transform([low, high])).padded(pad * ax.figure.dpi / 72)


def find_line(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], pad: float
) -> list[Bbox]:
    """What a straight line takes of a panel, as a row of boxes no larger than they must be.

    Args:
        ax: the panel.
        start, end: of the line, in data; straight on the page, whatever the scales.
        pad: as in `find_box`.
    """
    corners = ax.transData.transform([start, end])
    steps = [corners[0] + (corners[1] - corners[0]) * i / PIECES for i in range(PIECES + 1)]
    pixels = pad * ax.figure.dpi / 72
    return [Bbox([a, b]).padded(pixels) for a, b in pairwise(steps)]


def note_clipped(
    ax: Axes, at: tuple[float, float], color: str, line: int = 0, align: str = "center"
) -> None:
    """A value beyond the axis: its number at the edge, with an arrow that points to it.

    Args:
        ax: a panel whose limits are final.
        at: the point, in data.
        color: of the text.
        line: how many others are noted at the same place, towards the edge.
        align: of the text to the place.
    """
    x, value = at
    down = value < ax.get_ylim()[0]
    number = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
    write_beside(
        ax,
        f"{'↓' if down else '↑'} {number}",
        (x, 0 if down else 1),
        color,
        xycoords=("data", "axes fraction"),
        xytext=(0, (4 + 11 * line) * (1 if down else -1)),
        ha=align,
        va="bottom" if down else "top",
        fontsize=8,
    )
