"""Variants: a recipe of params.yaml, applied to the base model."""

from collections.abc import Mapping

from torch import nn

from ffmerge.alignment import Pairs, select_permutations
from ffmerge.config import Model, Recipe
from ffmerge.merging import merge_aligned
from ffmerge.pruning import drop_layers
from ffmerge.selection import Anchor, Window, parse_window
from ffmerge.sublayers import find_stacks


def compress(
    model: nn.Module,
    method: str,
    window: Window | None,
    pairs: Pairs | None = None,
    anchor: Anchor = "first",
) -> nn.Module:
    """Compress a model by one method and window, the same window in every stack (Section 4.3).

    Args:
        model: the base; left as it is.
        method: "base" (nothing is done), "vanilla", "permute" or "drop".
        window: the layers to merge or drop.
        pairs: permutations of all pairs, for "permute".
        anchor: which sublayer the others are aligned to.
    """
    if method == "base":
        return model
    stacks = find_stacks(model)
    windows = dict.fromkeys(stacks, window)
    if method == "drop":
        return drop_layers(model, windows)
    permutations = {}
    if method == "permute":
        permutations = {name: select_permutations(pairs, name, window, anchor) for name in stacks}
    return merge_aligned(model, windows, permutations)


def find_window(recipe: Recipe, chosen: Mapping) -> Window | None:
    """The window of a variant: the best one of its method, or one drawn at random.

    Args:
        recipe: the variant's recipe.
        chosen: what `4_merges` chose: {method: {ratio: "3-7"}, "random": {ratio: ["0-4", …]}}.

    Raises:
        ValueError: more random windows asked for than were drawn.
    """
    if recipe.method == "base":
        return None
    if recipe.random_window is None:
        return parse_window(chosen[recipe.method][recipe.removed])
    drawn = chosen["random"][recipe.removed]
    if recipe.random_window > len(drawn):
        raise ValueError(f"random_window is {recipe.random_window}; valid are 1-{len(drawn)}")
    return parse_window(drawn[recipe.random_window - 1])


def count_removed(entry: Model, recipe: Recipe) -> str:
    """How much a recipe removes: FF sublayers ("4"), or for drop whole layers ("2L")."""
    if recipe.method == "base":
        return "0"
    if recipe.method == "drop":
        return f"{entry.dropped[recipe.removed]}L"
    return str(entry.removed[recipe.removed])
