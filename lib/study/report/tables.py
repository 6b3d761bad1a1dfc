"""Every table of the paper beside ours, from results.csv and paper.csv; no number is typed."""

from pathlib import Path

import pandas as pd

from study.config import Params
from study.report.results import (
    is_lower_better,
    retained,
    select_metric,
    select_paper,
    summarise,
    uncompressed,
)

HYPERPARAMETERS = {"GPT-2": 5, "ViT": 6, "OPUS-MT": 7, "OLMo-7B": 8}  # the paper's table numbers


def table_full(results: pd.DataFrame, paper: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Table 10: results before and after tuning at every count removed, the paper's beside ours."""
    rows = []
    for model in params.running:
        part, entry = select_metric(results, model), params.models[model]
        tuned, merged, base = (summarise(part, phase) for phase in ("tuned", "merged", "base"))
        metric, layers = part.metric.iloc[0], sum(entry.layers.values())
        theirs = select_paper(paper, entry.paper, 10).set_index("variant")
        for variant in ("base", *params.experiments_of(model).comparisons):
            row = (base if variant == "base" else tuned).loc[variant]
            untuned = _number(base, "base") if row.method == "base" else _number(merged, variant)
            kept = retained(row["mean"], uncompressed(part), metric)
            rows.append(
                {
                    "Model": model,
                    "Variant": variant,
                    "Window": _window(row),
                    "Removed": f"{row.removed}/{layers}",
                    "Parameters removed (%)": f"{100 * (1 - row.parameter_ratio):.1f}",
                    "Metric": metric,
                    "Before tuning": untuned,
                    "After tuning": "–" if variant == "base" else spread(row),
                    "Of base (%)": f"{kept:.1f}",
                    "Paper": _theirs(theirs, variant, 2 if is_lower_better(metric) else 1),
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
    for model in params.running:
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
                    "Metric": part.metric.iloc[0],
                    "Before tuning": _number(merged, variant),
                    "After tuning": spread(tuned.loc[variant]),
                    "Seeds": int(tuned.loc[variant, "seeds"]),
                    "Paper": _theirs(theirs, variant),
                }
            )
    return pd.DataFrame(rows)


def table_int8(results: pd.DataFrame, paper: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Table 3, and the head-to-head: int8 alone, merging alone, both; sizes are total bytes."""
    rows = []
    names = {"base": "uncompressed", "permute-third": "merge"}
    for model in params.run:
        theirs = select_paper(paper, params.models[model].paper, 3)
        whole = summarise(select_metric(results, model), "base").loc["base", "bytes"]
        for variant, name in names.items():
            for int8 in (False, True):
                part = select_metric(results, model, int8=int8)
                row = summarise(part, "base" if variant == "base" else "tuned").loc[variant]
                said = theirs[theirs.variant == variant + "-int8" * int8].set_index("metric")
                rows.append(
                    {
                        "Model": model,
                        "": name + " + int8" * int8,
                        "Metric": part.metric.iloc[0],
                        "Performance": spread(row),
                        "Bytes": f"{int(row.bytes):,}",
                        "Compression (%)": f"{100 * row.bytes / whole:.0f}",
                        "Paper: performance": _theirs(said, part.metric.iloc[0]),
                        "Paper: compression (%)": _theirs(said, "compression", 0),
                    }
                )
    return pd.DataFrame(rows)


def table_qlora(results: pd.DataFrame, paper: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Table 4: summaries after QLoRA, with the slots that are right and a baseline of no model."""
    rows = []
    for model in params.qlora.run:
        part = results[(results.model == model) & ~results.metric.str.startswith("notes")]
        theirs = select_paper(paper, params.models[model].paper, 4)
        order = {"first words": "first words", "base": "base, not tuned"}
        wanted = [(phase, "base", name) for phase, name in order.items()]
        comparisons = params.qlora.comparisons
        wanted += [("tuned", variant, variant) for variant in comparisons]
        for phase, variant, name in wanted:
            mine = part[(part.phase == phase) & (part.variant == variant)]
            scores = {
                metric: spread(summarise(mine[mine.metric == metric], phase).loc[variant])
                for metric in mine.metric.unique()
            }
            first = mine.iloc[0]
            removed = f"{100 * (1 - first.parameter_ratio):.1f}"
            said = theirs[theirs.variant == (variant if phase == "tuned" else None)]
            rows.append(
                {
                    "Model": model,
                    "": name,
                    "Window": _window(first),
                    "Parameters removed (%)": "–" if phase == "first words" else removed,
                }
                | scores
                | {
                    f"Paper: {metric}": _theirs(said.set_index("metric"), metric, 2)
                    for metric in theirs.metric.unique()
                }
            )
    return pd.DataFrame(rows)


def table_copying(results: pd.DataFrame) -> pd.DataFrame:
    """What the base of a summariser can already copy: notes exactly right, slot by slot."""
    notes = results[results.metric.str.startswith("notes")]
    wide = notes.assign(slot=notes.metric.str.removeprefix("notes: "))
    wide = wide.pivot(index="model", columns="slot", values="value").round(1)
    return wide.rename_axis(index="Model", columns=None).reset_index()


def table_hyperparameters(params: Params, name: str) -> pd.DataFrame:
    """Tables 5-8: the fine-tuning recipes of one of the paper's models, at both scales.

    Args:
        name: the paper's model, such as "GPT-2".
    """
    models = [model for model, entry in params.models.items() if entry.paper == name]
    recipes = {}
    for model in models:
        recipe = params.models[model].finetune.model_dump(exclude_none=True)
        adapters = {f"adapter {key}": value for key, value in recipe.pop("adapters", {}).items()}
        recipes[model] = {key.replace("_", " "): value for key, value in recipe.items()} | adapters
    table = pd.DataFrame(recipes, dtype=object).fillna("–")
    return table.rename_axis("Hyperparameter").reset_index()


def table_data(paper: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Table 9: examples per split, ours and the paper's.

    The paper prints ImageNet's training set as 12,281,167; it has 1,281,167.
    """
    rows = []
    for model in params.running:
        entry = params.models[model]
        for use in dict.fromkeys((entry.data.path, entry.recovery.data.path)):
            counts = params.corpora.get(use.removeprefix("data/"), {})
            rows.append({"Model": model, "Data": use} | _counts(counts))
        theirs = select_paper(paper, entry.paper, 9)
        if len(theirs):
            counts = dict(zip(theirs.metric, theirs.value.astype(int), strict=True))
            rows.append({"Model": entry.paper, "Data": theirs.variant.iloc[0]} | _counts(counts))
    return pd.DataFrame(rows)


def table_second_metric(
    results: pd.DataFrame, paper: pd.DataFrame, params: Params, metric: str, number: int
) -> pd.DataFrame:
    """All variants by a model's other metric: Table 11, with chrF in the place of COMET.

    Args:
        metric: ours.
        number: of the paper's table to put beside it, which may have another metric.
    """
    rows = []
    for model in (m for m in params.run if metric in set(results[results.model == m].metric)):
        theirs = select_paper(paper, params.models[model].paper, number).set_index("variant")
        other = theirs.metric.iloc[0] if len(theirs) else ""
        digits = 2 if is_lower_better(other) else 1
        for int8 in (False, True):
            part = select_metric(results, model, metric, int8)
            table = pd.concat([summarise(part, phase) for phase in ("base", "tuned")])
            for variant, row in table.iterrows():
                name = variant + "-int8" * int8
                rows.append(
                    {
                        "Model": model,
                        "Variant": name,
                        "Window": _window(row),
                        metric: spread(row),
                        "Paper: window": _window(theirs.loc[name]) if name in theirs.index else "–",
                        f"Paper: {other}": _theirs(theirs, name, digits),
                    }
                )
    return pd.DataFrame(rows)


def table_overview(full: pd.DataFrame) -> pd.DataFrame:
    """The README's table: what is left after a third and a half of the FF sublayers are merged."""
    wanted = ["base", "base-tuned"]
    wanted += [
        f"{method}-{ratio}" for ratio in ("third", "half") for method in ("vanilla", "permute")
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


def write_page(parts: list[str], folder: Path) -> None:
    """Write README.md, the page that shows every figure and table.

    Args:
        parts: Markdown, in reading order: headings, and what write_table and save_figure returned.
        folder: that the figures and tables are in.
    """
    opening = "# Figures and tables\n\nGenerated by `notebooks/7_figures.ipynb`; do not edit.\n"
    (folder / "README.md").write_text("\n".join([opening, *parts]))


def spread(row: pd.Series) -> str:
    """A mean with its standard deviation over seeds, where there are several."""
    return f"{row['mean']:.2f} ± {row['std']:.2f}" if row.seeds > 1 else f"{row['mean']:.2f}"


def _window(row: pd.Series) -> str:
    return row.window if isinstance(row.window, str) else "–"


def _number(table: pd.DataFrame, variant: str) -> str:
    return f"{table.loc[variant, 'mean']:.2f}" if variant in table.index else "–"


def _theirs(table: pd.DataFrame, key: str, digits: int = 1) -> str:
    return f"{table.loc[key, 'value']:.{digits}f}" if key in table.index else "–"


def _counts(counts: dict) -> dict:
    return {
        split.capitalize(): f"{counts[split]:,}" if split in counts else "–"
        for split in ("train", "validation", "test")
    }
