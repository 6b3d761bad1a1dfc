"""The paper's figures, from results.csv and its kin; nothing is computed but means and spreads.

Each function draws one figure of one model, or returns None where there is nothing to draw.
"""

from collections import Counter
from functools import partial

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.config import Params
from study.metrics import Metric
from study.report.choices import MERGES, find_variant, list_ratios
from study.report.labels import note_clipped, print_removed, write_beside
from study.report.paper import trace_paper
from study.report.results import (
    Reference,
    find_reference,
    read_metric,
    select_metric,
    summarise,
)
from study.report.scores import find_base, find_start
from study.report.style import (
    BASE,
    MANY,
    draw_points,
    draw_references,
    find_look,
    find_range,
    finish,
    make_panels,
    scale_axis,
)

RUINED = 100  # times the base's score, beyond which a linear scale shows nothing; ours


def plot_removed(
    results: pd.DataFrame, paper: pd.DataFrame, params: Params, model: str
) -> Figure | None:
    """Figure 2: the metric against FF sublayers removed, vanilla and permute, after tuning.

    A model that is never tuned is shown as it was merged. The first panel leaves out what removes
    most and would hide the rest; the last is the paper's own model.

    Args:
        results: results.csv.
        paper: what `read_paper` returned.
        params: which variants there are.
        model: its name.
    """
    rows, entry = select_metric(results, model), params.model(model)
    phase, state = ("tuned", "") if entry.finetune else ("merged", ", not tuned")
    table = _find_merges(summarise(rows, phase), params, model)
    if table.empty:
        return None
    metric, reference = read_metric(rows), find_reference(rows, model, params)
    counts, layers = sorted(table.removed.unique()), sum(entry.layers.values())
    steps = [counts[-2], counts[-1]] if len(counts) > 2 else [counts[-1]]
    panels = [(f"up to {n} of {layers} removed{state}", table, reference, n) for n in steps]
    if traced := trace_paper(paper, entry.paper):
        theirs, base = traced
        panels.append((f"the paper's {entry.paper}", theirs, Reference(base, None), None))
    figure, axes = make_panels(len(panels), 3.0)
    for ax, (title, variants, baseline, most) in zip(axes, panels, strict=True):
        _draw_removed(ax, variants, baseline, metric, most)
        ax.set(title=title, xlabel="FF sublayers removed", ylabel=metric.label)
    return finish(figure, axes, model)


def _find_merges(table: pd.DataFrame, params: Params, model: str) -> pd.DataFrame:
    wanted = [find_variant(params, model, m, r) for m in MERGES for r in list_ratios(params, model)]
    return table[table.index.isin(wanted)]


def _draw_removed(
    ax: Axes, table: pd.DataFrame, reference: Reference, metric: Metric, most: float | None
) -> None:
    table = table[table.method.isin(MERGES)].sort_values("removed")
    table = table[table.removed <= (most or table.removed.max())]
    for method, part in table.groupby("method", sort=False):
        x, y = [0, *part.removed], [reference.value, *part["mean"]]
        draw_points(ax, x, y, [float("nan"), *part["std"]], find_look(method))
    scale_axis(ax, table["mean"], reference.value)
    ax.set_xticks([0, *(int(n) for n in table.removed.unique())])
    ax.margins(y=0.1)
    draw_references(ax, reference)


def plot_reduction(results: pd.DataFrame, params: Params, model: str) -> Figure | None:
    """Figure 3: merging (permute) against dropping layers, over the parameters that each saves.

    Args:
        results: results.csv.
        params: which variants there are.
        model: its name.
    """
    rows = select_metric(results, model)
    ratios = ("sixth", "third", "half")
    wanted = [find_variant(params, model, m, r) for m in ("permute", "drop") for r in ratios]
    rows = rows[rows.variant.isin(wanted) | (rows.method == "base")]
    metric, reference = read_metric(rows), find_reference(rows, model, params)
    tables = [summarise(rows[rows.method != "base"], phase) for phase in ("merged", "tuned")]
    if not {"permute", "drop"} <= set(rows.method):  # nothing to set one against
        return None
    tables = tables if len(tables[1]) else tables[:1]  # nothing is tuned
    figure, axes = make_panels(len(tables), 3.2)
    for ax, table, tuned in zip(axes, tables, (False, True), strict=False):
        ax.margins(x=0.3, y=0.14)
        for method in ("permute", "drop"):
            part = table[table.method == method]
            saved = 100 * (1 - part.parameter_ratio)
            draw_points(ax, saved, part["mean"], part["std"], find_look(method), line="none")
        draw_references(ax, reference, tuned)
        lines = [value for value in (reference.untuned, reference.tuned) if value is not None]
        _name_points(ax, table, lines)
        title = f"{'after' if tuned else 'before'} tuning"
        ax.set(title=title, xlabel="parameters removed (%)", ylabel=metric.label)
    return finish(figure, axes, model)


