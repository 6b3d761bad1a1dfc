"""What a compressed sublayer still gives: how far its signals spread, and how far they are off."""

from collections.abc import Iterable

from torch import Tensor, nn

from ffmerge.activations import Batch, observe
from ffmerge.alignment import to_exact
from ffmerge.moments import Moments, find_hidden
from ffmerge.sublayers import find_stacks
from ffmerge.weights import Weights

PLACES = ("hidden", "output")  # what W_out reads, and what it puts out


class RunningSpread:
    """Total standard deviation chunk by chunk: summed in float64, around the first chunk's mean."""

    def __init__(self) -> None:
        self.n = 0

    def update(self, rows: Tensor) -> None:
        """Add rows: (n, d)."""
        if self.n == 0:
            self.shift = rows.mean(0)
            self.sum, self.squares = to_exact(rows.new_zeros(2, rows.shape[1]))
        rows = to_exact(rows - self.shift)
        self.n += len(rows)
        self.sum += rows.sum(0)
        self.squares += rows.square().sum(0)

    def mean(self) -> Tensor:
        """The mean of each of d, (d,) in float64."""
        return self.shift + self.sum / self.n

    def value(self) -> float:
        """The square root of the variances' sum over all d."""
        variance = self.squares / self.n - (self.sum / self.n).square()
        return float(variance.clamp(min=0).sum().sqrt())


def measure_spread(
    model: nn.Module, batches: Iterable[Batch], tokens: int
) -> list[tuple[str, int, str, float]]:
    """How far the signals of every FF sublayer vary from token to token.

    Where averaged neurons were strangers they cancel out, and little is left that varies: the
    variance collapse of merged networks (REPAIR: Jordan et al., 2023).

    Args:
        model: the base, or a variant of it.
        batches: keyword arguments for its forward.
        tokens: how many to see.

    Returns:
        (stack, layer, "hidden" or "output", standard deviation, total over neurons or d_model).

    Invariant: permuting a sublayer's neurons changes neither.
    """
    running = {
        (name, i, place): RunningSpread()
        for name, stack in find_stacks(model).items()
        for i in range(len(stack))
        for place in PLACES
    }
    observe(
        model,
        batches,
        tokens,
        [
            find_hidden,
            lambda stack, i: (stack.sublayers[i].module("W_out"), False),
        ],
        lambda place, name, i, rows: running[name, i, PLACES[place]].update(rows),
    )
    return [(*key, spread.value()) for key, spread in running.items()]


def measure_error(weights: Weights, small: Weights, kept: Tensor, moments: Moments) -> float:
    """The squared error of a pruned sublayer's output over the variance of the whole one's.

    E‖W_out H + b_out - W_out' H[kept] - b_out'‖² needs the moments of H alone.

    Args:
        weights: of the whole sublayer.
        small: of the pruned one, whose neurons do what they did.
        kept: (n_kept,) int64, which they are.
        moments: of the whole one's hidden activations.

    Returns:
        0 where nothing is lost; 1 is what the mean alone would lose.
    """
    W = weights.W_out.cpu().double()
    lost = W.clone()  # (d_model, d_ff)
    lost[:, kept] -= small.W_out.cpu().double()
    mean = lost @ moments.mean
    if weights.b_out is not None:
        mean += (weights.b_out - small.b_out).cpu().double()
    error = _quadratic(lost, moments.covariance) + mean.square().sum()
    return float(error / _quadratic(W, moments.covariance))


def _quadratic(W: Tensor, C: Tensor) -> Tensor:
    """The trace of W C Wᵀ."""
    return ((W @ C) * W).sum()
