"""Give every layer of a shared FF sublayer a b_out of its own: d_model numbers a layer.

Merging ties whole modules, b_out with the rest; this is the ablation of that choice.
"""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ffmerge.activations import Batch, observe, peek
from ffmerge.alignment import to_exact
from ffmerge.groups import Group
from ffmerge.moments import find_inputs
from ffmerge.refitting import compute_hidden, learn_activation
from ffmerge.sublayers import find_stacks


@torch.no_grad()
def untie_biases(
    base: nn.Module,
    small: nn.Module,
    groups: Mapping[str, tuple[Group, ...]],
    batches: Iterable[Batch],
    tokens: int,
) -> nn.Module:
    """A copy in which b_out brings the mean of every layer's output back to that of the base.

    b_out,l = mean Y_l - W_out · mean H_l on what layer l of the base reads (CORP centres so).

    Args:
        base: the uncompressed model.
        small: it with groups of sublayers that share one; left as it is.
        groups: stack to its groups.
        batches: calibration data.
        tokens: how many to see.

    Returns:
        A model with W_out of its own in every layer, the same numbers in each, for evaluation.

    Raises:
        ValueError: a model without b_out.
    """
    first, batches = peek(batches)
    small, activation = copy.deepcopy(small), learn_activation(base, first)
    stacks, shared = find_stacks(base), find_stacks(small)
    places = {(name, i) for name in groups for group in groups[name] for i in group.layers}
    sums = dict.fromkeys(places, 0.0)
    seen = dict.fromkeys(places, 0)
    own, tied = (
        {(name, i): of[name].sublayers[i].read() for name, i in places} for of in (stacks, shared)
    )
    if any(w.b_out is None for w in tied.values()):
        raise ValueError(f"{type(base).__name__} has no b_out; valid is a model with biases")

    def receive(place: int, name: str, i: int, x: Tensor) -> None:
        if (name, i) in places:
            lost = 0
            for w, sign in ((own[name, i], 1), (tied[name, i], -1)):
                mean = to_exact(compute_hidden(w, x, activation)).sum(0)
                lost = lost + sign * (to_exact(w.W_out) @ mean + len(x) * to_exact(w.b_out))
            sums[name, i] += lost
            seen[name, i] += len(x)

    observe(base, batches, tokens, [find_inputs], receive)
    for name, i in places:
        ff = shared[name].sublayers[i]
        own = copy.deepcopy(ff.module("W_out"))
        own.bias += (sums[name, i] / seen[name, i]).to(own.bias)
        ff.layer.set_submodule(ff.names["W_out"], own, strict=True)
    return small
