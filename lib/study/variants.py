"""Variants: a recipe of params.yaml, and the plan that it makes of what its method chose."""

from collections.abc import Mapping
from dataclasses import dataclass

from ffmerge.catalogue import describe_method
from ffmerge.patches import Patch, Plan
from study.config import Params, Recipe

Chosen = Mapping[str, list[dict]]  # ratio to candidates as JSON: the best first, the others drawn


@dataclass(frozen=True)
class Variant:
    """How a model is compressed: the labels of its rows in results.csv.

    Attributes:
        name: in params.yaml's `recipes`.
        method: "base", or a method's name.
        ratio: how much goes, in words: "third".
        removed: how much, as a number.
        kind: what is counted: "FF sublayers" or "layers".
        layers: which layers, as `3-7`.
        anchor: which sublayer of a group the others are aligned to.
    """

    name: str
    method: str
    ratio: str | None = None
    removed: int = 0
    kind: str | None = None
    layers: str | None = None
    anchor: str | None = None

    def columns(self) -> dict:
        """The columns of results.csv that tell variants apart."""
        columns = dict(vars(self))
        return {"variant": columns.pop("name")} | columns


def describe_variant(name: str, model: str, params: Params, patch: Patch) -> Variant:
    """The labels of a variant of a model, once it is known which layers its plan is about.

    Args:
        name, model: the variant's and the model's.
        params: the variant's recipe, and how much it removes.
        patch: of the variant.
    """
    recipe = params.recipe(name)
    if recipe.method == "base":
        return Variant(name, "base")
    about = describe_method(recipe.method)
    return Variant(
        name,
        recipe.method,
        recipe.ratio,
        params.count_removed(model, name),
        about.removes,
        str(patch.plan),
        recipe.anchor if "permutations" in about.needs else None,
    )


def find_plan(recipe: Recipe, chosen: Chosen) -> Plan:
    """The plan of a variant: the method's best, one drawn at random, or a window given by hand.

    Args:
        recipe: the variant's recipe.
        chosen: what `4_merges` chose for its method.

    Raises:
        ValueError: more random windows asked for than were drawn, or a window that is no candidate.
    """
    plans = [Plan.from_json(plan) for plan in chosen[recipe.ratio]]
    place = recipe.random_window or 0
    if recipe.window is not None:
        valid = {str(plan): i for i, plan in enumerate(plans)}
        if recipe.window not in valid:
            raise ValueError(f"window is {recipe.window}; valid are {', '.join(sorted(valid))}")
        place = valid[recipe.window]
    if place >= len(plans):
        raise ValueError(f"random_window is {place}; valid are 1-{len(plans) - 1}")
    return plans[place].anchored(recipe.anchor)
