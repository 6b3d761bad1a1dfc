"""The contest in one picture: what each method keeps, at what it stores and what it computes."""

import math
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from study.config import Params
from study.report.choices import FAITHFUL
from study.report.labels import find_box, find_line, write_apart, write_beside
from study.report.standings import RATIOS, measure_contest, select_budget
from study.report.style import BASE, MARKER, TUNED, WIDTH, find_look, finish

FINE = 0.5  # percent that may be lost on a scale that is linear; beyond, every step is as long
# Where the axis has ticks, in percent.
KEPT = (130, 120, 110, 105, 102, 101, 100, 99, 98, 95, 90, 80, 50, 0)
FAMILIES = ("shares", "removes", "both", "stores fewer bits")  # in the order of the legend
GRAY = "#777777"


def plot_contest(results: pd.DataFrame, params: Params, model: str) -> Figure | None:
    """One model before (hollow) and after tuning, against what is stored and against FLOPs.

    Against FLOPs only the best of each family and the paper's methods, the more of which is removed
    the further along a line.
    The axis of quality is finer towards the uncompressed model, so that what is ruined hides
    nothing. Points that would cover each other stand side by side; names stand where there is room.

    Args:
        results: results.csv.
        params: which variants there are.
        model: its name.

    Returns:
        None where nothing is compared, or the uncompressed model scores 0: of that nothing is kept.
    """
    table = measure_contest(results, params, model).replace(math.inf, math.nan)
    table = table[table[["untuned", "tuned"]].notna().any(axis=1)]
    whole, table = (table[(table.family == "uncompressed") == is_it] for is_it in (True, False))
    if table.empty:
        return None
    sides = ["stored"] + ["flops"] * bool(table.flops.notna().any())
    figure, axes = plt.subplots(
        1, len(sides), figsize=(WIDTH, 6.2), width_ratios=[3, 2][: len(sides)], squeeze=False
    )
    axes, points = list(axes.flat), _list_points(table)
    for ax, side in zip(axes, sides, strict=True):
        _set_scales(ax, points, side, whole)
        _list_legend(ax, table)
    axes[0].set_ylabel("quality kept (% of the uncompressed), finer towards 100")
    _name_budgets(axes[0], table)
    finish(figure, axes, model, columns=3)
    named = _find_named(table)
    for ax, side in zip(axes, sides, strict=True):
        shown = points if side == "stored" else points[points.method.isin(named)]
        _draw_points(ax, shown, side, named)
    return figure


def _list_points(table: pd.DataFrame) -> pd.DataFrame:
    """One row per variant and state: `kept`, `is_tuned`, and the labels; the paper's first."""
    before = table.assign(kept=table.untuned, is_tuned=False, std=math.nan)
    after = table.assign(kept=table.tuned, is_tuned=True)
    points = pd.concat([before, after], ignore_index=True)
    points = points[points.kept.notna()].assign(paper=points.method.isin(FAITHFUL))
    return points.sort_values(["is_tuned", "paper"], ascending=False, kind="stable")


def _set_scales(ax: Axes, points: pd.DataFrame, side: str, whole: pd.DataFrame) -> None:
    ax.set_yscale(
        "function",
        functions=(
            lambda kept: -np.arcsinh((100 - np.asarray(kept)) / FINE),
            lambda height: 100 + FINE * np.sinh(np.asarray(height)),
        ),
    )
    lines = [100.0, *whole.tuned.dropna()]
    highest = (points.kept + points["std"].fillna(0)).max()
    top, bottom = max(highest, *lines), min(points.kept.min(), *lines)
    room = top + 0.4, 100 + FINE * np.sinh(np.arcsinh((top - 100) / FINE) + 0.15)
    ax.set_ylim(100 + FINE * np.sinh(np.arcsinh((bottom - 100) / FINE) - 0.5), max(room))
    low, high = ax.get_ylim()
    ticks = [kept for kept in KEPT if low <= kept <= high]
    ax.set_yticks(ticks, [str(kept) for kept in ticks], minor=False)
    ax.set_yticks([], minor=True)
    x = points[side].dropna()
    room = max(0.2 * (x.max() - x.min()), 5)
    ax.set_xlim(x.min() - room, x.max() + room)
    words = {
        "stored": "stored parameters (%)",
        "flops": "FLOPs per token (%), equal ones side by side",
    }
    ax.set(xlabel=words[side])
    ax.axhline(100, color=BASE["color"], ls="--", lw=1.2, zorder=1, label=BASE["label"])
    for kept in whole.tuned.dropna():
        ax.axhline(kept, color=BASE["color"], ls=":", lw=1.4, zorder=1, label=TUNED["label"])


