"""The method in one picture: select, align, merge, tie, heal."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

NEURONS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"]
ORDERS = [[0, 1, 2, 3, 4], [2, 0, 4, 1, 3], [3, 4, 1, 0, 2]]  # of the same five kinds of neuron
INK, PALE, SHARED = "#333333", "#f2f2f2", "#dbe9f4"


def draw_method() -> Figure:
    """Five panels, from the window that is selected to the model that is tuned."""
    figure, axes = plt.subplots(1, 5, figsize=(8, 3.1), width_ratios=[1.2, 1.5, 1.5, 1.3, 1.1])
    titles = ["1 select", "2 collect features", "3 align, average", "4 tie", "5 heal"]
    notes = [
        "a window of\nk adjacent\nFF sublayers",
        "one forward pass;\none colour: neurons\nthat fire alike",
        "permute to the\nanchor's order,\ntake the mean",
        "one FF sublayer\nin k places:\nk − 1 are gone",
        "short recovery\nfine-tuning",
    ]
    for ax, title, note in zip(axes, titles, notes, strict=True):
        ax.set(xlim=(0, 10), ylim=(0, 10))
        ax.set_title(title, fontweight="bold")
        ax.axis("off")
        ax.text(5, -0.4, note, ha="center", va="top", fontsize=8, color=INK)
    _draw_layers(axes[0], [None, 0, 1, 2, None])
    _draw_sublayers(axes[1], ORDERS)
    _draw_sublayers(axes[2], [sorted(order) for order in ORDERS], mean=True)
    _draw_layers(axes[3], [None, "*", "*", "*", None])
    _draw_recovery(axes[4])
    return figure


def _draw_layers(ax: Axes, marks: list) -> None:
    """A column of layers, attention below FF; marked FFs belong to the window."""
    for i, mark in enumerate(marks):
        y = 0.2 + 2 * i
        color = PALE if mark is None else SHARED
        _box(ax, 2.2, y, 5.6, 0.75, PALE, "attention")
        _box(ax, 2.2, y + 0.85, 5.6, 0.75, color, "FF" if mark in (None, "*") else f"FF {mark}")
    inside = [0.2 + 2 * i + 1.2 for i, mark in enumerate(marks) if mark is not None]
    if "*" in marks:
        for y in inside:
            ax.plot([7.8, 9.3], [y, y], color="#0072B2", lw=1.5)
        ax.plot([9.3, 9.3], [inside[0], inside[-1]], color="#0072B2", lw=1.5)
        ax.text(9.7, inside[1], "W*", color="#0072B2", va="center", fontsize=9, fontweight="bold")
    else:
        ax.plot([8.3, 8.8, 8.8, 8.3], [inside[0], inside[0], inside[-1], inside[-1]], color=INK)
        ax.text(9.2, inside[1], "k", color=INK, va="center", fontsize=9, style="italic")


def _draw_sublayers(ax: Axes, orders: list[list[int]], mean: bool = False) -> None:
    """Columns of neurons, one for each sublayer of the window; alike neurons have one colour."""
    for column, order in enumerate(orders):
        x = 0.3 + 2.5 * column
        for row, kind in enumerate(order):
            _neuron(ax, x, 8 - 1.7 * row, NEURONS[kind])
        label = "anchor" if column == 0 else f"$P_{column}$" if mean else f"FF {column}"
        ax.text(x + 0.75, 0.1, label, ha="center", fontsize=8, color=INK)
    for column in range(len(orders) - 1):  # lines between neurons of one kind
        for row, kind in enumerate(orders[column]):
            target = orders[column + 1].index(kind)
            x = 0.3 + 2.5 * column
            ys = [8.6 - 1.7 * row, 8.6 - 1.7 * target]
            ax.plot([x + 1.5, x + 2.5], ys, color=NEURONS[kind], lw=1, alpha=0.8)
    if mean:
        for row, kind in enumerate(orders[0]):
            _neuron(ax, 8.2, 8 - 1.7 * row, NEURONS[kind], edge=INK)
            ax.text(7.6, 8.6 - 1.7 * row, "→", ha="center", va="center", fontsize=9, color=INK)
        ax.text(8.95, 0.1, "W*", ha="center", fontsize=9, fontweight="bold", color="#0072B2")


def _draw_recovery(ax: Axes) -> None:
    """A learning curve that approaches the uncompressed model."""
    x = np.linspace(0, 1, 60)
    ax.plot([0.8, 0.8, 9.5], [9.2, 1.5, 1.5], color=INK, lw=1)
    ax.plot(0.8 + 8.5 * x, 2.2 + 5.6 * (1 - np.exp(-4 * x)), color="#0072B2", lw=2)
    ax.plot([0.8, 9.5], [8.4, 8.4], color="#555555", ls="--", lw=1.2)
    ax.text(9.5, 8.6, "uncompressed", ha="right", fontsize=8, color="#555555")
    ax.text(9.5, 0.9, "step", ha="right", va="top", fontsize=8, color=INK)
    ax.text(0.5, 9.2, "metric", rotation=90, ha="right", va="top", fontsize=8, color=INK)


def _box(ax: Axes, x: float, y: float, width: float, height: float, color: str, text: str) -> None:
    ax.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=.2", fc=color, ec=INK, lw=0.6
        )
    )
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=7, color=INK)


def _neuron(ax: Axes, x: float, y: float, color: str, edge: str = "white") -> None:
    ax.add_patch(Rectangle((x, y), 1.5, 1.2, fc=color, ec=edge, lw=1))