def _name_points(ax: Axes, table: pd.DataFrame, lines: list[float]) -> None:
    """What went, beside each point: away from its neighbour, and from lines across."""
    table = table.assign(saved=100 * (1 - table.parameter_ratio)).sort_values("saved")
    for i, row in enumerate(table.to_dict("records")):
        height = ax.transData.transform((0, row["mean"]))[1]
        near = [d for y in lines if abs(d := height - ax.transData.transform((0, y))[1]) < 10]
        up = 0 if not near else 8 if min(near, key=abs) > 0 else -8
        side, align = (-7, "right") if i % 2 == 0 else (7, "left")
        text, color = print_removed(row["removed"], row["kind"]), find_look(row["method"])["color"]
        at = (row["saved"], row["mean"])
        write_beside(ax, text, at, color, xytext=(side, up), ha=align)


def plot_windows(windows: pd.DataFrame, model: str, params: Params) -> Figure | None:
    """Figure 4: the score of every window before tuning, at each count that leaves a choice.

    A window that would hide all others stands at the edge, with its score; where most would, the
    scale is logarithmic.

    Args:
        windows: what `read_windows` returned.
        model: its name.
        params: which ratios there are.
    """
    ours = windows[windows.method.isin(MERGES)]
    sizes = ours.groupby("ratio").layers.nunique()
    ratios = [ratio for ratio in list_ratios(params, model) if sizes.get(ratio, 0) > 1]
    if not ratios:
        return None
    metric, base = read_metric(ours), find_base(windows)
    figure, axes = make_panels(len(ratios), 3.2)
    for ax, ratio in zip(axes, ratios, strict=True):
        part = ours[ours.ratio == ratio]
        _draw_windows(ax, part, metric, base)
        ax.set(title=f"{part.removed.iloc[0]} FFs removed", ylabel=metric.label)
    return finish(figure, axes, model)


def _draw_windows(ax: Axes, rows: pd.DataFrame, metric: Metric, base: float) -> None:
    names = list(dict.fromkeys(rows.layers))
    values = pd.concat([rows.value, pd.Series([base])], ignore_index=True)
    low, high = find_range(values, metric)
    if high > RUINED * base:
        low, high = values.min(), values.max()
        ax.set(yscale="log", ylim=(low / 2, high * 2))
    else:
        room = 0.08 * (high - low)
        ax.set_ylim(low - room, high + room)
    noted = Counter()  # how many are noted at a place already
    for method, part in rows.groupby("method", sort=False):
        x, look = [names.index(name) for name in part.layers], find_look(method)
        shown = part.value.where(part.value.between(low, high))
        draw_points(ax, x, shown, [float("nan")] * len(x), look)
        for point in zip(x, part.value, strict=True):
            if not low <= point[1] <= high:
                note_clipped(ax, point, look["color"], noted[point[0]])
                noted[point[0]] += 1
    ax.axhline(base, color=BASE["color"], ls="--", lw=1.4, zorder=1, label=BASE["label"])
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.set_xticks(range(len(names)), names, rotation=0 if len(names) < 9 else 90)
    ax.set_xlabel("merged window (first-last layer)")


def plot_similarity(similarity: pd.DataFrame, model: str) -> Figure | None:
    """Figures 5 and 6: CKA between all pairs of sublayers, FF and attention outputs.

    Args:
        similarity: what `read_similarity` returned.
        model: its name.
    """
    kinds = (("ff", "FF outputs (Figure 5)"), ("attention", "attention outputs (Figure 6)"))
    if similarity.empty:
        return None
    figure, axes = make_panels(2, 3.5)
    for ax, (kind, title) in zip(axes, kinds, strict=True):
        _draw_similarity(ax, similarity[similarity.kind == kind])
        ax.set_title(title)
    return finish(figure, axes, model)


