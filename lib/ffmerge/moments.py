"""First and second moments of what the sublayers read, streamed: nothing else is kept.

They are the evidence of least squares and of pruning neurons: how the hidden activations that
W_out reads vary together.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ffmerge.activations import Batch, FindPlace, Place, observe
from ffmerge.sublayers import Stack, find_depths, find_stacks

Key = tuple[str, int]  # stack, layer
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

    @property
    def second(self) -> Tensor:
        """E[x xᵀ], not centred: (d_ff, d_ff)."""
        return self.covariance + torch.outer(self.mean, self.mean)


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
    depths = find_depths(model)
    keys = [(name, i) for name, n in depths.items() for i in range(n)]
    found = gather_moments(model, batches, tokens, find_hidden, keys)
    return {name: [found[name, i] for i in range(n)] for name, n in depths.items()}


def gather_moments(
    model: nn.Module,
    batches: Iterable[Batch],
    tokens: int | None,
    place: FindPlace,
    keys: Iterable[Key],
    compute: Callable[[Key, Tensor], Tensor] = lambda key, x: x,
) -> dict[Key, Moments]:
    """The moments of what is seen, or computed from what is seen, at some FF sublayers.

    Args:
        model, batches, tokens: as in `collect_moments`.
        place: where to look, `find_inputs` or `find_hidden`.
        keys: stack and layer of each sublayer.
        compute: from a key and what is seen there, (n_tokens, width), to the rows that count.
    """
    running = {key: RunningMoments() for key in keys}

    def receive(number: int, name: str, i: int, x: Tensor) -> None:
        if (name, i) in running:
            running[name, i].update(compute((name, i), x))

    observe(model, batches, tokens or find_tokens(model), [place], receive)
    return {key: moments.value() for key, moments in running.items()}


def find_inputs(stack: Stack, i: int) -> Place:
    """What sublayer i reads: (n_tokens, d_model)."""
    return stack.sublayers[i].module("W_in"), True


def find_hidden(stack: Stack, i: int) -> Place:
    """The hidden activations of sublayer i, which its W_out reads: (n_tokens, d_ff)."""
    return stack.sublayers[i].module("W_out"), True


def find_tokens(model: nn.Module) -> int:
    """How many tokens of calibration data are enough for a model's second moments."""
    widths = [ff.d_ff for stack in find_stacks(model).values() for ff in stack.sublayers]
    return TOKENS_PER_NEURON * max(widths)
