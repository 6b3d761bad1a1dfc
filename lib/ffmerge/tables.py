"""Every table of the paper beside ours, from results.csv and paper.csv; no number is typed."""

from pathlib import Path

import pandas as pd

from ffmerge.config import Params
from ffmerge.evaluation import COLUMNS
from ffmerge.figures import summarise


def collect_results(root: Path, params: Params) -> pd.DataFrame:
    """results.csv: the rows of every variant of every model in `run`.

    Raises:
        FileNotFoundError: a variant has not been evaluated.
    """
    parts = []
    for model in params.run:
        for variant in ("base", *params.comparisons, *params.ablations):
            path = root / "results" / "models" / model / "evals" / f"{variant}.csv"
            if not path.exists():
                raise FileNotFoundError(f"{path} is missing; `make repro` evaluates {variant}")
            parts.append(pd.read_csv(path, dtype={"removed": str}))
    return pd.concat(parts, ignore_index=True)[COLUMNS].astype({"seed": "Int64"})


def select_metric(results: pd.DataFrame, model: str) -> pd.DataFrame:
    """The rows of one model and its first metric, the one that models are selected by."""
    part = results[results.model == model]
    return part[part.metric == part.metric.iloc[0]]


def select_paper(paper: pd.DataFrame, model: str | None, table: int) -> pd.DataFrame:
    """What one table of the paper says of one of its models; no rows if it says nothing."""
    return paper[(paper.model == model) & (paper.table == table)]


