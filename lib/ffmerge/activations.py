"""What the sublayers compute on exemplar data: features to align, outputs to compare.

One forward pass over ~10k tokens or patches is enough for every window (paper, Section 3.4).
"""

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ffmerge.sublayers import FeedForward, Stack, find_stacks

Batch = dict[str, Tensor]
Features = dict[str, list[Tensor]]
Place = tuple[nn.Module, bool]  # a module, and whether its input (or else its output) is wanted
FindPlace = Callable[[Stack, int], Place]


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

    def place(ff: FeedForward) -> Place:
        return (ff.module("W_out"), True) if ff.is_gated else (ff.module("W_in"), False)

    (features,) = _collect(model, batches, tokens, [lambda stack, i: place(stack.sublayers[i])])
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

    Args:
        model: tells whether an encoder and a decoder have masks of their own.
        batch: keyword arguments for its forward.

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


def _collect(
    model: nn.Module, batches: Iterable[Batch], tokens: int, places: list[FindPlace]
) -> list[Features]:
    """Keep all that is seen at each place."""
    kept: list[dict[str, list[list[Tensor]]]] = [
        {name: [[] for _ in stack.layers] for name, stack in find_stacks(model).items()}
        for _ in places
    ]

    def keep(place: int, stack: str, i: int, rows: Tensor) -> None:
        kept[place][stack][i].append(rows.cpu())

    observe(model, batches, tokens, places, keep)
    return [
        {name: [torch.cat(rows) for rows in layers] for name, layers in features.items()}
        for features in kept
    ]


@torch.no_grad()
def observe(
    model: nn.Module,
    batches: Iterable[Batch],
    tokens: int,
    places: list[FindPlace],
    receive: Callable[[int, str, int, Tensor], None],
) -> None:
    """Run batches until `tokens` tokens have passed, and hand on what is seen at each place.

    A module that several layers share is watched once for each of them; it hands on only what
    passes while that layer runs.

    Args:
        model, batches, tokens: as in `collect_features`.
        places: stack and layer index to where to look.
        receive: called with the number of the place, stack, layer index and rows (n_tokens, width)
            in float32 on the model's device, padding left out.

    Raises:
        ValueError: fewer than two tokens.
    """
    stacks = find_stacks(model)
    running: list[tuple[str, int]] = []  # the layer whose forward is under way
    masks: dict[str, Tensor | None] = {}
    seen = dict.fromkeys(stacks, 0)  # tokens, at the first place of each stack's first layer
    handles = []

    def watch(number: int, place: Place, key: tuple[str, int]) -> None:
        def see(x: Tensor) -> None:
            if running == [key]:
                flat, mask = x.detach().flatten(0, -2), masks[key[0]]  # (batch × length, width)
                rows = (flat if mask is None else flat[mask.flatten()]).float()
                if number == 0 and key[1] == 0:
                    seen[key[0]] += len(rows)
                receive(number, *key, rows)

        module, is_input = place
        if is_input:
            handles.append(module.register_forward_pre_hook(lambda m, args: see(args[0])))
        else:
            handles.append(module.register_forward_hook(lambda m, args, out: see(out)))

    for name, stack in stacks.items():
        for i, layer in enumerate(stack.layers):
            key = (name, i)
            handles += [
                layer.register_forward_pre_hook(lambda m, args, key=key: running.append(key)),
                layer.register_forward_hook(lambda m, args, out: running.clear()),
            ]
            for number, place in enumerate(places):
                watch(number, place(stack, i), key)
    try:
        model.eval()
        device, first = next(model.parameters()).device, next(iter(stacks))
        with tqdm(total=tokens, desc="tokens", unit="token") as bar:
            for batch in batches:
                masks.update(token_masks(model, batch))
                model(**{key: value.to(device) for key, value in batch.items()})
                bar.update(seen[first] - bar.n)
                if seen[first] >= tokens:
                    break
            else:
                warnings.warn(
                    f"batches hold {seen[first]} tokens and {tokens} were asked for; what is "
                    "estimated from fewer tokens is less certain",
                    stacklevel=4,
                )
    finally:
        for handle in handles:
            handle.remove()
    for name, n in seen.items():
        if n < 2:
            raise ValueError(f"batches hold {n} tokens for the {name}; valid are two or more")
