"""The tables of what goes in: hyperparameters and data (Tables 5-9), from params.yaml."""

import pandas as pd

from study.config import Params
from study.report.paper import select_paper

HYPERPARAMETERS = {"GPT-2": 5, "ViT": 6, "OPUS-MT": 7, "OLMo-7B": 8}  # the paper's table numbers


def table_hyperparameters(params: Params, name: str) -> pd.DataFrame:
    """Tables 5-8: the fine-tuning recipes of one of the paper's models, at both scales.

    Args:
        params: all models, whether they run or not.
        name: the paper's model, such as "GPT-2".
    """
    recipes = {}
    for model in (
        m for m, entry in params.models.items() if entry.paper == name and entry.finetune
    ):
        recipe = params.model(model).finetune.model_dump(exclude_none=True)
        if not recipe["distillation"]:  # the paper has none
            del recipe["distillation"]
        adapters = {f"adapter {key}": value for key, value in recipe.pop("adapters", {}).items()}
        recipes[model] = {key.replace("_", " "): value for key, value in recipe.items()} | adapters
    if not recipes:
        return pd.DataFrame()
    table = pd.DataFrame(recipes, dtype=object).fillna("–")
    return table.rename_axis("Hyperparameter").reset_index()


def table_data(paper: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Table 9: examples per split, ours and the paper's.

    Args:
        paper: what `read_paper` returned.
        params: the models to run, their data and the corpora's sizes.
    """
    rows = []
    for model in params.run:
        entry = params.model(model)
        for data in {use.data.path: use.data for use in (entry, entry.recovery)}.values():
            counts = params.corpora.get(data.corpus, {})
            rows.append({"Model": model, "Data": data.path} | _print_counts(counts))
        theirs = select_paper(paper, entry.paper, 9)
        if len(theirs):
            counts = dict(zip(theirs.metric, theirs.value.astype(int), strict=True))
            names = {"Model": entry.paper, "Data": theirs.variant.iloc[0]}
            rows.append(names | _print_counts(counts))
    return pd.DataFrame(rows)


def _print_counts(counts: dict[str, int]) -> dict[str, str]:
    return {
        split.capitalize(): f"{counts[split]:,}" if split in counts else "–"
        for split in ("train", "validation", "test")
    }
