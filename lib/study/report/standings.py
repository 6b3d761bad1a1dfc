"""The contest: every method of every family at the stored parameters of the paper's merges."""

import math

import pandas as pd

from ffmerge.catalogue import describe_method
from study.config import Params
from study.metrics import Metric
from study.report.choices import list_main
from study.report.estimates import estimate
from study.report.results import (
    SPARSE,
    find_reference,
    read_metric,
    select_metric,
    select_own,
)
from study.report.style import find_look

FAIR = 2.0  # points of the stored parameters by which sizes may differ and still compare; ours
NEAR = 6.0  # points, beyond which a number of whole layers is no counterpart at all; ours
LEAST = 0.5  # percent of the base's quality, below which a lone number decides nothing; ours
NORMAL = 1.96  # standard errors of an interval of 95 %
RATIOS = {"third": "a third", "half": "a half", "most": "all but one"}  # of the FF sublayers

COLUMNS = ["variant", "method", "label", "family", "ratio", "removed", "kind", "stored", "flops"]
COLUMNS += ["untuned", "error", "tuned", "std", "margin", "seeds"]


def measure_contest(results: pd.DataFrame, params: Params, model: str) -> pd.DataFrame:
    """What every main variant of a model stores, computes and keeps, before and after tuning.

    Both states are in percent of one base, as it is and not tuned; only where tuning teaches
    another task, the tuned ones are of the base tuned alike, in that task's metric.

    Args:
        results: results.csv.
        params: which variants there are.
        model: its name.

    Returns:
        One row per variant: variant, method, label, family ("uncompressed" of the base tuned
        alike), ratio, removed, kind; stored (% of the base's parameters; of its bytes, where zeros
        are not stored), flops (% of its FLOPs per token); untuned, and error: half the interval
        of what a share of the test's examples leaves open; tuned, with std and margin (half the
        t interval, infinite of one) over seeds. NaN: not evaluated.
    """
    mine, rows = results[results.model == model], select_metric(results, model)
    own, reference = select_own(results, model, params), find_reference(rows, model, params)
    whole = mine[(mine.variant == "base") & (mine.phase == "base")]
    states = mine[mine.phase.isin(["merged", "tuned"])]
    if whole.empty or states.empty:
        return pd.DataFrame(columns=COLUMNS)
    compared = reference.untuned if reference.taught else reference.tuned
    parts = dict(list(states.groupby("variant")))
    untuned = dict(list(own[own.phase == "merged"].groupby("variant")))
    tuned = dict(list(rows[rows.phase == "tuned"].groupby("variant")))
    alike = [name for name, part in parts.items() if part.method.iloc[0] == "base"]
    found = []
    for name in dict.fromkeys([*alike, *list_main(params, model)]):
        if name in parts:
            row = _describe(parts[name], whole.iloc[0])
            row |= _keep_untuned(untuned.get(name, own.iloc[:0]), own[own.phase == "base"])
            found.append(row | _keep_tuned(tuned.get(name, rows.iloc[:0]), compared))
    return pd.DataFrame(found, columns=COLUMNS)


def _describe(part: pd.DataFrame, whole: pd.Series) -> dict:
    """What a variant is, and what it costs beside the uncompressed model."""
    first, sparse = part.iloc[0], part[part.precision == SPARSE]
    is_base = first.method == "base"
    stored = sparse.bytes.iloc[0] / whole.bytes if len(sparse) else first.parameter_ratio
    flops = first.get("flops", math.nan) / whole.get("flops", math.nan)
    return {
        "variant": first.variant,
        "method": first.method,
        "label": find_look(first.method, tuned=is_base)["label"],
        "family": "uncompressed" if is_base else describe_method(first.method).family,
        "ratio": first.ratio,
        "removed": first.removed,
        "kind": first.kind,
        "stored": 100 * stored,
        "flops": 100 * flops,
    }


def _keep_untuned(rows: pd.DataFrame, base: pd.DataFrame) -> dict:
    if rows.empty or base.empty:
        return {"untuned": math.nan, "error": math.nan}
    row, metric, whole = rows.iloc[0], read_metric(base), base.value.iloc[0]
    kept = float(metric.retained(row.value, whole))
    return {"untuned": kept, "error": float(metric.retained(_find_error(row, metric), whole))}


def _find_error(row: pd.Series, metric: Metric) -> float:
    """Half of 95 % of the binomial's interval of a share of examples; NaN of other metrics."""
    if metric.unit != "%":
        return math.nan
    share = row.value / 100
    return 100 * NORMAL * math.sqrt(share * (1 - share) / row.n_examples)


def _keep_tuned(rows: pd.DataFrame, whole: float | None) -> dict:
    if rows.empty or whole is None:
        return {"tuned": math.nan, "std": math.nan, "margin": math.nan, "seeds": 0}
    kept = read_metric(rows).retained(rows.value, whole)
    mean = estimate((1, kept))
    spread = {"std": float(kept.std()), "margin": mean.margin, "seeds": len(rows)}
    return {"tuned": mean.value} | spread


def select_budget(table: pd.DataFrame, ratio: str) -> pd.DataFrame:
    """One variant of each method at the parameters that are stored after merging one ratio.

    Args:
        table: what `measure_contest` returned.
        ratio: of FF sublayers.

    Returns:
        Its rows and, with them, `fair`: not larger than a merge by more than `FAIR` points; `off`:
        the points between them. Of whole layers the nearest number of them; no rows where no FF
        sublayers go at this ratio.
    """
    same = table[(table.kind == "FF sublayers") & (table.ratio == ratio)]
    if same.empty:
        return table.iloc[:0].assign(fair=True, off=0.0)
    target, base = same.stored.iloc[0], table[table.family == "uncompressed"]
    sparse = table[(table.family == "stores fewer bits") & (table.ratio == ratio)]
    layers = table[table.kind == "layers"].assign(off=lambda t: (t.stored - target).abs())
    layers = layers[layers.off <= NEAR].sort_values("off").drop_duplicates("method")
    found = pd.concat([base, same, layers, sparse])
    off = (found.stored - target).where(found.family != "uncompressed", 0.0)
    return found.assign(fair=off <= FAIR, off=off)
