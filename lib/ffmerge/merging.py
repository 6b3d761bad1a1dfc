"""Permute, average, tie: one FF sublayer in the place of k (paper, Section 3.3)."""

import copy
from collections.abc import Mapping
from dataclasses import fields
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ffmerge.alignment import align
from ffmerge.selection import Anchor, Window, check_window, find_anchor, format_window
from ffmerge.sublayers import Weights, find_stacks

Method = Literal["vanilla", "permute"]


def permute(weights: Weights, p: Tensor) -> Weights:
    """Reorder the neurons of one FF sublayer: P W_in, P b_in, W_out P^T (Eqs. 3-5, 8-10).

    Args:
        weights: the sublayer's weights.
        p: (d_ff,) int64; neuron p[i] moves to place i.

    Returns:
        The reordered weights; b_out is not touched, it adds to the sum over neurons.

    Invariant: the sublayer computes the same function as before.
    """

    def rows(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[p]

    return Weights(
        W_in=weights.W_in[p],
        W_gate=rows(weights.W_gate),
        W_out=weights.W_out[:, p],
        b_in=rows(weights.b_in),
        b_gate=rows(weights.b_gate),
        b_out=weights.b_out,
    )


def average(sublayers: list[Weights]) -> Weights:
    """The mean of aligned sublayers, weight by weight (Eqs. 3-6).

    Summed in float64. Invariant: the average of identical sublayers is that sublayer, bit by bit.
    """
    means = {}
    for field in fields(Weights):
        values = [getattr(weights, field.name) for weights in sublayers]
        if values[0] is not None:
            mean = torch.stack(values).mean(0, dtype=torch.float64)
            means[field.name] = mean.to(values[0].dtype)
    return Weights(**means)


def merge(
    model: nn.Module,
    windows: Mapping[str, Window],
    features: Mapping[str, list[Tensor]] | None = None,
    *,
    method: Method = "permute",
    anchor: Anchor = "first",
) -> nn.Module:
    """Merge a window of FF sublayers per stack: align to the anchor, average, tie (Section 3.3).

    Args:
        model: left as it is.
        windows: {"decoder": (22, 34)}, both ends in; one entry for each stack to merge.
        features: features[stack][i] (n_tokens, d_ff); may be left out for "vanilla".
        method: "permute", or "vanilla": average without permuting.
        anchor: which sublayer of the window the others are aligned to.

    Returns:
        A new model in which the sublayers of each window are one and the same.

    Raises:
        ValueError: unknown stack, method or anchor; a window outside its stack or of one layer;
            sublayers of different width.

    Invariant: merging identical sublayers returns the model.
    """
    if method not in get_args(Method):
        raise ValueError(f"method {method!r} is unknown; valid are {', '.join(get_args(Method))}")
    _check_windows(model, windows)
    permutations = {}
    for name, (first, last) in windows.items():
        a = find_anchor((first, last), anchor)
        if method == "permute":
            if features is None:
                raise ValueError("features are missing; method 'permute' needs them to align")
            others = [i for i in range(first, last + 1) if i != a]
            permutations[name] = {i: align(features[name][a], features[name][i]) for i in others}
    return merge_aligned(model, windows, permutations)


def merge_aligned(
    model: nn.Module,
    windows: Mapping[str, Window],
    permutations: Mapping[str, Mapping[int, Tensor]],
) -> nn.Module:
    """Merge windows whose permutations are known: permute, average, tie (Eqs. 3-6).

    Args:
        model: left as it is.
        windows: as in `merge`.
        permutations: permutations[stack][i] (d_ff,) aligns sublayer i to the window's anchor; a
            sublayer without one, the anchor for instance, stays in its own order.

    Returns:
        A new model with tied sublayers.

    Raises:
        ValueError: as `merge`.
    """
    _check_windows(model, windows)
    model = copy.deepcopy(model)
    stacks = find_stacks(model)
    for name, (first, last) in windows.items():
        sublayers = stacks[name].sublayers
        known = permutations.get(name, {})
        aligned = []
        for i in range(first, last + 1):
            weights = sublayers[i].read()
            aligned.append(permute(weights, known[i]) if i in known else weights)
        sublayers[first].write(average(aligned))
        for i in range(first + 1, last + 1):
            sublayers[i].share(sublayers[first])
    return model


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, embeddings included, shared ones once (footnote 9)."""
    return sum(parameter.numel() for parameter in model.parameters())


def _check_windows(model: nn.Module, windows: Mapping[str, Window]) -> None:
    stacks = find_stacks(model)
    for name, window in windows.items():
        if name not in stacks:
            raise ValueError(f"stack {name!r} is unknown; valid are {', '.join(stacks)}")
        first, last = check_window(window, len(stacks[name]))
        inside = stacks[name].sublayers[first : last + 1]
        if len({(ff.d_ff, ff.is_gated) for ff in inside}) > 1:
            widths = ", ".join(str(ff.d_ff) for ff in inside)
            raise ValueError(
                f"window {format_window(window)} of the {name} holds FF sublayers of different "
                f"kind or width d_ff ({widths}); valid is one width in a window"
            )
