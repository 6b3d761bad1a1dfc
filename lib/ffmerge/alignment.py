"""Neuron alignment: the correlation of two sublayers' features and the permutation that
maximizes it (paper, Section 3.2).

A permutation p is an int64 vector: neuron p[i] of the other sublayer takes place i, beside
neuron i of the anchor. So `x_other[:, p]` matches `x_anchor`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ffmerge.groups import Group

Pairs = dict[str, Tensor]  # "decoder.3.7": the permutation that aligns sublayer 7 to sublayer 3


class RunningCorrelation:
    """The cross-correlation C of two sublayers' features, chunk by chunk (Eq. 1).

    Products of float32 chunks are summed in float64, around the first chunk's mean, so that large
    means cost no precision.

    Invariant: whatever the chunks, `value()` is what `numpy.corrcoef` gives for all rows at once.
    """

    def __init__(self) -> None:
        self.n = 0

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows: x (n, d_x) of the anchor, y (n, d_y) of the other sublayer.

        Raises:
            ValueError: x and y are not of one length.
        """
        if len(x) != len(y):
            raise ValueError(f"x has {len(x)} tokens and y {len(y)}; valid is the same number")
        if self.n == 0:
            self.shift_x, self.shift_y = x.float().mean(0), y.float().mean(0)
            self.sum_x = torch.zeros(x.shape[1], dtype=torch.float64)
            self.sum_y = torch.zeros(y.shape[1], dtype=torch.float64)
            self.sum_xx, self.sum_yy = torch.zeros_like(self.sum_x), torch.zeros_like(self.sum_y)
            self.sum_xy = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64)
        x, y = x.float() - self.shift_x, y.float() - self.shift_y
        self.n += len(x)
        self.sum_x += x.sum(0, dtype=torch.float64)
        self.sum_y += y.sum(0, dtype=torch.float64)
        self.sum_xx += x.square().sum(0, dtype=torch.float64)
        self.sum_yy += y.square().sum(0, dtype=torch.float64)
        self.sum_xy += (x.T @ y).double()

    def value(self) -> Tensor:
        """C: (d_x, d_y) float64 in [-1, 1]; a dead (constant) neuron correlates 0, never NaN.

        Raises:
            ValueError: fewer than two rows so far.
        """
        if self.n < 2:
            raise ValueError(f"features hold {self.n} tokens; valid are two or more")
        covariance = self.sum_xy - torch.outer(self.sum_x, self.sum_y) / self.n
        norm_x = _centered_norm(self.sum_x, self.sum_xx, self.n)
        norm_y = _centered_norm(self.sum_y, self.sum_yy, self.n)
        scale = torch.outer(norm_x, norm_y)
        return torch.where(scale > 0, covariance / scale, 0.0).clamp(-1, 1)


def correlate(x_anchor: Tensor, x_other: Tensor, chunk: int = 4096) -> Tensor:
    """Correlation of every neuron of the anchor with every neuron of another sublayer (Eq. 1).

    Args:
        x_anchor, x_other: features, (n_tokens, d_ff) each, the same tokens in the same order.
        chunk: rows per float32 matrix product.

    Returns:
        C: (d_ff, d_ff) float64; C[i, j] is neuron i of the anchor against neuron j of the other.

    Raises:
        ValueError: fewer than two tokens, another number of tokens, NaN or infinite features.
    """
    for name, x in (("x_anchor", x_anchor), ("x_other", x_other)):
        if not torch.isfinite(x).all():
            raise ValueError(f"{name} holds NaN or infinite values; valid are finite numbers")
    running = RunningCorrelation()
    for x, y in zip(x_anchor.split(chunk), x_other.split(chunk), strict=True):
        running.update(x, y)
    return running.value()


