"""The whole method in one call: groups and features in, a merged model out (paper, Section 3)."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ffmerge.alignment import Pairs, align, pair_name
from ffmerge.groups import Anchor, Group, find_anchor, parse_layers
from ffmerge.methods import Evidence, find_method
from ffmerge.patches import Plan, apply_patch, check_plan


def merge(
    model: nn.Module,
    groups: Mapping[str, Group | str | Sequence[Group | str]],
    features: Mapping[str, Sequence[Tensor]] | None = None,
    *,
    method: str = "permute",
    anchor: Anchor | None = None,
) -> nn.Module:
    """Merge groups of FF sublayers: align to the anchor, average, tie (Section 3.3).

    Args:
        model: an uncompressed model; left as it is.
        groups: for each stack one group or several: `{"decoder": "22-34"}`, `"3,5,7"`,
            `window(22, 34)`, `[window(0, 2), window(5, 8)]`.
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
    plan = Plan({name: _read_groups(given) for name, given in groups.items()})
    if not plan.groups:
        raise ValueError("groups are empty; valid is a stack's name with groups, such as 22-34")
    plan = plan if anchor is None else plan.anchored(anchor)
    check_plan(model, plan)
    permutations = None
    if "permutations" in found.NEEDS:
        if features is None:
            raise ValueError(f"features are missing; method {method!r} needs them to align")
        permutations = align_groups(plan, features)
    return apply_patch(model, found.make(model, plan, Evidence(permutations=permutations)))


def align_groups(plan: Plan, features: Mapping[str, Sequence[Tensor]]) -> Pairs:
    """The permutations that a plan needs: every sublayer aligned to its group's anchor.

    Args:
        plan: its groups.
        features: features[stack][i] (n_tokens, d_ff).
    """
    return {
        pair_name(name, group.anchor, i): align(features[name][group.anchor], features[name][i])
        for name, groups in plan.groups.items()
        for group in groups
        for i in group.others
    }


def _read_groups(given: Group | str | Sequence[Group | str]) -> tuple[Group, ...]:
    single = isinstance(given, Group | str)
    if not single and not isinstance(given, list | tuple):
        raise ValueError(_NOT_A_GROUP.format(given))
    return tuple(_read_group(one) for one in ([given] if single else given))


def _read_group(given: Group | str) -> Group:
    if isinstance(given, Group):
        return given
    if not isinstance(given, str):
        raise ValueError(_NOT_A_GROUP.format(given))
    layers = parse_layers(given)
    return Group(layers, find_anchor(layers))


_NOT_A_GROUP = "group {!r} is not valid; valid are '3-7', '3,5,7' and window(3, 7), or a list"
