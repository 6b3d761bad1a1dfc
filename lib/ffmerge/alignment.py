"""Neuron alignment: the correlation of two sublayers' features and the permutation that
maximizes it (paper, Section 3.2).

A permutation p is an int64 vector: neuron p[i] of the other sublayer takes place i, beside
neuron i of the anchor. So `x_other[:, p]` matches `x_anchor`.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

CHUNK = 4096  # rows of features that are multiplied at a time


class RunningCorrelation:
    """The cross-correlation C of two sublayers' features, chunk by chunk (Eq. 1).

    Products of float32 chunks are summed in float64, around the first chunk's mean, so that large
    means cost no precision. All of it is on the chunks' device; sums on the CPU where that device
    has no float64.

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
            exact = {"dtype": torch.float64, "device": find_exact_device(x.device)}
            self.sum_x, self.sum_y = (torch.zeros(z.shape[1], **exact) for z in (x, y))
            self.sum_xx, self.sum_yy = torch.zeros_like(self.sum_x), torch.zeros_like(self.sum_y)
            self.sum_xy = torch.zeros(x.shape[1], y.shape[1], **exact)
        x, y = x.float() - self.shift_x, y.float() - self.shift_y
        self.n += len(x)
        self.sum_xy += (x.T @ y).to(self.sum_xy.device)
        x, y = x.to(self.sum_x.device), y.to(self.sum_y.device)
        self.sum_x += x.sum(0, dtype=torch.float64)
        self.sum_y += y.sum(0, dtype=torch.float64)
        self.sum_xx += x.square().sum(0, dtype=torch.float64)
        self.sum_yy += y.square().sum(0, dtype=torch.float64)

    def value(self) -> Tensor:
        """C: (d_x, d_y) float64 in [-1, 1], on the CPU; a dead (constant) neuron correlates 0.

        Raises:
            ValueError: fewer than two rows so far.
        """
        if self.n < 2:
            raise ValueError(f"features hold {self.n} tokens; valid are two or more")
        # in place: at d_ff 11,008 each matrix of this size weighs 1 GB
        C = torch.outer(self.sum_x, self.sum_y).div_(self.n)
        torch.sub(self.sum_xy, C, out=C)
        norm_x = _centered_norm(self.sum_x, self.sum_xx, self.n)
        norm_y = _centered_norm(self.sum_y, self.sum_yy, self.n)
        scale = torch.outer(norm_x, norm_y)
        C.div_(scale).masked_fill_(~(scale > 0), 0.0)  # never NaN
        return C.clamp_(-1, 1).cpu()


def correlate(
    x_anchor: Tensor, x_other: Tensor, chunk: int = CHUNK, device: str | torch.device | None = None
) -> Tensor:
    """Correlation of every neuron of the anchor with every neuron of another sublayer (Eq. 1).

    Args:
        x_anchor, x_other: features, (n_tokens, d_ff) each, the same tokens in the same order.
        chunk: rows per float32 matrix product.
        device: where products are computed, chunk by chunk; where the features are if left out.

    Returns:
        C: (d_ff, d_ff) float64, on the CPU; C[i, j] is neuron i of the anchor against neuron j of
        the other.

    Raises:
        ValueError: fewer than two tokens, another number of tokens, NaN or infinite features.
    """
    for name, x in (("x_anchor", x_anchor), ("x_other", x_other)):
        if not torch.isfinite(x).all():
            raise ValueError(f"{name} holds NaN or infinite values; valid are finite numbers")
    running = RunningCorrelation()
    for x, y in zip(x_anchor.split(chunk), x_other.split(chunk), strict=True):
        running.update(x.to(device), y.to(device))
    return running.value()


def find_exact_device(device: torch.device) -> torch.device:
    """Where float64 sums of a device's numbers are kept: there, or for Apple's on the CPU."""
    return torch.device("cpu") if device.type == "mps" else device


def to_exact(x: Tensor) -> Tensor:
    """The same numbers in float64, where `find_exact_device` says."""
    return x.to(find_exact_device(x.device)).double()


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


def _centered_norm(total: Tensor, total_of_squares: Tensor, n: int) -> Tensor:
    """Square root of a neuron's centred sum of squares; exactly 0 for a dead neuron."""
    centered = total_of_squares - total.square() / n
    rounding = 1e-12 * total_of_squares  # of a constant neuron, the shift leaves only this
    return torch.where(centered > rounding, centered, 0.0).sqrt()
