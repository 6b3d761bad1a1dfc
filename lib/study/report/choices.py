"""Which variants of params.yaml play which part in the paper's comparisons."""

import pandas as pd

from study.config import Params
from study.sections import Recipe

MERGES = ("vanilla", "permute")  # what the paper's figures compare
FAITHFUL = ("base", *MERGES, "drop")  # all that the paper has; other methods are the contest's


def select_faithful(results: pd.DataFrame, params: Params) -> pd.DataFrame:
    """The rows of the paper's methods, by what the paper measures: its figures and tables.

    A model that tuning teaches another task is also scored by its own one before, which is the
    contest's: left out where there is anything of the other.

    Args:
        results: results.csv.
        params: which models learn another task.
    """
    shown = results.method.isin(FAITHFUL)
    for model in set(results.model) & set(params.models):
        mine = results.model == model
        taught = results[mine & results.phase.isin(["tuned", "first words"])].metric
        if params.model(model).downstream is not None and len(taught):
            shown &= ~mine | results.metric.isin(taught)
    return results[shown]


def list_ratios(params: Params, model: str) -> list[str]:
    """The ratios at which FF sublayers go from a model, the smallest first."""
    removed = params.model(model).removed
    return sorted(removed, key=removed.get)


def find_variant(params: Params, model: str, method: str, ratio: str | None) -> str | None:
    """A method's main variant at one ratio: the best window, its first sublayer as anchor.

    Args:
        params: which variants there are.
        model: its name.
        method: its name.
        ratio: how much goes; None of the base.

    Returns:
        Its name; None where params.yaml has no such variant.
    """
    for name in params.variants_of(model):
        recipe = params.recipe(name)
        if (recipe.method, recipe.ratio) == (method, ratio) and _is_plain(recipe):
            return name
    return None


def list_main(params: Params, model: str) -> list[str]:
    """The main variants of a model, one of each method at each ratio (`find_variant`)."""
    main = {}
    for name in params.variants_of(model):
        recipe = params.recipe(name)
        if _is_plain(recipe):
            main.setdefault((recipe.method, recipe.ratio), name)
    return list(main.values())


def list_shown(params: Params, model: str) -> list[str]:
    """What a table of all results lists: what is tuned with every seed, or else all main ones."""
    entry = params.model(model)
    return list_main(params, model) if entry.finetune is None else params.compared(model)


def name_windows(params: Params, model: str, ratio: str) -> dict[str, str]:
    """The windows of Table 1 at one ratio: the best and random ones.

    Returns:
        Variant to its name there.
    """
    best = find_variant(params, model, "permute", ratio)
    names = {} if best is None else {best: "best before tuning"}
    for name in _list_permuted(params, model, ratio):
        if place := params.recipe(name).random_window:
            names[name] = f"random {place}"
    return names


def name_anchors(params: Params, model: str, ratio: str) -> dict[str, str]:
    """The anchors of Table 2 at one ratio, each of the best window.

    Returns:
        Variant to its name there.
    """
    names = _list_permuted(params, model, ratio)
    recipes = {name: params.recipe(name) for name in names}
    return {
        name: recipe.anchor
        for name, recipe in recipes.items()
        if not (recipe.window or recipe.random_window)
    }


def _list_permuted(params: Params, model: str, ratio: str) -> list[str]:
    recipes = {name: params.recipe(name) for name in params.variants_by(model, "permute")}
    return [n for n, r in recipes.items() if r.ratio == ratio and not is_distilled(r)]


def is_distilled(recipe: Recipe) -> bool:
    """Whether a variant learns from the uncompressed model's predictions too."""
    return bool(recipe.finetune.get("distillation"))


def _is_plain(recipe: Recipe) -> bool:
    is_best = not (recipe.window or recipe.random_window or is_distilled(recipe))
    return recipe.anchor == "first" and is_best
