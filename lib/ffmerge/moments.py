"""First and second moments of what the sublayers read, streamed: nothing else is kept.

They are the evidence of least squares and of pruning neurons: how the hidden activations that
W_out reads vary together.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ffmerge.activations import Batch, FindPlace, Place, observe, peek
from ffmerge.alignment import find_exact_device
from ffmerge.spilling import spill
from ffmerge.sublayers import Stack, find_depths, find_stacks

Key = tuple[str, int]  # stack, layer
Compute = Callable[[Key, Tensor], tuple[Tensor, ...]]
Observe = Callable[..., None]  # as `ffmerge.activations.observe`
BUDGET = 8 * 10**9  # bytes
TOKENS_PER_NEURON = 50  # published calibrations saturate at about 25


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of what W_out reads of one sublayer (or of what its FF reads).

    Attributes:
        mean: (d_ff,) float64; of what stands beside them too, (d_ff + d_beside,).
        covariance: (d_ff, d_ff) float64, centred, over n tokens (not n - 1); with what stands
            beside them (d_ff, d_ff + d_beside).
        n: tokens.
    """

    mean: Tensor
    covariance: Tensor
    n: int

    @property
    def second(self) -> Tensor:
        """E[x xᵀ], not centred: as `covariance`."""
        return self.covariance + torch.outer(self.mean[: len(self.covariance)], self.mean)


class RunningMoments:
    """Moments chunk by chunk: float32 products around the first chunk's mean, summed in float64.

    Invariant: whatever the chunks, `value()` is what one pass over all rows gives, up to rounding.
    """

    def __init__(self) -> None:
        self.n = 0

    def update(self, rows: Tensor, beside: Tensor | None = None) -> None:
        """Add rows, (n, d), and what stands beside them, (n, d_beside), if anything does."""
        d, rows = rows.shape[1], rows if beside is None else torch.cat([rows, beside], 1)
        if self.n == 0:
            width, self.shift = rows.shape[1], rows.mean(0)
            exact = {"dtype": torch.float64, "device": find_exact_device(rows.device)}
            self.sum, self.products = torch.zeros(width, **exact), torch.zeros(d, width, **exact)
        rows = rows - self.shift
        self.n += len(rows)
        self.products += (rows[:, :d].T @ rows).to(self.products.device)
        self.sum += rows.to(self.sum.device).sum(0, dtype=torch.float64)

    def value(self) -> Moments:
        """The moments of all rows so far, on the CPU."""
        mean = self.sum / self.n  # around the shift
        covariance = torch.outer(mean[: len(self.products)], mean)
        torch.sub(self.products / self.n, covariance, out=covariance)  # a large one less
        return Moments((mean + self.shift.to(mean)).cpu(), covariance.cpu(), self.n)


def collect_moments(
    model: nn.Module, batches: Iterable[Batch], tokens: int | None = None
) -> dict[str, list[Moments]]:
    """Collect the moments of the hidden activations that every FF sublayer's W_out reads.

    Args:
        model: any model that `find_stacks` knows.
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
    compute: Compute = lambda key, x: (x,),
    budget: int = BUDGET,
    observe: Observe = observe,
) -> dict[Key, Moments]:
    """The moments of what is seen, or computed from what is seen, at some FF sublayers.

    Where a budget of memory does not hold all, the data pass several times, for some sublayers
    each, and what is done is put on disk (`ffmerge.spilling`).

    Args:
        model, batches, tokens: as in `collect_moments`.
        place: where to look, `find_inputs` or `find_hidden`.
        keys: stack and layer of each sublayer.
        compute: from a key and what is seen there, (n_tokens, width), to the rows that count, and
            to what stands beside them.
        budget: bytes.
        observe: what runs the model, or what kept what was seen (`ffmerge.spilling.Kept`).

    Raises:
        ValueError: the budget does not hold one sublayer's.

    Invariant: the budget changes no number.
    """
    keys, tokens = list(keys), tokens or find_tokens(model)
    first, batches = peek(batches)
    size = _count_at_once(model, keys, first, place, compute, budget)
    if size >= len(keys):
        return _gather(model, batches, tokens, place, keys, compute, observe)
    used: list[Batch] = []  # by the first pass, for those after it
    batches, found = _remember(batches, used), {}
    for start in range(0, len(keys), size):
        given, part = used if start else batches, keys[start : start + size]
        gathered = _gather(model, given, tokens, place, part, compute, observe)
        found |= {key: _spill(gathered.pop(key)) for key in part}
    return found


def _gather(
    model: nn.Module,
    batches: Iterable[Batch],
    tokens: int,
    place: FindPlace,
    keys: list[Key],
    compute: Compute,
    observe: Observe,
) -> dict[Key, Moments]:
    """As `gather_moments`, in one pass."""
    running = {key: RunningMoments() for key in keys}

    def receive(number: int, name: str, i: int, x: Tensor) -> None:
        if (name, i) in running:
            running[name, i].update(*compute((name, i), x))

    observe(model, batches, tokens, [place], receive)
    return {key: running.pop(key).value() for key in keys}  # never sums and covariances of all


def _count_at_once(
    model: nn.Module,
    keys: list[Key],
    batch: Batch | None,
    place: FindPlace,
    compute: Compute,
    budget: int,
) -> int:
    """How many sublayers' moments a budget of memory holds while they are gathered.

    Raises:
        ValueError: not even one's.
    """
    widest = max(ff.d_ff for stack in find_stacks(model).values() for ff in stack.sublayers)
    if len(keys) * 8 * (2 * widest) ** 2 <= budget or batch is None:  # at most twice as wide
        return len(keys)
    sizes = []

    def receive(number: int, name: str, i: int, x: Tensor) -> None:
        if (name, i) in keys:
            widths = [part.shape[1] for part in compute((name, i), x[:1])]
            sizes.append((widths[0], sum(widths)))

    observe(model, [batch], 1, [place], receive)
    return min(len(keys), count_room(*max(sizes), budget))


def count_room(rows: int, columns: int, budget: int = BUDGET) -> int:
    """How many second moments of one shape a budget of memory holds while they are gathered.

    Args:
        rows, columns: of one.
        budget: bytes.

    Raises:
        ValueError: not even one.
    """
    one = 8 * rows * columns
    room = budget // one - 2  # and a product, in float32 and 64
    if room < 1:
        shape, least = f"{rows:,} × {columns:,}", 3 * one / 1e9
        raise ValueError(
            f"budget is {budget / 1e9:.1f} GB; valid are {least:.1f} GB and more for second "
            f"moments of {shape} numbers"
        )
    return room


def _remember(batches: Iterable[Batch], used: list[Batch]) -> Iterator[Batch]:
    for batch in batches:
        used.append(batch)
        yield batch


def _spill(moments: Moments) -> Moments:
    kept = spill({"mean": moments.mean, "covariance": moments.covariance})
    return replace(moments, **kept)


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
