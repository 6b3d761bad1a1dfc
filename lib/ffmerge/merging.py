"""Permute and average: one FF sublayer in the place of k (paper, Section 3.3)."""

from collections.abc import Mapping

from torch import Tensor, nn

from ffmerge.groups import Group, list_windows
from ffmerge.patches import Patch, Plan, check_plan
from ffmerge.weights import average, permute


def merge_groups(
    model: nn.Module, plan: Plan, permutations: Mapping[str, Mapping[int, Tensor]]
) -> Patch:
    """Permute and average the sublayers of every group (Eqs. 3-6).

    Args:
        model: the base; left as it is.
        plan: its groups.
        permutations: permutations[stack][i] (d_ff,) aligns sublayer i to its group's anchor; a
            sublayer without one, the anchor for instance, stays in its own order.

    Returns:
        The patch: one sublayer for each group, under the name of the group's first layer.

    Raises:
        ValueError: as `apply_plan`, or sublayers of different width in a group.

    Invariant: a group of identical sublayers merges into that sublayer, bit by bit.
    """
    tensors = {}
    for name, stack in check_plan(model, plan).items():
        known = permutations.get(name, {})
        for group in plan.groups.get(name, ()):
            widths = sorted({stack.sublayers[i].d_ff for i in group.layers})
            if len(widths) > 1:
                raise ValueError(
                    f"FF sublayers {group} of the {name} have d_ff {widths}; valid is one width"
                )
            read = {i: stack.sublayers[i].read() for i in group.layers}
            weights = [permute(w, known[i]) if i in known else w for i, w in read.items()]
            tensors |= stack.arrange(group.layers[0], average(weights))
    return Patch(plan, tensors)


def list_window_plans(depths: Mapping[str, int], count: int) -> list[Plan]:
    """Every window of adjacent sublayers, one in each stack and in sync (Sections 3.4 and 4.3).

    Args:
        depths: stack to its number of layers, all of one depth.
        count: FF sublayers to remove in all; each stack's k merged ones remove k - 1.

    Raises:
        ValueError: more than the stacks have.
    """
    windows = list_windows(min(depths.values()), count // len(depths) + 1)
    return [Plan(dict.fromkeys(depths, (Group(layers, layers[0]),))) for layers in windows]
