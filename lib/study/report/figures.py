"""The paper's figures, from results.csv and its kin; nothing is computed but means and spreads.

Each function draws one figure of one model, or returns None where there is nothing to draw.
"""

from functools import partial

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.config import Params
from study.metrics import Metric
from study.report.choices import MERGES, find_variant, list_ratios
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
    TUNED,
    draw_points,
    draw_references,
    find_look,
    find_range,
    finish,
    make_panels,
    print_removed,
    scale_axis,
    write_beside,
)


def plot_removed(
    results: pd.DataFrame, paper: pd.DataFrame, params: Params, model: str
) -> Figure | None:
    """Figure 2: the metric against FF sublayers removed, vanilla and permute, after tuning.

    The first panel leaves out what removes most and would hide the rest; the last is the paper's
    own model.
    """
    rows, entry = select_metric(results, model), params.model(model)
    table = _find_merges(summarise(rows), params, model)
    if table.empty:
        return None
    metric, reference = read_metric(rows), find_reference(rows, model, params)
    counts, layers = sorted(table.removed.unique()), sum(entry.layers.values())
    steps = [counts[-2], counts[-1]] if len(counts) > 2 else [counts[-1]]
    panels = [(f"up to {n} of {layers} removed", table, reference, n) for n in steps]
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
        draw_points(ax, x, y, [float("nan"), *part["std"]], method)
    scale_axis(ax, table["mean"], reference.value)
    ax.set_xticks([0, *(int(n) for n in table.removed.unique())])
    ax.margins(y=0.1)
    draw_references(ax, reference)


def plot_reduction(results: pd.DataFrame, params: Params, model: str) -> Figure | None:
    """Figure 3: merging (permute) against dropping layers, over the parameters that each saves."""
    rows = select_metric(results, model)
    ratios = ("sixth", "third", "half")
    wanted = [find_variant(params, model, m, r) for m in ("permute", "drop") for r in ratios]
    rows = rows[rows.variant.isin(wanted) | (rows.method == "base")]
    metric, reference = read_metric(rows), find_reference(rows, model, params)
    tables = [summarise(rows[rows.method != "base"], phase) for phase in ("merged", "tuned")]
    if tables[0].empty and tables[1].empty:
        return None
    figure, axes = make_panels(2, 3.2)
    for ax, table, tuned in zip(axes, tables, (False, True), strict=True):
        ax.margins(x=0.3, y=0.14)
        for method in ("permute", "drop"):
            part = table[table.method == method]
            saved = 100 * (1 - part.parameter_ratio)
            draw_points(ax, saved, part["mean"], part["std"], method, line="none")
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

    A window that would hide all others stands at the edge, with its score.
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
    gone: dict[int, int] = {}  # how many are noted at a place already
    for method, part in rows.groupby("method", sort=False):
        x = [names.index(name) for name in part.layers]
        shown = part.value.where(part.value.between(low, high))
        draw_points(ax, x, shown, [float("nan")] * len(x), method)
        for xi, value in zip(x, part.value, strict=True):
            if not low <= value <= high:
                _note_clipped(ax, xi, value, metric, method, gone)
    room = 0.08 * (high - low)
    ax.set_ylim(low - room, high + room)
    ax.axhline(base, color=BASE["color"], ls="--", lw=1.4, zorder=1, label=BASE["label"])
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.set_xticks(range(len(names)), names, rotation=0 if len(names) < 9 else 90)
    ax.set_xlabel("merged window (first-last layer)")


def plot_likeness(likeness: pd.DataFrame, model: str) -> Figure | None:
    """Figures 5 and 6: CKA between all pairs of sublayers, FF and attention outputs."""
    kinds = (("ff", "FF outputs (Figure 5)"), ("attention", "attention outputs (Figure 6)"))
    if likeness.empty:
        return None
    figure, axes = make_panels(2, 3.5)
    for ax, (kind, title) in zip(axes, kinds, strict=True):
        _draw_likeness(ax, likeness[likeness.kind == kind])
        ax.set_title(title)
    return finish(figure, axes, model)


def _draw_likeness(ax: Axes, pairs: pd.DataFrame) -> None:
    stacks = list(dict.fromkeys(pairs["stack"]))
    name = "{}" if len(stacks) == 1 else "{1:.3} {0}"
    a, b = (
        [name.format(i, s) for i, s in zip(pairs[c], pairs["stack"], strict=True)] for c in "ab"
    )
    order = list(dict.fromkeys(a))
    wide = pairs.assign(a=a, b=b).pivot(index="a", columns="b", values="cka").loc[order, order]
    sns.heatmap(
        wide,
        vmin=0,
        vmax=1,
        cmap="viridis",
        square=True,
        ax=ax,
        cbar_kws={"label": "linear CKA", "shrink": 0.8},
        xticklabels=order,
        yticklabels=order,
    )
    ax.tick_params(length=0, rotation=0)
    ax.tick_params(axis="x", rotation=90 if len(stacks) > 1 else 0)
    ax.set(xlabel="layer", ylabel="layer")
    ax.grid(False)


def plot_curves(curves: pd.DataFrame, metric: Metric, params: Params, model: str) -> Figure | None:
    """Learning curves of recovery fine-tuning: mean over seeds, the band is one deviation."""
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
    for method, part in curves.groupby("method", sort=False):
        means = part.groupby("step").value.agg(["mean", "std"])
        nothing = [float("nan")] * len(means)
        label = {"label": TUNED} if method == "base" else {}
        draw_points(ax, means.index, means["mean"], nothing, method, ms=4, **label)
        band = partial(ax.fill_between, color=find_look(method)["color"], alpha=0.15, lw=0)
        band(means.index, means["mean"] - means["std"], means["mean"] + means["std"])
    if base is not None:
        scale_axis(ax, curves.value, base)
        ax.axhline(base, color=BASE["color"], ls="--", lw=1.4, zorder=1, label=BASE["label"])
    ax.set_xticks(sorted(curves.step.unique()))
    ax.set_xlabel("step of recovery fine-tuning")


def _note_clipped(
    ax: Axes, x: int, value: float, metric: Metric, method: str, gone: dict[int, int]
) -> None:
    """A value beyond the axis: its number at the edge, with an arrow that points to it."""
    down = metric.higher_is_better
    line = gone[x] = gone.get(x, -1) + 1
    text = f"{'↓' if down else '↑'} {value:,.0f}" if value >= 100 else f"↓ {value:.1f}"
    ax.annotate(
        text,
        (x, 0 if down else 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, (4 + 11 * line) * (1 if down else -1)),
        textcoords="offset points",
        ha="center",
        va="bottom" if down else "top",
        fontsize=8,
        color=find_look(method)["color"],
    )