def _draw_similarity(ax: Axes, pairs: pd.DataFrame) -> None:
    stacks = list(dict.fromkeys(pairs["stack"]))
    name = "{}" if len(stacks) == 1 else "{1:.3} {0}"
    a, b = (
        [name.format(i, s) for i, s in zip(pairs[c], pairs["stack"], strict=True)] for c in "ab"
    )
    order = list(dict.fromkeys(a))
    wide = pairs.assign(a=a, b=b).pivot(index="a", columns="b", values="cka").loc[order, order]
    every = 1 if len(order) <= MANY else 3
    ticks = [label if i % every == 0 else "" for i, label in enumerate(order)]
    sns.heatmap(
        wide,
        vmin=0,
        vmax=1,
        cmap="viridis",
        square=True,
        ax=ax,
        cbar_kws={"label": "linear CKA", "shrink": 0.8},
        xticklabels=ticks,
        yticklabels=ticks,
    )
    ax.tick_params(length=0, rotation=0)
    ax.tick_params(axis="x", rotation=90 if len(stacks) > 1 else 0)
    ax.set(xlabel="layer", ylabel="layer")
    ax.grid(False)


def plot_curves(curves: pd.DataFrame, metric: Metric, params: Params, model: str) -> Figure | None:
    """Learning curves of recovery fine-tuning: mean over seeds, the band is one deviation.

    Where a start would hide what tuning does, it stands at the edge, with its score.

    Args:
        curves: what `read_curves` returned.
        metric: of the results; curves of another one are labelled by its name alone.
        params: which ratios there are.
        model: its name.
    """
    ratios = [
        ratio
        for ratio in list_ratios(params, model)
        if ((curves.ratio == ratio) & curves.method.isin(MERGES)).any()
    ]
    if not ratios:
        return None
    metric = metric if metric.name == curves.metric.iloc[0] else Metric(curves.metric.iloc[0])
    figure, axes = make_panels(len(ratios), 3.0)
    base = find_start(curves) if params.model(model).downstream is None else None
    for ax, ratio in zip(axes, ratios, strict=True):
        mine = curves.method.isin(MERGES) & (curves.ratio == ratio)
        _draw_curves(ax, curves[mine | (curves.method == "base")], base)
        title = f"{params.model(model).removed[ratio]} FFs removed"
        ax.set(title=title, ylabel=metric.label)
    return finish(figure, axes, model)


def _draw_curves(ax: Axes, curves: pd.DataFrame, base: float | None) -> None:
    if base is not None:
        scale_axis(ax, curves.value, base)
        ax.axhline(base, color=BASE["color"], ls="--", lw=1.4, zorder=1, label=BASE["label"])
    low, high = _find_tuned_range(curves, base)
    if ax.get_yscale() == "linear":
        room = 0.08 * (high - low)
        ax.set_ylim(low - room, high + room)
    bottom, top = ax.get_ylim() if ax.get_yscale() == "linear" else (-np.inf, np.inf)
    gone = []
    for method, part in curves.groupby("method", sort=False):
        look = find_look(method, tuned=True)
        means = part.groupby("step").value.agg(["mean", "std"])
        shown = means[means["mean"].between(bottom, top)]
        draw_points(ax, shown.index, shown["mean"], [float("nan")] * len(shown), look, ms=4)
        band = partial(ax.fill_between, color=look["color"], alpha=0.15, lw=0)
        band(shown.index, shown["mean"] - shown["std"], shown["mean"] + shown["std"])
        gone += [(value, look["color"]) for value in means.drop(shown.index)["mean"]]
    for line, (value, color) in enumerate(sorted(gone, reverse=bool(gone) and gone[0][0] > high)):
        note_clipped(ax, (curves.step.min(), value), color, line, "left")
    steps = sorted(curves.step.unique())
    ax.set_xticks(steps)
    ax.set_xlim(steps[0] - 0.05 * steps[-1], steps[-1] * 1.05)
    ax.set_xlabel("step of recovery fine-tuning")


def _find_tuned_range(curves: pd.DataFrame, base: float | None) -> tuple[float, float]:
    """What is tuned, if that spans less than a third of what all spans, and else all."""
    known = [] if base is None else [base]
    values = pd.Series([*curves.value, *known])
    tuned = pd.Series([*curves.value[curves.step > curves.step.min()], *known])
    some = tuned if 3 * (tuned.max() - tuned.min()) < values.max() - values.min() else values
    return float(some.min()), float(some.max())
