"""Size against quality: what the paper's reviewers asked for."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.config import Params
from study.report.labels import find_box, print_removed, write_apart, write_beside
from study.report.results import list_models, measure_sizes
from study.report.style import WIDTH, find_look, finish

INK = "#333333"  # of labels that stand for several methods
FLOOR = 75.0  # percent of the base's quality: what keeps less is drawn here, with its number
CLOSE = 0.04  # of a panel's width: sizes that one name is enough for
NEAR = 0.25  # of a panel's width: sizes whose names would meet


def plot_pareto(results: pd.DataFrame, params: Params) -> Figure:
    """Every main variant of every model that was tuned: its bytes, and the quality that it keeps.

    Args:
        results: results.csv.
        params: which variants are the main ones.
    """
    sizes = {m: mark_best(measure_sizes(results, m, params)) for m in list_models(results, params)}
    compressed = {m: table for m, table in sizes.items() if (table.method != "base").any()}
    compressed = compressed or sizes  # or the bases, where there is nothing else
    models, tables = list(compressed), list(compressed.values())
    columns = min(2, len(models))
    rows = -(-len(models) // columns)
    size = (WIDTH / 2 * columns, 3.2 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for ax in list(axes.flat)[len(models) :]:
        ax.remove()
    axes = list(axes.flat)[: len(models)]
    for ax, model, table in zip(axes, models, tables, strict=True):
        _draw_model(ax, table)
        ax.set_title(model, fontweight="bold")
        ax.set(xlabel="bytes (% of the uncompressed in 32 bits)")
        ax.set_ylabel("quality kept (%)")
    finish(figure, axes)
    for ax, table in zip(axes, tables, strict=True):
        _name_points(ax, table)
    return figure


def mark_best(table: pd.DataFrame) -> pd.DataFrame:
    """Mark in a new column `best` what nothing else beats in both size and quality.

    Args:
        table: what `measure_sizes` returned.
    """
    order = table.sort_values(["size", "kept"], ascending=[True, False])
    before = order.kept.astype(float).cummax().shift(fill_value=-np.inf)
    return table.assign(best=order.kept > before)


def _draw_model(ax: Axes, table: pd.DataFrame) -> None:
    alike = (table.method == "base") & (table.phase == "tuned")
    whole = find_look("base", tuned=alike.any())  # is 100 %: a line, and a point on it
    dotted = {"color": whole["color"], "ls": ":", "lw": 1.4}
    ax.axhline(100, zorder=1, **dotted)
    ax.plot([], [], whole["marker"], ms=6.5, label=f"{whole['label']} = 100 %", **dotted)
    for (method, tuned, int8), part in table.groupby(["method", alike, "int8"], sort=False):
        look = find_look(method, tuned)
        is_whole = look == whole and not int8  # another point may lie close below it
        label = f"{look['label']}, LLM.int8()" if int8 else look["label"]
        ax.plot(
            part["size"],
            part.kept.clip(lower=FLOOR),
            look["marker"],
            color=look["color"],
            mfc="white" if int8 else look["color"],
            mec="white" if is_whole else look["color"],
            mew=0.6 if is_whole else 1,
            ms=8 if is_whole else 6.5,
            label=None if is_whole else label,
        )
        bars = part[part["std"].notna() & (part.kept >= FLOOR)]
        ax.errorbar(bars["size"], bars.kept, bars["std"], fmt="none", color=look["color"], zorder=1)
    best = table[table.best & (table.kept > FLOOR)]
    ax.plot(
        best["size"],
        best.kept,
        "o",
        mfc="none",
        mec="black",
        ms=12,
        mew=0.9,
        label="best at its size",
    )
    ax.margins(x=0.2, y=0.13)


def _name_points(ax: Axes, table: pd.DataFrame) -> None:
    """What went, at the FFs' best and the layers' worst of each size, or beside it."""
    shown = table[table.kept >= FLOOR]
    taken = [find_box(ax, (0, 100), (1e3, 100), 1)]  # the line across
    for row in shown.fillna({"std": 0}).to_dict("records"):
        x, y, bar = row["size"], row["kept"], row["std"]
        taken.append(find_box(ax, (x, y), (x, y), 6 if row["best"] else 3.5))
        taken.append(find_box(ax, (x, y - bar), (x, y + bar), 1))
    _name_clipped(ax, table[table.kept < FLOOR])
    close = CLOSE * np.ptp(ax.get_xlim())
    for (kind, removed, int8), same in shown.groupby(["kind", "removed", "int8"]):
        below = kind == "layers"
        text = print_removed(removed, kind) + ", int8" * int8
        while len(same):  # pruned neurons, refit, may weigh more or less than merged ones
            row = same.loc[same.kept.idxmin() if below else same.kept.idxmax()]
            write_apart(ax, text, (row["size"], row.kept), INK, taken, below)
            same = same[(same["size"] - row["size"]).abs() > close]


def _name_clipped(ax: Axes, table: pd.DataFrame) -> None:
    """The numbers of what lies below the floor, above each other where names would meet."""
    table = table.sort_values("size")
    apart = table["size"].diff() > NEAR * np.ptp(ax.get_xlim())
    for _, low in table.groupby(apart.cumsum()):
        for i, row in enumerate(low.sort_values("kept").to_dict("records")):
            text = f"{print_removed(row['removed'], row['kind'])}: {row['kept']:.0f} % ↓"
            at_edge = row["size"] - ax.get_xlim()[0] < NEAR * np.ptp(ax.get_xlim())
            place = {"ha": "left" if at_edge else "center", "fontsize": 8}
            place |= {"xytext": (-8 if at_edge else 0, 9 + 10 * i)}
            color = find_look(row["method"])["color"]
            write_beside(ax, text, (row["size"], FLOOR), color, **place)
