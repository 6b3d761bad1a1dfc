"""Attention sublayers beside FF sublayers: which share better, and at what size?"""

from itertools import product

import pandas as pd

from study.config import Params
from study.report.choices import find_variant
from study.report.results import (
    find_reference,
    print_spread,
    read_metric,
    select_metric,
    select_own,
    shorten_kind,
)
from study.report.style import find_look

METHODS = ("permute", "attention", "attention_ff")


def table_attention(results: pd.DataFrame, params: Params, models: list[str]) -> pd.DataFrame:
    """The same share of a model's FF sublayers, attention sublayers, or both, shared.

    Args:
        results: results.csv.
        params: which variants there are.
        models: their names; left out are those without a merge of attention.

    Returns:
        Parameters and quality kept, in percent of the uncompressed model's: before tuning by the
        model's own task, after it by what it was tuned for (± standard deviation over seeds; a
        dash where it was not tuned, or the uncompressed model was never taught the task).
    """
    rows = []
    for model in models:
        own, mine = select_own(results, model, params), select_metric(results, model)
        if "attention" not in set(own.method):
            continue
        before, taught = (find_reference(part, model, params) for part in (own, mine))
        for ratio, method in product(params.model(model).removed, METHODS):
            name = find_variant(params, model, method, ratio)
            merged = own[(own.variant == name) & (own.phase == "merged")]
            other = find_variant(params, model, "attention", ratio)
            if merged.empty or other not in set(own.variant):
                continue
            after = mine[(mine.variant == name) & (mine.phase == "tuned")]
            after = after if taught.taught else after.iloc[:0]
            first = merged.iloc[0]
            rows.append(
                {
                    "Model": model,
                    "Shared": find_look(method)["label"],
                    "Removed": f"{first.removed} {shorten_kind(first.kind)}",
                    "Parameters (%)": f"{100 * first.parameter_ratio:.1f}",
                    "Untuned: kept (%)": print_spread(_keep(merged, before.untuned)),
                    "Tuned: kept (%)": print_spread(_keep(after, taught.untuned)),
                }
            )
    return pd.DataFrame(rows)


def _keep(rows: pd.DataFrame, reference: float) -> pd.Series:
    return read_metric(rows).retained(rows.value, reference) if len(rows) else rows.value