def _list_legend(ax: Axes, table: pd.DataFrame) -> None:
    """Every method, in its family, and what hollow and filled mean."""
    for family in FAMILIES:
        for method in table[table.family == family].method.unique():
            look = find_look(method)
            style = {"marker": look["marker"], "color": look["color"], "ls": "none", "ms": MARKER}
            ax.plot([], [], label=look["label"], **style)
    states = {"untuned": ("before tuning", "white"), "tuned": ("after tuning", GRAY)}
    for label, fill in (look for state, look in states.items() if table[state].notna().any()):
        ax.plot([], [], "o", color=GRAY, mfc=fill, ms=MARKER, label=label)


def _name_budgets(ax: Axes, table: pd.DataFrame) -> None:
    """How many FF sublayers are gone, over the parameters that are left then."""
    for ratio, words in RATIOS.items():
        stored = table[(table.kind == "FF sublayers") & (table.ratio == ratio)].stored
        if len(stored):
            place = {"xycoords": ("data", "axes fraction"), "xytext": (0, 4), "va": "bottom"}
            text = f"{words}\nremoved"
            write_beside(ax, text, (stored.iloc[0], 1), GRAY, ha="center", fontsize=8, **place)


def _find_named(table: pd.DataFrame) -> list[str]:
    """The best method of each family at each ratio, before tuning, and then the paper's."""
    best = []
    for ratio in RATIOS:
        fair = select_budget(table, ratio).dropna(subset="untuned")
        best += list(fair.loc[fair.groupby("family").untuned.idxmax()].method)
    return list(dict.fromkeys([*best, *FAITHFUL]))


def _draw_points(ax: Axes, points: pd.DataFrame, side: str, named: list[str]) -> None:
    points, taken, bars = points[points[side].notna()], [], []
    places = []
    for point in points.to_dict("records"):
        x = _find_room(ax, (point[side], point["kept"]), taken)
        look = find_look(point["method"])
        fill = look["color"] if point["is_tuned"] else "white"
        style = {"color": look["color"], "mfc": fill, "ms": MARKER, "mew": 1.1, "zorder": 3}
        ax.plot(x, point["kept"], look["marker"], **style)
        if not math.isnan(point["std"]):
            bar = {"fmt": "none", "color": look["color"], "lw": 1.1, "zorder": 2}
            ax.errorbar(x, point["kept"], point["std"], **bar)
            ends = (x, point["kept"] - point["std"]), (x, point["kept"] + point["std"])
            bars.append(find_box(ax, *ends, 1))
        places.append((x, point["kept"]))
    points = points.assign(place=places).sort_values(["is_tuned", "stored"])
    if side == "flops":
        for (method, _), part in points.groupby(["method", "is_tuned"]):
            line = {"color": find_look(method)["color"], "lw": 0.9, "alpha": 0.6, "zorder": 1.5}
            ax.plot(*zip(*part.place, strict=True), **line)
            for ends in pairwise(part.place):
                bars += find_line(ax, *ends, 0.5)
    taken += bars  # which marks may cover, and names may not
    for across in (line.get_ydata()[0] for line in ax.lines if line.get_ls() in ("--", ":")):
        taken.append(find_box(ax, (ax.get_xlim()[0], across), (ax.get_xlim()[1], across), 1))
    for method in named:  # the more is removed, the more room there is
        mine = points[points.method == method]
        color, label = find_look(method)["color"], find_look(method)["label"]
        for place in mine.place:
            if write_apart(ax, label, place, color, taken, needed=False):
                break


def _find_room(ax: Axes, at: tuple[float, float], taken: list[Bbox]) -> float:
    """The nearest x beside a point's own where its marker covers no other; its box is taken."""
    half = MARKER / 72 * ax.figure.dpi / 2
    x, y = ax.transData.transform(at)
    for step in range(60):
        shift = (step + 1) // 2 * (1 if step % 2 else -1) * half
        box = Bbox([[x + shift - half, y - half], [x + shift + half, y + half]])
        if not any(box.overlaps(other) for other in taken):
            break
    taken.append(box)
    return float(ax.transData.inverted().transform((x + shift, y))[0])
