"""One style for everything that is drawn: colours, widths, references, scales."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike

from ffmerge.catalogue import Look, describe_method
from study.metrics import Metric
from study.report.results import Reference

# Methods bring their own look: Okabe and Ito's colours, which colour-blind readers can tell apart;
# markers differ as well.
BASE: Look = {"label": "uncompressed", "color": "#555555", "marker": "D"}
TUNED: Look = {"label": "uncompressed, tuned alike", "color": BASE["color"], "marker": "P"}
MARKER = 5.5  # points
MANY = 16  # entries, beyond which a legend is set smaller
WIDTH = 8.0  # inches; pages show a figure at 100 pixels an inch, so that 8 pt are legible
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "font.family": "DejaVu Sans",
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "ffmerge",
    "svg.fonttype": "none",
    "figure.dpi": 100,
    "savefig.dpi": 200,
}


def use_style() -> None:
    """Set the one style for everything that is drawn from now on."""
    plt.rcParams.update(STYLE)


def find_look(method: str, tuned: bool = False) -> Look:
    """Label, colour and marker of a method, as its own file says; of the base, ours.

    Args:
        method: its name, or "base".
        tuned: whether the base was tuned alike, which looks different.
    """
    if method == "base":
        return TUNED if tuned else BASE
    return describe_method(method).look


def make_panels(n: int, height: float) -> tuple[Figure, list[Axes]]:
    """A row of panels, a third or half of a page wide each: a lone one is not stretched.

    Args:
        n: how many.
        height: of the figure, in inches.
    """
    width = WIDTH if n > 1 else WIDTH / 2
    figure, axes = plt.subplots(1, n, figsize=(width, height), squeeze=False)
    return figure, list(axes.flat)


def finish(figure: Figure, axes: list[Axes], name: str = "", columns: int | None = None) -> Figure:
    """The model's name above all panels, one legend below; scales are named where they differ.

    Args:
        figure: all of it is drawn but for labels.
        axes: its panels.
        name: of the model, where there is one.
        columns: of the legend, if not as many as fit short labels.

    Returns:
        The figure, laid out; bars that a marker hides but for their ends are left out.
    """
    if name:
        figure.suptitle(name, x=0.005, ha="left", fontsize=10, fontweight="bold")
    scales = {"log": "log scale", "linear": "linear scale"}
    if any(ax.get_yscale() == "log" for ax in axes):
        for ax in axes:
            ax.set_ylabel(f"{ax.get_ylabel()}\n{scales[ax.get_yscale()]}")
    found = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        columns = columns or min(len(found), max(1, int(figure.get_figwidth() / 1.9)))
        place = {"loc": "outside lower center", "ncols": columns}
        small = {"fontsize": 8, "labelspacing": 0.25} if len(found) > MANY else {}
        legend = figure.legend(found.values(), found, **place, **small)
        while legend.get_window_extent().width > figure.bbox.width and place["ncols"] > 1:
            legend.remove()  # its labels are too long for so many columns
            place["ncols"] -= 1
            legend = figure.legend(found.values(), found, **place, **small)
    figure.draw_without_rendering()  # the layout is final
    for ax in axes:
        _leave_out_short_bars(ax)
    return figure


def _leave_out_short_bars(ax: Axes) -> None:
    scale = 72 / ax.figure.dpi
    for container in (c for c in ax.containers if isinstance(c, ErrorbarContainer)):
        _, caps, (bars,) = container.lines
        segments = bars.get_segments()
        heights = [np.ptp(ax.transData.transform(ends)[:, 1]) * scale for ends in segments]
        shown = np.array(heights) > MARKER
        bars.set_segments([ends for ends, long in zip(segments, shown, strict=True) if long])
        for cap in caps:
            cap.set_data(cap.get_xdata()[shown], cap.get_ydata()[shown])


def draw_references(ax: Axes, reference: Reference, tuned: bool = True) -> None:
    """The uncompressed model, dashed, and tuned alike, dotted: each where it can be seen.

    Args:
        ax: with everything else on it.
        reference: one of the two may be missing.
        tuned: whether the other states are tuned, so that the tuned one may be compared with them.
    """
    if tuned and reference.tuned is not None:
        _draw_across(ax, reference.tuned, TUNED["label"], ":")
    if reference.untuned is None:
        return
    if tuned and not reference.taught:  # far away: it was never taught the task
        label = f"{BASE['label']}: {reference.untuned:.1f}, off the axis"
        ax.plot([], [], "--", color=BASE["color"], label=label)
    else:
        _draw_across(ax, reference.untuned, BASE["label"], "--")


def scale_axis(ax: Axes, values: pd.Series, base: float) -> None:
    """Make the y axis logarithmic where a ruined model would hide the rest.

    Args:
        ax: the panel.
        values: all that it shows.
        base: the uncompressed model's, beside which others are ruined.
    """
    if values.max() > 5 * base:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        ax.yaxis.set_minor_formatter(NullFormatter())


def find_range(values: pd.Series, metric: Metric) -> tuple[float, float]:
    """The range to show, without a few bad values (a quarter at most) that would hide the rest.

    They are left out where the others then span less than a third of what all span.

    Args:
        values: all that there are.
        metric: which of them are bad.

    Returns:
        The lowest and the highest that are shown.
    """
    worst_first = values.sort_values(ascending=metric.higher_is_better)
    whole = values.max() - values.min()
    for n in range(len(values) // 4 + 1):
        rest = worst_first.iloc[n:]
        if n == 0 or rest.max() - rest.min() < whole / 3:
            shown = rest
            if n:
                break
    return float(shown.min()), float(shown.max())


def draw_points(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    std: ArrayLike,
    look: Look,
    line: str = "-",
    **kwargs: Any,
) -> None:
    """Means, with bars of one standard deviation where there are several seeds.

    Args:
        ax: the panel.
        x, y: of each point.
        std: NaN where there is no bar.
        look: of the method.
        line: matplotlib's word for what joins them.
        kwargs: matplotlib's, for `Axes.plot`.
    """
    x, y, std = (np.asarray(values, float) for values in (x, y, std))
    settings = {"marker": look["marker"], "ms": MARKER, "lw": 1.6, "label": look["label"]}
    ax.plot(x, y, ls=line, color=look["color"], **(settings | kwargs))
    some = np.isfinite(std)
    if some.any():  # below the markers
        ax.errorbar(
            x[some],
            y[some],
            std[some],
            fmt="none",
            color=look["color"],
            capsize=2,
            lw=1.2,
            zorder=1,
        )


def _draw_across(ax: Axes, value: float, label: str, line: str) -> None:
    ax.axhline(value, color=BASE["color"], ls=line, lw=1.4, zorder=1, label=label)
    ax.update_datalim([(0, value)], updatex=False)  # or the axis leaves no room for it
    ax.autoscale_view(scalex=False)
