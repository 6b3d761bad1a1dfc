"""How far layers turn the residual stream: what drops layers without scoring each candidate."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ffmerge.activations import Batch, run_batch
from ffmerge.alignment import to_exact
from ffmerge.masks import take_tokens, token_masks
from ffmerge.sublayers import find_stacks

TOKENS = 10_000


@torch.no_grad()
def measure_turns(
    model: nn.Module,
    batches: Iterable[Batch],
    measure: Callable[[Tensor], Tensor],
    n: int = 1,
    tokens: int = TOKENS,
) -> dict[str, Tensor]:
    """Compare the residual stream before and after every run of n layers.

    Args:
        model: any model that `find_stacks` knows.
        batches: keyword arguments for its forward.
        measure: cosines (n_tokens,) to what is averaged: `torch.arccos` for the angle (Gromov et
            al., 2024), 1 - cosine for Block Influence (ShortGPT).
        n: layers in a run.
        tokens: how many to see, counted in the first stack.

    Returns:
        turns[stack][i]: the mean over tokens for layers i to i + n - 1, float64.
    """
    stacks = find_stacks(model)
    streams: dict[tuple[str, int], Tensor] = {}
    sums = {name: torch.zeros(len(s) - n + 1, dtype=torch.float64) for name, s in stacks.items()}
    seen = dict.fromkeys(stacks, 0)
    handles = []

    def keep(key: tuple[str, int], x: Tensor | tuple[Tensor, ...]) -> None:
        x = x[0] if isinstance(x, tuple) else x  # (batch, length, d_model)
        streams[key] = x.detach().clone()  # layers may add to it in place

    for name, stack in stacks.items():
        for i, layer in enumerate(stack.layers):
            handles.append(
                layer.register_forward_pre_hook(
                    lambda m, args, kwargs, key=(name, i): keep(
                        key, args[0] if args else kwargs["hidden_states"]
                    ),
                    with_kwargs=True,
                )
            )
        last = (name, len(stack))
        handles.append(layer.register_forward_hook(lambda m, args, out, key=last: keep(key, out)))
    try:
        for batch in batches:
            run_batch(model, batch)
            for name, mask in token_masks(model, batch).items():
                if name not in stacks:
                    continue
                for i in range(len(sums[name])):
                    cosine = cosine_similarity(streams[name, i], streams[name, i + n], dim=-1)
                    chosen = take_tokens(cosine[..., None], mask, name)  # (n_tokens, 1)
                    sums[name][i] += measure(to_exact(chosen.clamp(-1, 1))).sum().cpu()
                seen[name] += chosen.numel()
            if seen[next(iter(stacks))] >= tokens:
                break
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / seen[name] for name, total in sums.items()}