def table_full(results: pd.DataFrame, paper: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Table 10: results before and after tuning at every count removed, the paper's beside ours."""
    rows = []
    for model in params.run:
        part, entry = select_metric(results, model), params.models[model]
        tuned, merged = summarise(part), summarise(part, "merged")
        base = summarise(part, "base")
        layers = sum(entry.layers.values())
        theirs = select_paper(paper, entry.paper, 10).set_index("variant")
        for variant in ("base", *params.comparisons):
            after = base if variant == "base" else tuned
            row = after.loc[variant]
            untuned = _number(base, "base") if row.method == "base" else _number(merged, variant)
            reduction = 100 * (1 - row.parameter_ratio)
            rows.append(
                {
                    "Model": model,
                    "Variant": variant,
                    "Window": row.window if isinstance(row.window, str) else "–",
                    "Removed": f"{row.removed}/{layers}",
                    "Parameters removed (%)": f"{reduction:.1f}",
                    f"{part.metric.iloc[0]} before tuning": untuned,
                    f"{part.metric.iloc[0]} after tuning": "–"
                    if variant == "base"
                    else _spread(row),
                    "of base (%)": f"{100 * row['mean'] / base.loc['base', 'mean']:.1f}",
                    "Paper": _theirs(theirs, variant),
                }
            )
    return pd.DataFrame(rows)


def table_ablation(
    results: pd.DataFrame,
    paper: pd.DataFrame,
    params: Params,
    number: int,
    names: dict[str, str],
) -> pd.DataFrame:
    """Tables 1 and 2: other windows, other anchors, at 1/3 removed, after tuning.

    Args:
        number: of the paper's table.
        names: variant to what the table calls it.
    """
    rows = []
    for model in params.run:
        part, entry = select_metric(results, model), params.models[model]
        tuned, merged = summarise(part), summarise(part, "merged")
        theirs = select_paper(paper, entry.paper, number).set_index("variant")
        for variant, name in names.items():
            if variant not in tuned.index:  # not among the variants to run
                continue
            rows.append(
                {
                    "Model": model,
                    "": name,
                    "Window": tuned.loc[variant, "window"],
                    "before tuning": _number(merged, variant),
                    "after tuning": _spread(tuned.loc[variant]),
                    "Seeds": int(tuned.loc[variant, "seeds"]),
                    "Paper": _theirs(theirs, variant),
                }
            )
    return pd.DataFrame(rows)


def table_data(paper: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Table 9: examples per split, ours and the paper's.

    The paper prints ImageNet's training set as 12,281,167; it has 1,281,167.
    """
    rows = []
    for model in params.run:
        entry = params.models[model]
        corpus = params.corpora.get(entry.data.corpus, {})
        rows.append({"Model": model, "Data": entry.data.path} | _counts(corpus))
        theirs = select_paper(paper, entry.paper, 9)
        if len(theirs):
            counts = dict(zip(theirs.metric, theirs.value.astype(int), strict=True))
            rows.append({"Model": entry.paper, "Data": theirs.variant.iloc[0]} | _counts(counts))
    return pd.DataFrame(rows)


def table_overview(full: pd.DataFrame) -> pd.DataFrame:
    """The README's table: what is left after a third and a half of the FF sublayers are merged."""
    wanted = [
        "base",
        "base-tuned",
        "vanilla-third",
        "permute-third",
        "vanilla-half",
        "permute-half",
    ]
    drops = [variant for variant in full.Variant.unique() if variant.startswith("drop")]
    return full[full.Variant.isin([*wanted, *drops])].drop(columns="Window")


def write_table(table: pd.DataFrame, folder: Path, name: str, title: str, notes: str = "") -> str:
    """Write a table as CSV and as Markdown, with its title and footnotes.

    Returns:
        The Markdown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / f"{name}.csv", index=False)
    body = table.to_markdown(index=False, disable_numparse=True)
    text = f"**{title}**\n\n{body}\n" + (f"\n{notes}\n" if notes else "")
    (folder / f"{name}.md").write_text(text)
    return text


def paper_curve(paper: pd.DataFrame, name: str | None) -> pd.DataFrame | None:
    """The paper's Table 10 of one of its models, in the form of `summarise`; None without one."""
    part = select_paper(paper, name, 10)
    if part.empty:
        return None
    methods = part.variant.str.split("-").str[0]
    table = part.assign(method=methods, mean=part.value, std=0.0)
    table.attrs["base"] = float(part[part.variant == "base"].value.iloc[0])
    return table


def collect_curves(folder: Path, params: Params) -> pd.DataFrame:
    """The learning curves of a model's comparisons: variant, method, seed, step, …, metric."""
    parts = []
    for variant in params.comparisons:
        for seed in params.seeds_of(variant):
            curve = pd.read_csv(folder / "curves" / f"{variant}-{seed}.csv")
            method = params.recipes[variant].method
            parts.append(curve.assign(variant=variant, method=method, seed=seed))
    curves = pd.concat(parts, ignore_index=True)
    metric = next(c for c in curves if c not in ("step", "loss", "learning_rate"))
    return curves[["variant", "method", "seed", "step", "loss", metric]]


def read_windows(folder: Path) -> pd.DataFrame:
    """windows.csv of a model; its last column is the metric."""
    return pd.read_csv(folder / "windows.csv", dtype={"removed": str})


def base_on_validation(folder: Path) -> float:
    """The uncompressed model's score on the data that the windows were scored on."""
    windows = read_windows(folder)
    return float(windows[windows.method == "base"].iloc[0, -1])


def base_while_tuning(curves: pd.DataFrame) -> float | None:
    """The base model's score before its own tuning, in the precision of tuning (bfloat16, say)."""
    start = curves[(curves.method == "base") & (curves.step == 0)]
    return None if start.empty else float(start.iloc[0, -1])


def _number(table: pd.DataFrame, variant: str) -> str:
    return f"{table.loc[variant, 'mean']:.2f}" if variant in table.index else "–"


def _spread(row: pd.Series) -> str:
    return f"{row['mean']:.2f} ± {row['std']:.2f}" if row.seeds > 1 else f"{row['mean']:.2f}"


def _theirs(table: pd.DataFrame, variant: str) -> str:
    return f"{table.loc[variant, 'value']:.1f}" if variant in table.index else "–"


def _counts(counts: dict) -> dict:
    return {
        split.capitalize(): f"{counts[split]:,}" if split in counts else "–"
        for split in ("train", "validation", "test")
    }
