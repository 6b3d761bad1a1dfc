"""What a model costs: FLOPs of a forward pass, and bytes of weights that are mostly zero."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ffmerge.activations import Batch, run_batch
from ffmerge.sublayers import find_stacks

FUSED_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch counts GPUs' only


def count_flops(model: nn.Module, batch: Batch) -> float:
    """FLOPs of a forward pass per token: two for each multiply-add of every matrix product.

    Shared sublayers count at each place where they run: sharing saves bytes, not time. Softmax,
    norms and activations are left out, as everywhere.

    Args:
        model: any model that `find_stacks` knows.
        batch: keyword arguments for its forward; padding counts as tokens, on both sides.

    Returns:
        FLOPs divided by the positions of the first stack: of an encoder-decoder those of its
        encoder, so that it counts a source token with its share of the target.
    """
    with FlopCounterMode(display=False, custom_mapping={FUSED_ON_CPU: _count_fused}) as counter:
        n = count_positions(model, batch)
    return counter.get_total_flops() / n


@torch.no_grad()
def count_positions(model: nn.Module, batch: Batch) -> int:
    """How many positions of a batch pass through the first stack: tokens, or patches and more."""
    seen = []
    first = next(iter(find_stacks(model).values())).layers[0]
    handle = first.register_forward_hook(
        lambda module, args, out: seen.append((out[0] if isinstance(out, tuple) else out).shape)
    )
    try:
        run_batch(model, batch)
    finally:
        handle.remove()
    return seen[0][0] * seen[0][1]


def _count_fused(query, key, value, *args, out_shape=None, **kwargs) -> int:
    """FLOPs of fused attention, from the shapes of its inputs."""
    return sdpa_flop_count(query, key, value)


def count_sparse_bytes(model: nn.Module) -> int:
    """Bytes of a model whose weights with zeros are stored as their other values and a bit map.

    One bit for each number of such a weight says whether it is there; 2:4 sparsity as GPUs store it
    takes the same (two bits for each of two values of four). Weights without zeros are stored
    as they are; shared ones once.
    """
    total = 0
    for tensor in model.parameters():
        n_zeros = int((tensor == 0).sum())
        dense = tensor.numel() * tensor.element_size()
        sparse = (tensor.numel() - n_zeros) * tensor.element_size() + -(-tensor.numel() // 8)
        total += min(dense, sparse)
    return total
