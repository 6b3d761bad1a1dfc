"""Batches scored one by one, here or shared among the processes that torchrun has started."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from tqdm import tqdm

from ffmerge.activations import Batch
from study.sharding import is_sharded

Found = TypeVar("Found")


@torch.no_grad()
def score_batches(
    model: nn.Module, batches: Iterable[Batch], score: Callable[[Any], Found], what: str
) -> list[Found]:
    """What each batch gives, in order; of several processes each scores every n-th batch.

    Where they share out the model's weights, which takes all of them, each scores every batch.

    Args:
        model: put into evaluation mode.
        batches: the same ones in all processes.
        score: from a batch to what is wanted of it, small, and on the CPU.
        what: for the progress bar.

    Returns:
        One value for each batch, in every process that of all.

    Raises:
        ValueError: no batches.

    Invariant: what one process gives, bit for bit: every batch is scored as a whole.
    """
    model.eval()
    several = distributed.is_available() and distributed.is_initialized()
    rank, n = (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)
    if rank == 0:  # one bar for all
        batches = tqdm(batches, desc=what, unit="batch", delay=5, leave=False)
    if several and is_sharded(model):
        rank, n = 0, 1
    found = {i: score(batch) for i, batch in enumerate(batches) if i % n == rank}
    if n > 1:
        parts = [None] * n
        distributed.all_gather_object(parts, found)
        found = {i: value for part in parts for i, value in part.items()}
    if not found:
        raise ValueError("there are no batches; valid is one example or more")
    return [found[i] for i in sorted(found)]
