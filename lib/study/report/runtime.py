"""What tying and pruning buy at run time, drawn from results/benchmarks/runtime.csv."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ffmerge.catalogue import Look
from study.report.style import BASE, MARKER, WIDTH, find_look, finish

ROWS = {  # column: what it is
    "parameters": "parameters",
    "state_bytes": "weights, gradients, Adam",
    "tuning_peak_bytes": "peak memory, tuning",
    "inference_peak_bytes": "peak memory, inference",
    "moved_bytes": "bytes moved, off-loaded",
    "largest_batch": "largest batch in the budget",
    "throughput_ratio": "tokens/s at that batch",
}


def find_looks() -> dict[str, Look]:
    """How each variant of the table is drawn: tied filled, untied hollow."""
    permute = find_look("permute")
    return {
        "permute": permute | {"label": "a third merged, tied"},
        "permute, untied": permute | {"label": "the same weights, untied", "marker": "s"},
        "neurons: OBS": find_look("neurons_obs_refit") | {"label": "a third of the neurons pruned"},
    }


def plot_runtime(table: pd.DataFrame) -> Figure:
    """One panel a model: every quantity in percent of the uncompressed model's.

    Args:
        table: model, variant ("uncompressed" and those of `find_looks`), and the columns of `ROWS`.
    """
    models, size = list(dict.fromkeys(table.model)), (WIDTH, 3.8)
    figure, axes = plt.subplots(1, len(models), figsize=size, sharex=True, sharey=True)
    axes = list(np.atleast_1d(axes))
    for ax, model in zip(axes, models, strict=True):
        part = table[table.model == model].set_index("variant")
        percent = 100 * part[list(ROWS)] / part.loc["uncompressed", list(ROWS)]
        for place, (variant, look) in enumerate(find_looks().items()):
            fill = "white" if "untied" in variant else look["color"]
            style = {"color": look["color"], "mfc": fill, "ms": MARKER, "label": look["label"]}
            heights = np.arange(len(ROWS)) + 0.22 * (place - 1)  # equal ones hide nothing
            ax.plot(percent.loc[variant], heights, look["marker"], ls="none", **style)
        ax.axvline(100, color=BASE["color"], ls="--", lw=1.2, zorder=1, label=BASE["label"])
        ax.set(title=model, ylim=(len(ROWS) - 0.5, -0.5))
        ax.set_yticks(range(len(ROWS)), list(ROWS.values()))
        ax.margins(x=0.12)
    axes[len(axes) // 2].set_xlabel("% of the uncompressed model")
    return finish(figure, axes, columns=2)
