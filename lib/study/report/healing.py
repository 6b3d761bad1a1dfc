"""What heals best: the paper's recovery, or one that learns from the uncompressed model as well."""

import pandas as pd

from study.config import Params
from study.report.choices import find_variant, is_distilled
from study.report.results import find_reference, read_metric, select_metric
from study.report.style import find_look


def table_healing(results: pd.DataFrame, params: Params, models: list[str]) -> pd.DataFrame:
    """Every variant that was tuned with distillation, beside the same one tuned without.

    Args:
        results: results.csv.
        params: which variants are distilled.
        models: their names.

    Returns:
        Percent of the uncompressed model's quality, as it is, with the seeds that both have; empty
        where nothing was distilled.
    """
    rows = []
    for model in models:
        mine = select_metric(results, model)
        reference = find_reference(mine, model, params)
        for name in params.variants_of(model):
            recipe = params.recipe(name)
            plain = find_variant(params, model, recipe.method, recipe.ratio)
            if not is_distilled(recipe) or plain is None or reference.untuned is None:
                continue
            keep = read_metric(mine).retained(mine.value, reference.untuned)
            kept = mine.assign(kept=keep).set_index(["variant", "phase", "seed"]).kept
            tuned = [kept.xs((v, "tuned")) for v in (plain, name) if (v, "tuned") in kept.index]
            if len(tuned) == 2:
                rows.append(_compare(model, recipe, kept.xs((plain, "merged")).iloc[0], *tuned))
    return pd.DataFrame(rows)


def _compare(model: str, recipe, untuned: float, plain: pd.Series, distilled: pd.Series) -> dict:
    seeds = plain.index.intersection(distilled.index)
    before, after = plain[seeds].mean(), distilled[seeds].mean()
    return {
        "Model": model,
        "Method": find_look(recipe.method)["label"],
        "Removed": recipe.ratio,
        "Untuned (%)": f"{untuned:.1f}",
        "Tuned (%)": f"{before:.1f}",
        "… with distillation (%)": f"{after:.1f}",
        "Difference": f"{after - before:+.1f}",
        "Weight": f"{recipe.finetune['distillation']:g}",
        "Seeds": len(seeds),
    }
