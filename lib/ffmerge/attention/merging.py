"""Merge self-attention as FF sublayers are merged: heads aligned, values and outputs averaged.

The paper merges FF sublayers only; its reviewer 2 asks for attention. W_v and W_o are shared, head
beside head; which tokens a head reads, its queries and keys, stays each layer's own. (Any
invertible change of basis inside a head would change nothing either; permutations are the paper's.)
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ffmerge.activations import Features
from ffmerge.alignment import correlate, solve_assignment
from ffmerge.attention.heads import HeadOrder, average_values, permute_heads
from ffmerge.groups import Group
from ffmerge.patches import Plan, check_plan
from ffmerge.sublayers import find_stacks

Orders = Mapping[str, Mapping[int, HeadOrder]]


def match_heads(C: Tensor, n_heads: int, n_groups: int) -> HeadOrder:
    """The order of heads, and of dimensions inside them, with the largest total correlation.

    Every pair of groups (of heads that share values) gets its best order inside; then the groups
    are assigned by what those reach.

    Args:
        C: (n_heads × d_head, n_heads × d_head) correlation, the anchor's dimensions in its rows.
        n_heads, n_groups: of both sublayers.

    Returns:
        The order; exact where every head has values of its own, and else a local optimum inside
        each group.
    """
    per_group, d_head = n_heads // n_groups, len(C) // n_heads
    blocks = C.reshape(n_groups, per_group, d_head, n_groups, per_group, d_head)
    best = {
        (g, other): _match_groups(blocks[g, :, :, other].transpose(1, 2))
        for g in range(n_groups)
        for other in range(n_groups)
    }
    totals = [[best[g, other][0] for other in range(n_groups)] for g in range(n_groups)]
    groups = solve_assignment(torch.tensor(totals, dtype=torch.float64)).tolist()
    found = [best[g, other] for g, other in enumerate(groups)]
    heads = [other * per_group + heads for other, (_, heads, _) in zip(groups, found, strict=True)]
    return HeadOrder(torch.cat(heads), torch.stack([dims for _, _, dims in found]))


def _match_groups(C: Tensor) -> tuple[float, Tensor, Tensor]:
    """Heads and dimensions of one group beside another's: total correlation, heads, dims.

    Args:
        C: (per_group, per_group, d_head, d_head), anchor's head, other's head, and dimensions.
    """
    heads, total = torch.arange(len(C)), float("-inf")
    dims = solve_assignment(C.sum((0, 1)))
    while True:  # alternately, each exactly; one head is done at once
        heads = solve_assignment(C[:, :, torch.arange(C.shape[-1]), dims].sum(-1))
        aligned = C[torch.arange(len(C)), heads].sum(0)
        dims = solve_assignment(aligned)
        found = float(aligned[torch.arange(len(dims)), dims].sum())
        if found <= total:
            return total, heads, dims
        total = found


def align_attention(
    model: nn.Module, groups: Mapping[str, Iterable[Group]], outputs: Features
) -> Orders:
    """Align the heads of every group's sublayers to its anchor's.

    Args:
        model: the base.
        groups: stack to its groups.
        outputs: outputs[stack][i] (n_tokens, n_heads × d_head), as `collect_heads` gives.

    Returns:
        orders[stack][i]; anchors have none.

    Raises:
        ValueError: attention that cannot be merged.

    Invariant: a planted order of heads and of their dimensions is recovered.
    """
    orders: dict[str, dict[int, HeadOrder]] = {}
    for name, stack in find_stacks(model).items():
        for group in groups.get(name, ()):
            anchor, x = stack.attentions()[group.anchor], outputs[name]
            for i in group.others:
                C = correlate(x[group.anchor], x[i])
                order = match_heads(C, anchor.n_heads, anchor.n_groups)
                orders.setdefault(name, {})[i] = order
    return orders


def merge_attention(model: nn.Module, plan: Plan, orders: Orders) -> dict[str, Tensor]:
    """Reorder the heads of every group's sublayers, and average what they share.

    Args:
        model: the base; left as it is.
        plan: its `attention`.
        orders: orders[stack][i] aligns sublayer i; one without stays in its own order.

    Returns:
        Full parameter names to tensors: W_v and W_o under the name of the group's first layer, and
        the queries and keys of sublayers whose heads have moved.

    Raises:
        ValueError: as `apply_plan`.

    Invariant: a group of identical sublayers merges into that sublayer, bit by bit.
    """
    tensors = {}
    for name, stack in check_plan(model, plan).items():
        known = orders.get(name, {})
        for group in plan.attention.get(name, ()):
            attentions = stack.attentions()
            views = {i: attentions[i] for i in group.layers}
            weights = {
                i: permute_heads(view.read(), known[i]) if i in known else view.read()
                for i, view in views.items()
            }
            first = group.layers[0]
            moved = {i: "qk" for i in group.layers if i in known and known[i].moves_heads}
            merged = average_values([weights[i] for i in group.layers])
            for i, kinds in (moved | {first: "vo" + moved.get(first, "")}).items():
                arranged = views[i].arrange(merged if i == first else weights[i], kinds)
                tensors |= {f"{stack.path}.{i}.{key}": value for key, value in arranged.items()}
    return tensors