def solve_assignment(C: Tensor) -> Tensor:
    """The permutation with the largest total correlation, the sum of C[i, p[i]] (Eq. 2).

    scipy's Jonker-Volgenant solver, as in the paper (Crouse, 2016): exact, O(d_ff³).

    Args:
        C: (d_ff, d_ff) correlation.

    Returns:
        p: (d_ff,) int64.

    Raises:
        ValueError: C is not square: the two sublayers differ in d_ff.
    """
    if C.ndim != 2 or C.shape[0] != C.shape[1]:
        raise ValueError(
            f"correlation has shape {tuple(C.shape)}; valid is (d_ff, d_ff): sublayers that "
            "are aligned must be of one width"
        )
    _, columns = linear_sum_assignment(C.numpy(), maximize=True)
    return torch.from_numpy(columns.astype(np.int64))


def align(x_anchor: Tensor, x_other: Tensor) -> Tensor:
    """The permutation of another sublayer's neurons that best matches the anchor's (Section 3.2).

    Args:
        x_anchor, x_other: features, (n_tokens, d_ff) each.

    Returns:
        p: (d_ff,) int64; `x_other[:, p]` matches `x_anchor`.

    Invariant: a planted permutation of the anchor's own neurons is recovered exactly.
    """
    return solve_assignment(correlate(x_anchor, x_other))


def invert(p: Tensor) -> Tensor:
    """The permutation that undoes p: aligning the anchor to the other instead."""
    return torch.argsort(p)


class LazyPairs(dict[str, Tensor]):
    """The permutations of all pairs of a stack's sublayers, each aligned when it is asked for.

    Most methods ask for a few of them: those within the windows that they try.
    """

    def __init__(self, features: Mapping[str, Sequence[Tensor]]) -> None:
        """Args: features[stack][i] (n_tokens, d_ff) of every sublayer."""
        super().__init__()
        self._features = {
            pair_name(name, a, b): (layers[a], layers[b])
            for name, layers in features.items()
            for b in range(len(layers))
            for a in range(b)
        }

    def __contains__(self, name: object) -> bool:
        return name in self._features

    def __missing__(self, name: str) -> Tensor:
        self[name] = align(*self._features[name])
        return self[name]


def pair_name(stack: str, anchor: int, other: int) -> str:
    """How the permutation of a pair of sublayers is called in the file of all pairs."""
    return f"{stack}.{anchor}.{other}"


def save_pairs(pairs: Pairs, path: Path) -> None:
    """Write the permutations of all pairs, 32 bits a neuron."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: p.to(torch.int32) for name, p in sorted(pairs.items())}, path)


def load_pairs(path: Path) -> Pairs:
    """Read the permutations of all pairs as int64 vectors."""
    return {name: p.long() for name, p in load_file(path).items()}


def select_permutations(
    pairs: Pairs, groups: Mapping[str, tuple[Group, ...]]
) -> dict[str, dict[int, Tensor]]:
    """The permutations that align groups to their anchors, from those of all pairs.

    A pair that is known the other way round is inverted: it is the same assignment problem.

    Args:
        pairs: one permutation for each pair, by its name.
        groups: stack to groups.

    Returns:
        permutations[stack][i]: (d_ff,); anchors have none.

    Raises:
        ValueError: a pair of a group has no permutation.
    """
    permutations: dict[str, dict[int, Tensor]] = {}
    for stack, a, i in (
        (name, g.anchor, i) for name in groups for g in groups[name] for i in g.others
    ):
        if pair_name(stack, a, i) in pairs:
            p = pairs[pair_name(stack, a, i)]
        elif pair_name(stack, i, a) in pairs:
            p = invert(pairs[pair_name(stack, i, a)])
        else:
            raise ValueError(
                f"sublayers {a} and {i} of the {stack} have no permutation; valid are pairs that "
                "were aligned before"
            )
        permutations.setdefault(stack, {})[i] = p
    return permutations


def _centered_norm(total: Tensor, total_of_squares: Tensor, n: int) -> Tensor:
    """Square root of a neuron's centred sum of squares; exactly 0 for a dead neuron."""
    centered = total_of_squares - total.square() / n
    rounding = 1e-12 * total_of_squares  # of a constant neuron, the shift leaves only this
    return torch.where(centered > rounding, centered, 0.0).sqrt()
