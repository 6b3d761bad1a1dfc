"""What heals best: the paper's recovery, or one that learns from the uncompressed model as well."""

import pandas as pd

from study.config import Params
from study.report.choices import find_variant, is_distilled
from study.report.results import find_reference, read_metric, select_metric
from study.report.style import find_look
from study.sections import Recipe


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
            metric, states = read_metric(mine), dict(list(mine.groupby(["variant", "phase"])))
            found = [states.get(state) for state in _list_states(plain, name)]
            if all(part is not None for part in found):
                values = [part.set_index("seed").value for part in found]
                kept = [metric.retained(value, reference.untuned) for value in values]
                rows.append(_compare(model, recipe, *kept))
    return pd.DataFrame(rows)


def _list_states(plain: str, distilled: str) -> list[tuple[str, str]]:
    return [(plain, "merged"), (plain, "tuned"), (distilled, "tuned")]


def _compare(
    model: str, recipe: Recipe, untuned: pd.Series, plain: pd.Series, distilled: pd.Series
) -> dict:
    seeds = plain.index.intersection(distilled.index)
    before, after = plain[seeds].mean(), distilled[seeds].mean()
    return {
        "Model": model,
        "Method": find_look(recipe.method)["label"],
        "Removed": recipe.ratio,
        "Untuned (%)": f"{untuned.iloc[0]:.1f}",
        "Tuned (%)": f"{before:.1f}",
        "… with distillation (%)": f"{after:.1f}",
        "Difference": f"{after - before:+.1f}",
        "Weight": f"{recipe.finetune['distillation']:g}",
        "Seeds": len(seeds),
    }
