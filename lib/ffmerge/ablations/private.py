"""Give every layer of a shared FF sublayer a b_out of its own: d_model numbers a layer.

Merging ties whole modules, b_out with the rest; this is the ablation of that choice.
"""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ffmerge.activations import Batch, observe, peek
from ffmerge.fidelity import RunningSpread
from ffmerge.groups import Group
from ffmerge.moments import find_inputs
from ffmerge.refitting import compute_output, learn_activation
from ffmerge.sublayers import find_stacks


@torch.no_grad()
def untie_biases(
    base: nn.Module,
    small: nn.Module,
    groups: Mapping[str, tuple[Group, ...]],
    batches: Iterable[Batch],
    tokens: int,
    spread: bool = False,
) -> nn.Module:
    """A copy in which b_out brings the mean of every layer's output back to that of the base.

    b_out,l = mean Y_l - s_l W_out · mean H_l on what layer l of the base reads (CORP centres so).

    Args:
        base: the uncompressed model.
        small: it with groups of sublayers that share one; left as it is.
        groups: stack to its groups.
        batches: calibration data.
        tokens: how many to see.
        spread: bring the spread back too, by s_l on W_out (as REPAIR, Jordan et al., 2023); or 1.

    Returns:
        A model with W_out of its own in every layer, s_l times the shared one, for evaluation.

    Raises:
        ValueError: a model without b_out.
    """
    first, batches = peek(batches)
    small, activation = copy.deepcopy(small), learn_activation(base, first)
    both = find_stacks(base), find_stacks(small)
    places = [(name, i) for name in groups for group in groups[name] for i in group.layers]
    weights = {(n, i): [of[n].sublayers[i].read() for of in both] for n, i in places}
    if any(tied.b_out is None for _, tied in weights.values()):
        raise ValueError(f"{type(base).__name__} has no b_out; valid is a model with biases")
    outputs = {place: (RunningSpread(), RunningSpread()) for place in places}

    def receive(_: int, name: str, i: int, x: Tensor) -> None:
        for w, found in zip(weights.get((name, i), ()), outputs.get((name, i), ()), strict=True):
            found.update(compute_output(w, x, activation))

    observe(base, batches, tokens, [find_inputs], receive)
    for (name, i), (wanted, found) in outputs.items():
        scale, ff = wanted.value() / found.value() if spread else 1.0, both[1][name].sublayers[i]
        own = copy.deepcopy(ff.module("W_out"))
        own.weight *= scale
        own.bias.copy_(wanted.mean() - scale * (found.mean() - own.bias))
        ff.layer.set_submodule(ff.names["W_out"], own, strict=True)
    return small
