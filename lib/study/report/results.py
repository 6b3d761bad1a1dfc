"""Results of every model, read for drawing: results.csv and its kin, the paper's numbers beside."""

from pathlib import Path

import pandas as pd

from study.config import Params
from study.records import COLUMNS


def collect_results(root: Path, params: Params) -> pd.DataFrame:
    """results.csv: the rows of every variant of every model to run.

    Raises:
        FileNotFoundError: a variant has not been evaluated.
    """
    parts = []
    for model in params.running:
        for variant in ("base", *params.variants_of(model)):
            path = root / "results" / "models" / model / "evals" / f"{variant}.csv"
            if not path.exists():
                raise FileNotFoundError(f"{path} is missing; `make repro` evaluates {variant}")
            parts.append(pd.read_csv(path, dtype={"removed": str}))
    return pd.concat(parts, ignore_index=True)[COLUMNS].astype({"seed": "Int64"})


def select_metric(
    results: pd.DataFrame, model: str, metric: str | None = None, int8: bool = False
) -> pd.DataFrame:
    """The rows of one model and one metric.

    Args:
        results: results.csv.
        model: its name.
        metric: its name; without one, the first, which models are selected by.
        int8: the rows in 8 bits, instead of all others.
    """
    part = results[results.model == model]
    part = part[part.metric == (metric or part.metric.iloc[0])]
    return part[(part.precision == "int8") == int8]


def summarise(results: pd.DataFrame, phase: str = "tuned") -> pd.DataFrame:
    """Mean, standard deviation and number of seeds of every variant in one phase.

    Args:
        results: results.csv, one metric.
        phase: "base", "merged" or "tuned".

    Returns:
        One row per variant, indexed by it: mean, std (0 for one seed), seeds, and its labels.
    """
    part = results[results.phase == phase]
    grouped = part.groupby("variant", sort=False)
    table = grouped.value.agg(["mean", "std", "count"]).rename(columns={"count": "seeds"})
    table["std"] = table["std"].fillna(0.0)
    labels = ["method", "removed", "window", "parameter_ratio", "bytes", "precision"]
    return table.join(grouped[labels].first())


def uncompressed(part: pd.DataFrame) -> float:
    """The uncompressed model's score on one metric, which everything is compared with.

    It is the untouched base; where adapters teach a new task (4-bit weights), the base tuned alike.
    """
    if (part.precision == "nf4").any():
        return float(summarise(part).loc["base-tuned", "mean"])
    return float(summarise(part, "base").loc["base", "mean"])


def is_lower_better(metric: str) -> bool:
    """Whether a smaller value is the better one."""
    return metric.startswith("perplexity")


def retained(value, base: float, metric: str):
    """How much of the base's quality is left, in percent: value / base, or base / perplexity."""
    return 100 * base / value if is_lower_better(metric) else 100 * value / base


def select_paper(paper: pd.DataFrame, model: str | None, table: int) -> pd.DataFrame:
    """What one table of the paper says of one of its models; no rows if it says nothing."""
    return paper[(paper.model == model) & (paper.table == table)]


def paper_curve(paper: pd.DataFrame, name: str | None) -> pd.DataFrame | None:
    """The paper's Table 10 of one of its models, in the form of `summarise`; None without one."""
    part = select_paper(paper, name, 10)
    if part.empty:
        return None
    methods = part.variant.str.split("-").str[0]
    table = part.assign(method=methods, mean=part.value, std=0.0)
    table.attrs["base"] = float(part[methods == "base"].value.iloc[0])  # GPT-2's is tuned alike
    return table


def collect_curves(folder: Path, model: str, params: Params) -> pd.DataFrame:
    """The learning curves of a model's comparisons: variant, method, seed, step, …, metric."""
    parts = []
    for variant in params.experiments_of(model).comparisons:
        for seed in params.seeds_of(model, variant):
            curve = pd.read_csv(folder / "curves" / f"{variant}-{seed}.csv")
            method = params.recipes[variant].method
            parts.append(curve.assign(variant=variant, method=method, seed=seed))
    curves = pd.concat(parts, ignore_index=True)
    metric = next(c for c in curves if c not in ("step", "loss", "learning_rate"))
    return curves[["variant", "method", "seed", "step", "loss", metric]]


def base_while_tuning(curves: pd.DataFrame) -> float | None:
    """The base model's score before its own tuning, in the precision of tuning (bfloat16, say)."""
    start = curves[(curves.method == "base") & (curves.step == 0)]
    return None if start.empty else float(start.iloc[0, -1])


def read_windows(folder: Path) -> pd.DataFrame:
    """windows.csv of a model; its last column is the metric."""
    return pd.read_csv(folder / "windows.csv", dtype={"removed": str})


def base_on_validation(folder: Path) -> float:
    """The uncompressed model's score on the data that the windows were scored on."""
    windows = read_windows(folder)
    return float(windows[windows.method == "base"].iloc[0, -1])


def sizes_and_quality(results: pd.DataFrame, model: str) -> pd.DataFrame:
    """Every variant of a model after tuning: its bytes and its quality, in percent of the base's.

    Returns:
        variant, method, precision, size, kept.
    """
    parts = []
    for int8 in (False, True):
        part = select_metric(results, model, int8=int8)
        parts += [summarise(part, phase) for phase in ("base", "tuned")]
    mine = select_metric(results, model)
    table = pd.concat(parts).rename_axis("variant").reset_index()
    table["size"] = 100 * table.bytes / parts[0].loc["base", "bytes"]
    table["kept"] = retained(table["mean"], uncompressed(mine), mine.metric.iloc[0])
    if (mine.precision == "nf4").any():  # untouched, it was never taught the task
        table = table[table.precision == "nf4"]
    return table[["variant", "method", "precision", "size", "kept"]]
