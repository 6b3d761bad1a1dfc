"""Real models beside those that are trained here: how alike their sublayers are, what they read.

What a model that was trained here in minutes forgives, a pretrained one may not.
"""

from itertools import cycle, pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from study.config import Params
from study.report.choices import list_main
from study.report.labels import find_box, write_apart
from study.report.results import find_file, read_metric
from study.report.style import WIDTH, find_look, finish

# Of models, not of methods: Paul Tol's muted colours for those trained here; red, orange: others'.
TRAINED = ("#88CCEE", "#44AA99", "#999933", "#332288", "#AA4499")
OTHERS = ("#CC3311", "#EE7733")


def plot_alignments(roots: list[Path], params: Params, models: list[str]) -> Figure | None:
    """How alike matched neurons are, before and after alignment, by how far sublayers lie apart.

    The line is the mean over pairs, the band from the least to the most alike pair.

    Args:
        roots: what `list_roots` returned.
        params: which models are trained here.
        models: their names.
    """
    files = {model: find_file(roots, model, "alignment.csv") for model in models}
    tables = {model: pd.read_csv(path) for model, path in files.items() if path}
    if not tables:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.4), sharey=True)
    trained, others = cycle(TRAINED), cycle(OTHERS)
    colors = {
        model: next(trained if params.model(model).base.is_trained_here else others)
        for model in tables
    }
    lines: dict[str, list[tuple[int, float]]] = {}
    for ax, column in zip(axes, ("before", "after"), strict=True):
        for model, table in tables.items():
            color = colors[model]
            apart = table.b - table.a
            by_distance = table[column].groupby(apart).agg(["min", "mean", "max"])
            width = 2.4 if color in OTHERS else 1.4
            ax.plot(by_distance.index, by_distance["mean"], color=color, lw=width)
            ax.fill_between(
                by_distance.index, by_distance["min"], by_distance["max"], color=color, alpha=0.12
            )
            lines[model] = list(by_distance["mean"].items())  # those after alignment in the end
        ax.set(title=f"{column} alignment", xlabel="layers between the two sublayers")
    axes[0].set_ylabel("mean correlation of matched neurons")
    furthest = max((table.b - table.a).max() for table in tables.values())
    for ax, room in zip(axes, (1, 1.4), strict=True):  # for the names
        ax.set_xlim(0.5, room * furthest + 0.5)
        ax.set_xticks(range(1, furthest + 1, 2))
    finish(figure, list(axes))
    taken = [find_box(axes[1], *ends, 2) for line in lines.values() for ends in pairwise(line)]
    for model, line in lines.items():
        is_short = len(line) < furthest / 2  # ends among the others; it is named where it starts
        at = line[0] if is_short else line[-1]
        write_apart(axes[1], model, at, colors[model], taken, below=not is_short)
    return figure


def table_readings(results: pd.DataFrame, params: Params, model: str) -> pd.DataFrame:
    """What every main variant of a model reads, before and after tuning: its task and `readings`.

    Args:
        results: results.csv.
        params: which variants and readings there are.
        model: its name.

    Returns:
        One row per variant and state; empty of a model without readings.
    """
    readings = params.model(model).readings
    mine = results[(results.model == model) & (results.precision == "float32")]
    own = mine.metric.iloc[0] if len(mine) else ""
    read = [m for m in mine.metric.unique() if m.rpartition(" on ")[2] in readings]
    metrics = [own, *(m for m in read if "window means" not in m)]
    whole = [v for v in params.variants_of(model) if params.recipe(v).method == "base"]
    names = dict.fromkeys([*whole, *list_main(params, model)])
    rows = []
    for name in names if readings else ():
        for phase, part in mine[mine.variant == name].groupby("phase", sort=False):
            values = part.groupby("metric").value.mean()
            first = part.iloc[0]
            look = find_look(first.method, tuned=phase == "tuned")
            rows.append(
                {
                    "Variant": name,
                    "Method": look["label"],
                    "Parameters (%)": f"{100 * first.parameter_ratio:.1f}",
                    "FLOPs (%)": _percent(first.flops, mine),
                    "State": "tuned" if phase == "tuned" else "untuned",
                }
                | {_head(mine, metric): f"{values[metric]:,.1f}" for metric in metrics}
            )
    return pd.DataFrame(rows)


def _percent(flops: float, rows: pd.DataFrame) -> str:
    return f"{100 * flops / rows[rows.variant == 'base'].flops.iloc[0]:.1f}"


def _head(rows: pd.DataFrame, metric: str) -> str:
    arrow = "↑" if read_metric(rows[rows.metric == metric]).higher_is_better else "↓"
    return f"{metric} {arrow}"
