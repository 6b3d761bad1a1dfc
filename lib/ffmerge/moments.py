"""First and second moments of what the sublayers read, streamed: nothing else is kept.

They are the evidence of least squares and of pruning neurons: how the hidden activations that
W_out reads vary together.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ffmerge.activations import Batch, observe
from ffmerge.sublayers import find_stacks

TOKENS_PER_NEURON = 50  # published calibrations saturate at about 25


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of one sublayer's hidden activations, which W_out reads.

    Attributes:
        mean: (d_ff,) float64.
        covariance: (d_ff, d_ff) float64, centred, over n tokens (not n - 1).
        n: tokens.
    """

    mean: Tensor
    covariance: Tensor
    n: int


class RunningMoments:
    """Moments chunk by chunk: float32 products around the first chunk's mean, summed in float64.

    Invariant: whatever the chunks, `value()` is what one pass over all rows gives, up to rounding.
    """

    def __init__(self) -> None:
        self.n = 0

    def update(self, rows: Tensor) -> None:
        """Add rows: (n, d)."""
        if self.n == 0:
            d, device = rows.shape[1], rows.device
            self.shift = rows.mean(0)
            self.sum = torch.zeros(d, dtype=torch.float64, device=device)
            self.products = torch.zeros(d, d, dtype=torch.float64, device=device)
        rows = rows - self.shift
        self.n += len(rows)
        self.sum += rows.sum(0, dtype=torch.float64)
        self.products += (rows.T @ rows).double()

    def value(self) -> Moments:
        """The moments of all rows so far, on the CPU."""
        mean = self.sum / self.n  # around the shift
        covariance = self.products / self.n - torch.outer(mean, mean)
        return Moments((mean + self.shift.double()).cpu(), covariance.cpu(), self.n)


def collect_moments(
    model: nn.Module, batches: Iterable[Batch], tokens: int | None = None
) -> dict[str, list[Moments]]:
    """Collect the moments of the hidden activations that every FF sublayer's W_out reads.

    Args:
        model: any model that `find_stacks` knows; left in evaluation mode.
        batches: keyword arguments for the model's forward.
        tokens: how many to see, counted as in `collect_features`; `find_tokens` if left out.

    Returns:
        moments[stack][i].

    Raises:
        ValueError: fewer than two tokens.
    """
    running = {
        name: [RunningMoments() for _ in stack.layers] for name, stack in find_stacks(model).items()
    }
    observe(
        model,
        batches,
        tokens or find_tokens(model),
        [lambda stack, i: (stack.sublayers[i].module("W_out"), True)],
        lambda place, stack, i, rows: running[stack][i].update(rows),
    )
    return {name: [moments.value() for moments in layers] for name, layers in running.items()}


def find_tokens(model: nn.Module) -> int:
    """How many tokens of calibration data are enough for a model's second moments."""
    widths = [ff.d_ff for stack in find_stacks(model).values() for ff in stack.sublayers]
    return TOKENS_PER_NEURON * max(widths)
