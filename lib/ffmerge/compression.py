"""The whole method in one call: groups and features in, a merged model out (paper, Section 3)."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ffmerge.alignment import Pairs, align, pair_name
from ffmerge.catalogue import describe_method, list_methods
from ffmerge.groups import Anchor, Group, find_anchor, parse_layers
from ffmerge.methods import Evidence, find_method
from ffmerge.patches import Plan, apply_patch, check_plan

Layers = Group | str | range | tuple[int, ...] | list[int]


def merge(
    model: nn.Module,
    groups: Mapping[str, Layers | Sequence[Layers]],
    features: Mapping[str, Sequence[Tensor]] | None = None,
    *,
    method: str = "permute",
    anchor: Anchor | None = None,
) -> nn.Module:
    """Merge groups of FF sublayers: align to the anchor, average, tie (Section 3.3).

    Args:
        model: an uncompressed model; left as it is.
        groups: for each stack the layers of one group, `{"decoder": "22-34"}`, `(3, 5, 7)`,
            `range(22, 35)`, `window(22, 34)`, or a list of such groups, `["0-2", "5-8"]`.
        features: features[stack][i] (n_tokens, d_ff); may be left out for "vanilla".
        method: "permute", or "vanilla": average without permuting; or another that shares.
        anchor: which sublayer of every group the others are aligned to: "first" (where a group
            does not say), "middle" or "last".

    Returns:
        A new model in which the sublayers of each group are one and the same.

    Raises:
        ValueError: unknown stack, method or anchor; groups that overlap or do not fit; missing
            features; a model whose sublayers share already.

    Invariant: merging identical sublayers returns the model.
    """
    found = find_method(method)
    if found.FAMILY != "shares":
        valid = (m for m in list_methods() if describe_method(m).family == "shares")
        raise ValueError(f"method {method!r} does not share; valid are {', '.join(valid)}")
    if not isinstance(groups, Mapping) or not groups:
        raise ValueError(f"groups are {groups!r}; valid are such as {{'decoder': '22-34'}}")
    plan = Plan({name: _read_groups(given) for name, given in groups.items()})
    plan = plan if anchor is None else plan.anchored(anchor)
    check_plan(model, plan)
    permutations = None
    if "permutations" in found.NEEDS:
        for name, groups in plan.groups.items():
            n = len((features or {}).get(name, ()))
            if n <= max(group.layers[-1] for group in groups):
                raise ValueError(
                    f"features of the {name} are missing (there are {n}); method {method!r} needs "
                    "those of every sublayer, as collect_features gives them"
                )
        permutations = align_groups(plan, features)
    return apply_patch(model, found.make(model, plan, Evidence(permutations=permutations)))


def align_groups(plan: Plan, features: Mapping[str, Sequence[Tensor]]) -> Pairs:
    """The permutations that a plan needs: every sublayer aligned to its group's anchor.

    Args:
        plan: its groups.
        features: features[stack][i] (n_tokens, d_ff).

    Returns:
        One permutation (d_ff,) for each pair of an anchor and another sublayer of its group.

    Raises:
        ValueError: as `align`.
    """
    return {
        pair_name(name, group.anchor, i): align(features[name][group.anchor], features[name][i])
        for name, groups in plan.groups.items()
        for group in groups
        for i in group.others
    }


def _read_groups(given: Layers | Sequence[Layers]) -> tuple[Group, ...]:
    several = isinstance(given, list | tuple) and not any(isinstance(x, int) for x in given)
    several = several and len(given) > 0  # nothing is no group
    return tuple(_read_group(one) for one in (given if several else [given]))


def _read_group(given: Layers) -> Group:
    if isinstance(given, Group):
        return given
    layers = parse_layers(given) if isinstance(given, str) else given
    if not isinstance(layers, list | tuple | range) or not all(type(i) is int for i in layers):
        raise ValueError(
            f"group {given!r} is not valid; valid are layers such as '3-7', (3, 5, 7), "
            "range(3, 8) and window(3, 7), or a list of such groups"
        )
    return Group(tuple(layers), find_anchor(layers))
