"""Every figure of the paper, from results.csv and its kin; one style, one colour per method.

Each function draws one idea on the axes that it is given, from tidy data. Nothing is computed here
but means and spreads, and no number is typed.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

# Okabe and Ito's colours, which colour-blind readers can tell apart; markers differ as well.
COLORS = {"base": "#555555", "permute": "#0072B2", "vanilla": "#D55E00", "drop": "#009E73"}
MARKERS = {"base": "D", "permute": "o", "vanilla": "s", "drop": "^"}
LABELS = {"accuracy": "accuracy (%)", "perplexity": "perplexity per token"}  # with their units
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "font.family": "DejaVu Sans",
    "svg.hashsalt": "ffmerge",
    "svg.fonttype": "none",
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "savefig.bbox": "tight",
}


def use_style() -> None:
    """Set the one style for everything that is drawn from now on."""
    plt.rcParams.update(STYLE)


def save_figure(figure: Figure, folder: Path, name: str, caption: str, note: str = "") -> str:
    """Write a figure as SVG and PNG, byte for byte the same for the same data.

    Returns:
        Markdown that shows it under its caption and note, for a page in the same folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    return f"**{caption}** ([svg]({name}.svg))\n{note}\n\n![{caption}]({name}.png)\n"


def label_metric(metric: str) -> str:
    """A metric's name with its unit, for an axis or a column."""
    return LABELS.get(metric, metric)


def draw_baseline(ax: Axes, value: float, below: bool = False, name: str = "uncompressed") -> None:
    """The uncompressed model: a dashed line across, labelled directly.

    Args:
        ax: where.
        value: its score.
        below: label it below the line, where all others are above.
        name: what it is called.
    """
    ax.axhline(value, color=COLORS["base"], ls="--", lw=1.2, zorder=1)
    ax.update_datalim([(0, value)], updatex=False)  # or the axis leaves no room for the label
    ax.autoscale_view(scalex=False)
    ax.annotate(
        f"{name} {value:.4g}",
        (1, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, -3 if below else 3),
        textcoords="offset points",
        ha="right",
        va="top" if below else "bottom",
        fontsize=8,
        color=COLORS["base"],
    )


def draw_removed(ax: Axes, table: pd.DataFrame, baseline: float, most: int | None = None) -> None:
    """Figure 2: the metric against FF sublayers removed, vanilla and permute.

    Args:
        table: one row per variant: method, removed, mean, std.
        baseline: the uncompressed model's value.
        most: leave out what removes more.
    """
    table = table[table.method.isin(["vanilla", "permute"])].astype({"removed": int})
    table = table[table.removed <= (most or table.removed.max())].sort_values("removed")
    for method, part in table.groupby("method", sort=False):
        x, y = [0, *part.removed], [baseline, *part["mean"]]
        _draw_line(ax, x, y, [0, *part["std"]], method)
        ax.annotate(
            method,
            (x[-1], y[-1]),
            xytext=(9, 2 if method == "permute" else -8),
            textcoords="offset points",
            color=COLORS[method],
            fontsize=9,
            fontweight="bold",
        )
    _compare_with(ax, table["mean"], baseline)
    ax.set_xlabel("FF sublayers removed")
    ax.set_xticks([0, *table.removed.unique()])
    ax.set_xlim(right=1.4 * table.removed.max())


def draw_reduction(ax: Axes, table: pd.DataFrame, baseline: float) -> None:
    """Figure 3: merging (permute) against dropping layers, over parameter reduction.

    Args:
        table: one row per variant: method, removed, parameter_ratio, mean, std.
        baseline: the uncompressed model's value.
    """
    worse_is_more = table["mean"].mean() > baseline
    for method, unit, name in (("permute", " FFs", "merge (permute)"), ("drop", "", "drop layers")):
        part = table[table.method == method].sort_values("parameter_ratio", ascending=False)
        if part.empty:
            continue
        x = 100 * (1 - part.parameter_ratio)
        _draw_line(ax, x, part["mean"], part["std"], method, name)
        for xi, yi, removed in zip(x, part["mean"], part.removed, strict=True):
            ax.annotate(
                f"{removed}{unit}".replace("L", " layers"),
                (xi, yi),
                xytext=(6, -11 if worse_is_more else 5),
                textcoords="offset points",
                fontsize=8,
                color=COLORS[method],
            )
    ax.legend(loc="upper left" if worse_is_more else "lower left")
    draw_baseline(ax, baseline, below=worse_is_more)
    ax.set_xlabel("parameters removed (%)")
    ax.margins(x=0.22, y=0.25)


def draw_windows(ax: Axes, windows: pd.DataFrame, baseline: float, metric: str) -> None:
    """Figure 4: the score of every window before tuning.

    Args:
        windows: windows.csv of one model and count: method, window, the metric.
        baseline: the uncompressed model's value on the same data.
        metric: the name of the metric's column.
    """
    for method in ("vanilla", "permute"):
        part = windows[windows.method == method]
        ax.plot(
            range(len(part)),
            part[metric],
            marker=MARKERS[method],
            ls="-" if len(part) > 1 else "",
            color=COLORS[method],
            label=method,
            ms=5,
            lw=1.5,
        )
        ax.set_xticks(range(len(part)), part.window, rotation=45 if len(part) > 6 else 0)
    _compare_with(ax, windows[metric], baseline)
    ax.set_xlabel("merged window")


