"""What a recovery gives back, and from which text, drawn from results/benchmarks/recovery.csv."""

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from study.report.labels import write_apart, write_beside
from study.report.style import BASE, MARKER, WIDTH, find_look, finish

STATE = ["method", "ratio", "calibrated"]
OWN = "perplexity"  # on the text that the model is tuned and measured on
SIDES = {  # column: what it is
    "perplexity on addresses": "perplexity, other text (addresses)",
    "accuracy (choices) on quiz": "right in the quiz, a third kind (%)",
}
CHANCE = 25  # % of the quiz
DROPPED = {"sixth": "6 layers", "third": "8 layers"}
TICKS = (10, 20, 50, 100, 200, 500)
TUNED = {"own": "-", "own and reading": ":"}


def plot_recovery(table: pd.DataFrame) -> Figure:
    """Before (hollow) and after tuning (filled): other text and the quiz against its own text.

    Where a third is removed, or layers of about as much. Means over seeds with their standard
    deviations, where there are several; solid lines lead to what was tuned on its own text, dotted
    ones to what was tuned on both.

    Args:
        table: of one recipe, and what is not tuned.
    """
    table = table.fillna({"ratio": "", "calibrated": "", "tuned": ""})
    table = table[table.ratio != "half"]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4.6))
    ends: dict[Axes, list] = {}
    for ax, side in zip(axes, SIDES, strict=True):
        ax.set(xscale="log", xlabel="perplexity, its own text (docstrings; log scale)")
        ax.set_ylabel(SIDES[side])
        ax.set_xticks(TICKS[:-1], [str(tick) for tick in TICKS[:-1]])
        ax.set_xticks([], minor=True)
        if side.startswith("perplexity"):
            ax.set_yscale("log")
            ax.set_yticks(TICKS, [str(tick) for tick in TICKS])
            ax.set_yticks([], minor=True)
        else:
            ax.axhline(CHANCE, color=BASE["color"], ls=":", lw=1)
            write_beside(ax, "chance", (100, CHANCE), BASE["color"], xytext=(0, 7))
        ends[ax] = [_draw_state(ax, side, *each) for each in table.groupby(STATE, sort=False)]
        ax.margins(0.12)
    _list_states(axes[0])
    finish(figure, list(axes), columns=3)
    for ax in axes:
        taken = [box for _, points, _ in ends[ax] for box in _list_boxes(ax, points)]
        for text, points, color in ends[ax]:
            tries = product(points, (False, True))
            if not any(
                write_apart(ax, text, at, color, taken, below, False) for at, below in tries
            ):
                write_apart(ax, text, points[0], color, taken)
    return figure


def _draw_state(ax: Axes, side: str, state: tuple, part: pd.DataFrame) -> tuple:
    """One way of compressing; returns its label, its points, its colour."""
    method, ratio, calibrated = state
    look = find_look(method)
    style = {"color": look["color"], "ms": MARKER, "ls": "none"}
    before = part[part.tuned == ""]
    start = tuple(before[[OWN, side]].iloc[0])
    ax.plot(*start, look["marker"], mfc="white", **style)
    points = [start]
    for text, line in TUNED.items():
        after = part[part.tuned == text]
        if len(after):
            end = tuple(after[[OWN, side]].mean())
            spread = after[side].std() if len(after) > 1 else 0
            ax.plot(*zip(start, end, strict=True), line, color=look["color"], lw=1)
            ax.errorbar(*end, spread, fmt=look["marker"], **style)
            points.append(end)
    name = look["label"].removeprefix("neurons: ")
    name += f" {DROPPED[ratio]}" if method == "drop" else ""
    return name + (", both texts" if "reading" in calibrated else ""), points, look["color"]


def _list_states(ax: Axes) -> None:
    """What is hollow, filled, solid and dotted, in the legend."""
    style = {"color": BASE["color"], "ms": MARKER}
    told = {
        "not tuned": Line2D([], [], marker="o", mfc="white", ls="none", **style),
        "tuned on its own text": Line2D([], [], marker="o", ls="-", **style),
        "tuned on both texts": Line2D([], [], marker="o", ls=":", **style),
    }
    for label, line in told.items():
        line.set_label(label)
        ax.add_line(line)


def _list_boxes(ax: Axes, points: list[tuple[float, float]]) -> list[Bbox]:
    """The pixels that markers cover, and the lines from the first one to the others."""
    first, *others = ax.transData.transform(points)
    ways = [np.linspace(first, other, 12) for other in others] or [[first]]
    return [Bbox.from_bounds(x - 5, y - 5, 10, 10) for way in ways for x, y in way]
