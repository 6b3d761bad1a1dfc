"""What a compression will need of memory, told before it starts; and features that need half."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ffmerge.activations import Batch, Features, find_features, observe
from ffmerge.sublayers import find_stacks

HALF = torch.bfloat16  # with float32's range: nothing overflows, and correlations stay
PYTHON = 500_000_000  # bytes of the interpreter and its libraries, as measured


def estimate_memory(
    model: nn.Module, needs: Sequence[str], tokens: int, batch_tokens: int = 1024
) -> dict[str, int]:
    """What compressing a model will need of memory at the most, by what needs it.

    Args:
        model: the base.
        needs: of the method: "permutations", "calibration", both or none.
        tokens: of features, for permutations.
        batch_tokens: that run at a time.

    Returns:
        What needs it to bytes.
    """
    sublayers = [ff for stack in find_stacks(model).values() for ff in stack.sublayers]
    weights = count_bytes(model.parameters())
    changed = sum(ff.n_parameters for ff in sublayers) * next(model.parameters()).element_size()
    parts = {"Python": PYTHON, "the model": weights, "its compressed copy": weights + changed}
    if "permutations" in needs:
        parts["features"] = estimate_features(model, tokens, HALF)
        # of many candidates one after the other, a copy that is gone is not given back at once
        parts["its compressed copy"] += weights
    if "calibration" in needs:
        parts["second moments"] = estimate_moments(model, 2 if "permutations" in needs else 1)
    vocabulary = getattr(model.config, "vocab_size", None) or 0
    parts["a batch's outputs"] = (
        3 * 4 * batch_tokens * max(vocabulary, *(f.d_ff for f in sublayers))
    )
    return parts


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def estimate_features(model: nn.Module, tokens: int, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of the features of all FF sublayers.

    Args:
        model: any model that `find_stacks` knows.
        tokens: how many are collected.
        dtype: they are kept in.
    """
    widths = sum(ff.d_ff for stack in find_stacks(model).values() for ff in stack.sublayers)
    return tokens * widths * dtype.itemsize


def estimate_moments(model: nn.Module, factor: int = 1) -> int:
    """Bytes of the second moments of all FF sublayers while they are gathered, in float64.

    However many tokens are seen, it is the same: moments are streamed.

    Args:
        model: any model that `find_stacks` knows.
        factor: by how much they are wider than d_ff.
    """
    widths = [ff.d_ff for stack in find_stacks(model).values() for ff in stack.sublayers]
    sizes = [8 * (factor * width) ** 2 for width in widths]
    return sum(sizes) + 2 * max(sizes)  # one by one, sums become covariances; and a product


def collect_half(model: nn.Module, batches: Iterable[Batch], tokens: int = 10_000) -> Features:
    """Collect features as `collect_features` does, in less than half of the memory.

    Args:
        model, batches: as in `ffmerge.collect_features`.
        tokens: the most to keep of each stack; the last batch is cut.

    Returns:
        features["decoder"][i]: (n_tokens, d_ff), bfloat16 on CPU, padding left out.

    Raises:
        ValueError: fewer than two tokens.
    """
    # one block for each sublayer: many small pieces, joined at the end, would leave holes as large
    stacks = find_stacks(model)
    kept = {
        name: [torch.empty(tokens, ff.d_ff, dtype=HALF) for ff in stack.sublayers]
        for name, stack in stacks.items()
    }
    seen = {name: [0] * len(stack) for name, stack in stacks.items()}

    def keep(number: int, name: str, i: int, rows: Tensor) -> None:
        rows = rows[: tokens - seen[name][i]]
        kept[name][i][seen[name][i] : seen[name][i] + len(rows)] = rows.to("cpu", HALF)
        seen[name][i] += len(rows)

    observe(model, batches, tokens, [find_features], keep)
    return {name: [x[:n] for x, n in zip(kept[name], seen[name], strict=True)] for name in stacks}