def draw_cka(ax: Axes, cka: pd.DataFrame, title: str) -> None:
    """Figures 5 and 6: CKA between all pairs of sublayers.

    Args:
        cka: rows of cka.csv of one kind: a, b ("encoder 3"), cka.
        title: what is compared.
    """
    order = list(dict.fromkeys(cka.a))
    wide = cka.pivot(index="a", columns="b", values="cka").loc[order, order]
    stacks = {name.split()[0] for name in order}
    labels = [name.split()[-1] for name in order]
    if len(stacks) > 1:  # two blocks: an encoder and a decoder see different tokens
        labels = [f"{name[:3]} {i}" for name, i in zip(order, labels, strict=True)]
    sns.heatmap(
        wide,
        vmin=0,
        vmax=1,
        cmap="viridis",
        square=True,
        ax=ax,
        cbar_kws={"label": "CKA", "shrink": 0.8},
        xticklabels=labels,
        yticklabels=labels,
    )
    ax.tick_params(length=0, rotation=0)
    ax.tick_params(axis="x", rotation=90 if len(stacks) > 1 else 0)
    ax.set(title=title, xlabel="layer", ylabel="layer")
    ax.grid(False)


def draw_curves(ax: Axes, curves: pd.DataFrame, metric: str, baseline: float | None) -> None:
    """Learning curves of recovery fine-tuning: mean over seeds, the band is one deviation.

    Args:
        curves: variant, method, seed, step and the metric on validation data.
        metric: the name of the metric's column.
        baseline: the base model's value on the same data, if it is known.
    """
    for method, part in curves.dropna(subset=metric).groupby("method", sort=False):
        by_step = part.groupby("step")[metric].agg(["mean", "std"]).fillna(0)
        ax.plot(
            by_step.index,
            by_step["mean"],
            color=COLORS[method],
            marker=MARKERS[method],
            ms=4,
            lw=1.5,
            label="base, tuned alike" if method == "base" else method,
        )
        low, high = by_step["mean"] - by_step["std"], by_step["mean"] + by_step["std"]
        ax.fill_between(by_step.index, low, high, color=COLORS[method], alpha=0.15, lw=0)
    if baseline is not None:
        _compare_with(ax, curves[metric], baseline)
    ax.set_xlabel("fine-tuning step")


def draw_pareto(ax: Axes, table: pd.DataFrame, floor: float = 80.0) -> None:
    """Every variant of a model: bytes against quality kept, in percent of the base's.

    Args:
        table: variant, method, precision, size (% of the base's bytes), kept (% of its quality).
        floor: what keeps less is drawn here, with the number that it keeps.
    """
    table = table.assign(shown=table.kept.clip(lower=floor), small=table.precision == "int8")
    for (method, small), part in table.groupby(["method", "small"], sort=False):
        ax.plot(
            part["size"],
            part.shown,
            MARKERS[method],
            color=COLORS[method],
            mfc="white" if small else COLORS[method],
            ms=6,
            label=f"{method}, int8" if small else method,
        )
    for _, ruined in table[table.kept < floor].groupby(table["size"].round()):
        for i, row in enumerate(ruined.sort_values("kept").to_dict("records")):
            at = (row["size"], row["shown"])
            _note(ax, f"{row['kept']:.0f} ↓", at, COLORS[row["method"]], 9 * i - 3)
    best = table.sort_values(["size", "kept"], ascending=[True, False])
    front = best[(best.kept > best.kept.cummax().shift(fill_value=-np.inf)) & (best.kept > floor)]
    ax.step(front["size"], front.shown, where="post", color="#999999", lw=1, zorder=0)
    for row in front[(front.method != "base") & (front.kept < 100)].to_dict("records"):
        _note(ax, row["variant"], (row["size"], row["shown"]), COLORS[row["method"]], -11)
    draw_baseline(ax, 100.0, name="base")
    ax.set(xlabel="bytes (% of the base's in 32 bits)", ylabel="quality kept (%)")
    ax.margins(x=0.12, y=0.12)


def _note(ax: Axes, text: str, at: tuple[float, float], color: str, up: int) -> None:
    ax.annotate(
        text,
        at,
        xytext=(6, up),
        textcoords="offset points",
        fontsize=7,
        color=color,
    )


def _compare_with(ax: Axes, values: pd.Series, baseline: float) -> None:
    """The uncompressed model beside values; logarithmic where a ruined one would hide the rest."""
    if values.max() > 5 * baseline:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.margins(y=0.12)
    draw_baseline(ax, baseline, below=values.mean() > baseline)


def _draw_line(ax: Axes, x, y, error, method: str, name: str | None = None) -> None:
    x, y, error = (np.asarray(values, float) for values in (x, y, error))
    ax.plot(x, y, color=COLORS[method], marker=MARKERS[method], ms=5, lw=1.8, label=name or method)
    ax.errorbar(x, y, yerr=error, fmt="none", color=COLORS[method], capsize=3, lw=1.2)
