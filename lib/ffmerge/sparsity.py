"""Sparse weights: zeros in every projection of every layer, by Wanda's score."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers.pytorch_utils import Conv1D

from ffmerge.activations import Batch, run_batch
from ffmerge.alignment import to_exact
from ffmerge.masks import check_batch, take_tokens, token_masks
from ffmerge.patches import Plan
from ffmerge.sublayers import PROJECTIONS, find_stacks


def list_sparse_plans(count: int) -> list[Plan]:
    """The one plan: nothing of the structure goes, half of the weights do, and no other share.

    Raises:
        ValueError: another share than 50 %.
    """
    if count != 50:
        raise ValueError(f"{count} % of weights is asked for; valid is 50")
    return [Plan()]


def prune_weights(
    model: nn.Module, batches: Iterable[Batch], tokens: int, keep: int, of: int | None = None
) -> dict[str, Tensor]:
    """The weights that matter least in each projection of the layers, attention included, become 0.

    Wanda's score is |W_ij| ‖x_j‖, ‖x_j‖ the norm of input j over the calibration data; the highest
    are kept in each output's row (Sun et al., 2024).

    Args:
        model: the base; left as it is.
        batches: calibration data.
        tokens: how many to see, counted in the first stack; where batches hold no mask, as of
            images, how many examples.
        keep, of: keep so many weights of every so many neighbours in a row; without `of` keep so
            many percent of the row.

    Returns:
        Full parameter names to the weights with zeros, in the modules' own layout.
    """
    norms = measure_inputs(model, batches, tokens)
    pruned = {}
    for name, squares in norms.items():
        module = model.get_submodule(name)
        is_transposed = isinstance(module, Conv1D)
        weight = module.weight.detach().T if is_transposed else module.weight.detach()
        score = weight.abs().cpu().double() * squares.sqrt()  # (n_outputs, n_inputs)
        n_inputs = score.shape[1]
        size, n = (n_inputs, round(n_inputs * keep / 100)) if of is None else (of, keep)
        if n_inputs % size:
            raise ValueError(f"{name} has {n_inputs} inputs; valid are multiples of {size}")
        blocks = score.reshape(len(score), -1, size)
        best = blocks.topk(n, dim=-1).indices
        mask = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, best, True)
        sparse = torch.where(mask.reshape(score.shape).to(weight.device), weight, 0)
        pruned[f"{name}.weight"] = (sparse.T if is_transposed else sparse).contiguous()
    return pruned


@torch.no_grad()
def measure_inputs(model: nn.Module, batches: Iterable[Batch], tokens: int) -> dict[str, Tensor]:
    """The sum of squares of every input of every projection in the layers, padding left out.

    Args:
        model: any model that `find_stacks` knows.
        batches: keyword arguments for its forward.
        tokens: as in `prune_weights`.

    Returns:
        Module names to (n_inputs,) float64.
    """
    stacks, sums, handles = find_stacks(model), {}, []
    masks: dict[str, Tensor | None] = {}
    seen = 0

    def watch(name: str, stack: str, module: nn.Module) -> None:
        def see(module: nn.Module, args: tuple) -> None:
            x = args[0].detach()  # (batch, length, n_inputs)
            n, known = x[..., 0].numel(), (masks[stack], *masks.values())
            fits = [mask for mask in known if mask is None or mask.numel() == n]
            rows = take_tokens(x, fits[0] if fits else masks[stack], stack)
            sums[name] = sums.get(name, 0) + to_exact(rows).square().sum(0).cpu()

        handles.append(module.register_forward_pre_hook(see))

    for stack in stacks.values():
        for name, module in model.get_submodule(stack.path).named_modules():
            if isinstance(module, PROJECTIONS):
                watch(f"{stack.path}.{name}", stack.name, module)
    try:
        first = next(iter(stacks))
        with tqdm(total=tokens, desc="tokens", unit="token") as bar:
            for batch in batches:
                check_batch(batch)
                masks |= token_masks(model, batch)
                run_batch(model, batch)
                mask = masks[first]
                seen += int(mask.sum()) if mask is not None else len(next(iter(batch.values())))
                bar.update(seen - bar.n)
                if seen >= tokens:
                    break
    finally:
        for handle in handles:
            handle.remove()
    return sums
