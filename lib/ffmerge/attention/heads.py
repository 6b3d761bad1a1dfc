"""The heads of one self-attention sublayer: reorder them, and the dimensions inside them.

What a neuron is to an FF sublayer, a head is to attention: what is told apart by its place alone.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ffmerge.alignment import to_exact


@dataclass(frozen=True)
class HeadWeights:
    """The weights of one self-attention sublayer, heads one after the other in rows and columns.

    Attributes:
        W_q: (n_heads × d_head, d_model).
        W_k, W_v: (n_groups × d_head, d_model); n_groups is n_heads, or less where several heads
            share keys and values (grouped-query attention).
        W_o: (d_model, n_heads × d_head).
        b_q, b_k, b_v, b_o: of as many numbers as rows, or None where the model has no biases.
    """

    W_q: Tensor
    W_k: Tensor
    W_v: Tensor
    W_o: Tensor
    b_q: Tensor | None = None
    b_k: Tensor | None = None
    b_v: Tensor | None = None
    b_o: Tensor | None = None


@dataclass(frozen=True)
class HeadOrder:
    """Where the heads of a sublayer go, and the dimensions of their values inside them.

    Attributes:
        heads: (n_heads,) int64; head heads[i] moves to place i, a group as a whole.
        dims: (n_groups, d_head) int64; of the values that move to place g, dimension dims[g, i]
            moves to place i.
    """

    heads: Tensor
    dims: Tensor

    @property
    def moves_heads(self) -> bool:
        """Whether any head changes its place; if none does, queries and keys stay as they are."""
        return not torch.equal(self.heads, torch.arange(len(self.heads)))

    def rows(self) -> dict[str, Tensor]:
        """Which rows of W_q, W_k and W_v, and which columns of W_o, take each place."""
        n_groups, d_head = self.dims.shape
        per_group = len(self.heads) // n_groups
        groups, inside = self.heads[::per_group] // per_group, torch.arange(d_head)
        dims = self.dims.repeat_interleave(per_group, 0)
        starts = {"q": self.heads, "k": groups, "v": groups, "o": self.heads}
        places = {"q": inside, "k": inside, "v": self.dims, "o": dims}
        return {key: (starts[key][:, None] * d_head + places[key]).flatten() for key in starts}


def permute_heads(weights: HeadWeights, order: HeadOrder) -> HeadWeights:
    """Reorder the heads of one self-attention sublayer, and the values' dimensions inside them.

    Args:
        weights: the sublayer's weights.
        order: of this sublayer.

    Returns:
        The reordered weights; b_o is not touched, it adds to the sum over heads.

    Invariant: the sublayer computes the same function as before.
    """
    rows = order.rows()
    moved = {f"W_{key}": getattr(weights, f"W_{key}")[rows[key]] for key in "qkv"}
    biases = {f"b_{key}": getattr(weights, f"b_{key}") for key in "qkv"}
    moved |= {name: None if b is None else b[rows[name[-1]]] for name, b in biases.items()}
    return replace(weights, W_o=weights.W_o[:, rows["o"]], **moved)


def average_values(sublayers: list[HeadWeights]) -> HeadWeights:
    """The first sublayer's queries and keys, with the mean of all values and output projections.

    Summed in float64. Invariant: of identical sublayers it is that sublayer, bit by bit.
    """
    means = {}
    for name in (field.name for field in fields(HeadWeights) if field.name[-1] in "vo"):
        values = [getattr(weights, name) for weights in sublayers]
        if values[0] is not None:
            mean = to_exact(torch.stack(values)).mean(0)
            means[name] = mean.to(values[0])
    return replace(sublayers[0], **means)
