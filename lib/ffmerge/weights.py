"""The weights of one FF sublayer: permute its neurons, average several (paper, Section 3.3)."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ffmerge.alignment import to_exact


@dataclass(frozen=True)
class Weights:
    """The weights of one FF sublayer, always in the paper's layout (Section 3.3, Appendix A).

    Attributes:
        W_in: (d_ff, d_model).
        W_out: (d_model, d_ff).
        W_gate: (d_ff, d_model), the activated half of a gated FF; None in a plain one.
        b_in, b_gate: (d_ff,), or None where the model has no biases.
        b_out: (d_model,), or None.
    """

    W_in: Tensor
    W_out: Tensor
    W_gate: Tensor | None = None
    b_in: Tensor | None = None
    b_gate: Tensor | None = None
    b_out: Tensor | None = None


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


def select(weights: Weights, kept: Tensor) -> Weights:
    """Keep only some neurons of one FF sublayer, in the order given.

    Args:
        weights: the sublayer's weights.
        kept: (n_kept,) int64, the neurons that stay.

    Invariant: what the others add to the output is gone, and nothing else is.
    """
    return permute(weights, kept)


def average(sublayers: list[Weights]) -> Weights:
    """The mean of aligned sublayers, weight by weight (Eqs. 3-6).

    Summed in float64. Invariant: the average of identical sublayers is that sublayer, bit by bit.
    """
    means = {}
    for field in fields(Weights):
        values = [getattr(weights, field.name) for weights in sublayers]
        if values[0] is not None:
            mean = to_exact(torch.stack(values)).mean(0)
            means[field.name] = mean.to(values[0])
    return Weights(**means)
