"""The leaderboard: every method at the stored parameters of a merge, over all models."""

import math

import pandas as pd

from study.config import Params
from study.report.results import list_models
from study.report.standings import FAIR, measure_contest, select_budget


def table_contest(results: pd.DataFrame, params: Params, ratio: str) -> pd.DataFrame:
    """The leaderboard at one ratio: a method per row, its family's best first, a model per column.

    Args:
        results: results.csv.
        params: which variants there are.
        ratio: of FF sublayers, whose stored parameters all others are compared at.
    """
    parts = []
    for model in list_models(results, params):
        table = select_budget(measure_contest(results, params, model), ratio)
        parts.append(table.assign(model=model, cell=_print_cells(table)))
    table = pd.concat(parts)
    if table[table.family != "uncompressed"].empty:
        return pd.DataFrame()
    models, order = list(dict.fromkeys(table.model)), _rank(table)
    groups = {method: table[table.method == method] for method in order.index}
    rows = [_print_method(groups[method], rank, models) for method, rank in order.items()]
    return pd.DataFrame(rows)


def _rank(table: pd.DataFrame) -> pd.Series:
    """Methods in order, with their mean rank before tuning; the base tuned alike comes first.

    Models have different methods: a rank counts how many of those that most models have keep more.
    """
    fair = table[table.fair & (table.family != "uncompressed")].dropna(subset="untuned")
    wide = fair.pivot(index="method", columns="model", values="untuned")
    common = wide[wide.notna().sum(axis=1) > len(wide.columns) / 2]
    places = wide.apply(lambda kept: 1 + kept.map(lambda own: (common[kept.name] > own).sum()))
    methods = table.drop_duplicates("method").set_index("method").family
    rank = places.where(wide.notna()).mean(axis=1).reindex(methods.index).astype(float)
    best = rank.groupby(methods).transform("min").where(methods != "uncompressed", 0)
    lost = -wide.mean(axis=1)  # where ranks are equal
    order = pd.DataFrame({"best": best, "family": methods, "rank": rank, "lost": lost})
    return order.sort_values(["best", "family", "rank", "lost"], kind="stable")["rank"]


def _print_cells(table: pd.DataFrame) -> list[str]:
    """ "99.1 → **99.6** ± 0.2": before and after tuning, the best of what is not larger in bold."""
    fair = table[table.fair & (table.family != "uncompressed")]
    best = fair[["untuned", "tuned"]].max()
    if fair[fair.tuned.notna()].family.nunique() < 2:  # no other family to be better than
        best.tuned = math.nan
    cells = []
    for row in table.to_dict("records"):
        parts = []
        for state in ("untuned", "tuned"):
            if not math.isnan(row[state]):
                text = f"{row[state]:.1f}"
                parts.append(f"**{text}**" if row["fair"] and row[state] == best[state] else text)
        if row["seeds"] and parts:
            parts[-1] += "¹" if math.isinf(row["margin"]) else f" ± {row['margin']:.1f}"
        if len(parts) == 1 and row["seeds"]:
            parts.insert(0, "–")
        size = f" ({row['stored']:.0f} % stored)" if abs(row["off"]) > FAIR else ""
        cells.append((" → ".join(parts) or "–") + size)
    return cells


def _print_method(rows: pd.DataFrame, rank: float, models: list[str]) -> dict:
    first, flops = rows.iloc[0], rows.flops.dropna().round().astype(int)
    cells = dict(zip(rows.model, rows.cell, strict=True))
    spread = [str(n) for n in dict.fromkeys((flops.min(), flops.max()))] if len(flops) else ["–"]
    return {
        "Family": first.family,
        "Method": first.label,
        "Mean rank": "–" if math.isnan(rank) else f"{rank:.1f}",
        **{model: cells.get(model, "–") for model in models},
        "FLOPs kept (%)": " to ".join(spread),
    }
