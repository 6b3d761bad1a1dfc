"""Size against quality: what the paper's reviewers asked for."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.config import Params
from study.report.results import list_models, measure_sizes
from study.report.style import BASE, TUNED, WIDTH, find_look, finish, print_removed, write_beside

INK = "#333333"  # of labels that stand for several methods
FLOOR = 75.0  # percent of the base's quality: what keeps less is drawn here, with its number


def plot_pareto(results: pd.DataFrame, params: Params) -> Figure:
    """Every main variant of every model after tuning: its bytes, and the quality that it keeps."""
    models = list_models(results, params)
    columns = min(2, len(models))
    rows = -(-len(models) // columns)
    size = (WIDTH / 2 * columns, 3.2 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for ax in list(axes.flat)[len(models) :]:
        ax.remove()
    axes = list(axes.flat)[: len(models)]
    for ax, model in zip(axes, models, strict=True):
        table = mark_best(measure_sizes(results, model, params))
        _draw_model(ax, table)
        ax.set_title(model, fontweight="bold")
        ax.set(xlabel="bytes (% of the uncompressed in 32 bits)")
        ax.set_ylabel("quality kept (%)")
    return finish(figure, axes)


def mark_best(table: pd.DataFrame) -> pd.DataFrame:
    """Mark in a new column `best` what nothing else beats in both size and quality."""
    order = table.sort_values(["size", "kept"], ascending=[True, False])
    before = order.kept.astype(float).cummax().shift(fill_value=-np.inf)
    return table.assign(best=order.kept > before)


def _draw_model(ax: Axes, table: pd.DataFrame) -> None:
    ax.axhline(100, color=BASE["color"], ls=":", lw=1.4, zorder=1, label=f"{TUNED} = 100 %")
    for (method, int8), part in table.groupby(["method", "int8"], sort=False):
        part = part.sort_values("size", ascending=False)
        look = find_look(method)
        y = part.kept.clip(lower=FLOOR)
        ax.plot(
            part["size"],
            y,
            look["marker"],
            color=look["color"],
            mfc="white" if int8 else look["color"],
            ms=6.5,
            label=f"{look['label']}, LLM.int8()" if int8 else look["label"],
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
    _name_points(ax, table)
    ax.margins(x=0.15, y=0.13)


def _name_points(ax: Axes, table: pd.DataFrame) -> None:
    """What went, above the FFs' best and below the layers' worst of each size."""
    above = table[(table.kept >= FLOOR) & table.kind.notna()]
    for (kind, removed, int8), same in above.groupby(["kind", "removed", "int8"]):
        row = same.loc[same.kept.idxmin() if kind == "layers" else same.kept.idxmax()]
        text = print_removed(removed, kind) + ", int8" * int8
        down = kind == "layers"
        place = {"xytext": (0, -7 if down else 7), "va": "top" if down else "bottom"}
        write_beside(ax, text, (row["size"], row.kept), INK, ha="center", **place)
    for _, low in table[table.kept < FLOOR].groupby(table["size"].round()):
        for i, row in enumerate(low.sort_values("kept").to_dict("records")):
            what = print_removed(row["removed"], row["kind"])
            text, place = (
                f"{what}: {row['kept']:.0f} % ↓",
                {"xytext": (0, 11 + 11 * i), "ha": "center"},
            )
            color = find_look(row["method"])["color"]
            write_beside(ax, text, (row["size"], FLOOR), color, **place)
