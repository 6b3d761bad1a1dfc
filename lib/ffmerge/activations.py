"""What the sublayers compute on exemplar data: features to align, outputs to compare.

One forward pass over ~10k tokens or patches is enough for every window (paper, Section 3.4).
"""

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ffmerge.sublayers import Stack, find_stacks

Batch = dict[str, Tensor]
Features = dict[str, list[Tensor]]
Place = tuple[nn.Module, bool]  # a module, and whether its input (or else its output) is wanted


def collect_features(model: nn.Module, batches: Iterable[Batch], tokens: int = 10_000) -> Features:
    """Collect the features of every FF sublayer (Section 3.3; Appendix A for gated FFs).

    Features are what W_in puts out, just before the activation; in a gated FF they are the
    component-wise product that W_out reads.

    Args:
        model: any model that `find_stacks` knows; left in evaluation mode.
        batches: keyword arguments for the model's forward.
        tokens: how many tokens (for images: patches and class tokens) to collect, counted in the
            first stack: an encoder-decoder counts its source side. The last batch is kept whole;
            where the batches end before, a warning tells both numbers.

    Returns:
        features["decoder"][i]: (n_tokens, d_ff), float32 on CPU, padding left out.

    Raises:
        ValueError: fewer than two tokens, or a feature that is NaN or infinite.
    """

    def place(stack: Stack, i: int) -> Place:
        ff = stack.sublayers[i]
        return (ff.module("W_out"), True) if ff.is_gated else (ff.module("W_in"), False)

    (features,) = _collect(model, batches, tokens, [place])
    for name, layers in features.items():
        for i, x in enumerate(layers):
            if not torch.isfinite(x).all():
                raise ValueError(
                    f"features of FF sublayer {i} of the {name} hold NaN or infinite values; "
                    "valid are finite numbers: check the model's weights and dtype"
                )
    return features


def collect_outputs(
    model: nn.Module, batches: Iterable[Batch], tokens: int = 10_000
) -> tuple[Features, Features]:
    """Collect the outputs of every FF and self-attention sublayer, before the residual sum.

    They are what CKA compares in Section 5.6 (FF) and Appendix G (attention).

    Args:
        model, batches, tokens: as in `collect_features`.

    Returns:
        FF outputs and attention outputs, each [stack][i]: (n_tokens, d_model), float32 on CPU.
    """
    ff, attention = _collect(
        model,
        batches,
        tokens,
        [
            lambda stack, i: (stack.sublayers[i].module("W_out"), False),
            lambda stack, i: (stack.attention_outputs()[i], False),
        ],
    )
    return ff, attention


def token_masks(model: nn.Module, batch: Batch) -> dict[str, Tensor | None]:
    """Which positions of a batch are tokens and not padding, for each stack.

    Returns:
        {stack: (batch, length) bool, or None where every position counts, as in images}.
    """
    attention = batch.get("attention_mask")
    mask = None if attention is None else attention.bool()
    if not getattr(model.config, "is_encoder_decoder", False):
        return {"encoder": mask, "decoder": mask}
    if "decoder_attention_mask" in batch:
        return {"encoder": mask, "decoder": batch["decoder_attention_mask"].bool()}
    return {"encoder": mask, "decoder": batch["labels"] != -100}  # the loss's mark for padding


@torch.no_grad()
def _collect(
    model: nn.Module,
    batches: Iterable[Batch],
    tokens: int,
    places: list[Callable[[Stack, int], Place]],
) -> list[Features]:
    """Run batches until `tokens` tokens have passed, and keep what is seen at each place.

    A module that several layers share is watched once for each of them; it keeps only what passes
    while that layer runs.
    """
    stacks = find_stacks(model)
    kept = [{name: [[] for _ in stack.layers] for name, stack in stacks.items()} for _ in places]
    running: list[tuple[str, int]] = []  # the layer whose forward is under way
    masks: dict[str, Tensor | None] = {}
    handles = []

    def watch(place: Place, key: tuple[str, int], rows: list[Tensor]) -> None:
        def keep(x: Tensor) -> None:
            if running == [key]:
                flat, mask = x.detach().flatten(0, -2), masks[key[0]]  # (batch × length, width)
                rows.append((flat if mask is None else flat[mask.flatten()]).float().cpu())

        module, is_input = place
        if is_input:
            handles.append(module.register_forward_pre_hook(lambda m, args: keep(args[0])))
        else:
            handles.append(module.register_forward_hook(lambda m, args, out: keep(out)))

    for name, stack in stacks.items():
        for i, layer in enumerate(stack.layers):
            key = (name, i)
            handles += [
                layer.register_forward_pre_hook(lambda m, args, key=key: running.append(key)),
                layer.register_forward_hook(lambda m, args, out: running.clear()),
            ]
            for place, features in zip(places, kept, strict=True):
                watch(place(stack, i), key, features[name][i])
    try:
        model.eval()
        device = next(model.parameters()).device
        counted = kept[0][next(iter(stacks))][0]  # the first stack's first layer counts
        seen = 0
        with tqdm(total=tokens, desc="tokens", unit="token") as bar:
            for batch in batches:
                masks.update(token_masks(model, batch))
                model(**{key: value.to(device) for key, value in batch.items()})
                seen += len(counted[-1])
                bar.update(len(counted[-1]))
                if seen >= tokens:
                    break
            else:
                warnings.warn(
                    f"batches hold {seen} tokens and {tokens} were asked for; correlations of fewer "
                    "tokens are less certain",
                    stacklevel=3,
                )
    finally:
        for handle in handles:
            handle.remove()
    for name in stacks:
        n = sum(map(len, kept[0][name][0]))
        if n < 2:
            raise ValueError(f"batches hold {n} tokens for the {name}; valid are two or more")
    return [
        {name: [torch.cat(rows) for rows in layers] for name, layers in features.items()}
        for features in kept
    ]
