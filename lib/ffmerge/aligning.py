"""Many pairs of sublayers aligned at a time, within a budget of memory (paper, Section 3.2)."""

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ffmerge.alignment import CHUNK, correlate, solve_assignment
from ffmerge.groups import Pair

BUDGET = 8 * 10**9  # bytes


@dataclass(frozen=True)
class AlignedPair:
    """Two sublayers of a stack, the second one aligned to the first.

    Attributes:
        stack, a, b: which ones.
        permutation: (d_ff,) int64, of b's neurons.
        before: mean correlation of the neurons in one place.
        after: mean correlation of the neurons that are matched.
    """

    stack: str
    a: int
    b: int
    permutation: Tensor
    before: float
    after: float


def align_pairs(
    features: Mapping[str, Sequence[Tensor]],
    pairs: Sequence[Pair],
    *,
    device: str | torch.device | None = None,
    budget: int = BUDGET,
) -> Iterator[AlignedPair]:
    """Align pairs of sublayers, the same in every stack (Section 3.2), within a budget of memory.

    Correlations follow one another, on a GPU if there is one; meanwhile the assignment problems of
    earlier pairs are solved, as many at a time as there are cores and room for. A pair's features
    are read when it is its turn.

    Args:
        features: features[stack][i] (n_tokens, d_ff), in memory or recorded on disk.
        pairs: of layers; neighbours in the list that share their first one read it once.
        device: as in `correlate`.
        budget: bytes for what a pair needs, besides features that are in memory anyway.

    Yields:
        Pairs in the order given, stack by stack.

    Raises:
        ValueError: the budget is too small for one pair; as `correlate` and `solve_assignment`.

    Invariant: what comes out depends neither on the budget nor on the number of cores.
    """
    for stack, layers in features.items():
        workers = count_workers(*layers[0].shape, layers[0].element_size(), budget)
        waiting: deque[Future[AlignedPair]] = deque()
        first = None
        with (
            ThreadPoolExecutor(workers) as pool,
            tqdm(total=len(pairs), desc=f"align {stack}", unit="pair") as bar,
        ):
            for a, b in pairs:
                if first is None or first[0] != a:
                    first = (a, layers[a])
                C = correlate(first[1], layers[b], device=device)
                waiting.append(pool.submit(_solve, stack, a, b, C))
                del C
                while len(waiting) > workers or (waiting and waiting[0].done()):
                    yield waiting.popleft().result()
                    bar.update()
            while waiting:
                yield waiting.popleft().result()
                bar.update()


def count_workers(n_tokens: int, d_ff: int, itemsize: int, budget: int = BUDGET) -> int:
    """How many assignment problems are solved at a time: as cores and memory allow.

    Args:
        n_tokens, d_ff: of the features.
        itemsize: bytes of one feature.
        budget: bytes.

    Raises:
        ValueError: not even one fits.
    """
    matrix = 8 * d_ff**2  # float64
    features = 2 * n_tokens * d_ff * itemsize + 6 * CHUNK * d_ff * 4
    correlation = 4 * matrix  # sums, a product in float32 and 64, the scale
    problem = 2 * matrix  # C, and scipy's copy
    room = budget - features - correlation
    if room < problem:
        need = (features + correlation + problem) / 1e9
        raise ValueError(
            f"budget is {budget / 1e9:.1f} GB; valid are {need:.1f} GB and more for a pair of "
            f"{d_ff:,} neurons on {n_tokens:,} tokens"
        )
    return min(os.cpu_count() or 1, room // problem)


def _solve(stack: str, a: int, b: int, C: Tensor) -> AlignedPair:
    p = solve_assignment(C)
    matched = C[torch.arange(len(p)), p].mean()
    return AlignedPair(stack, a, b, p, float(C.diagonal().mean()), float(matched))
