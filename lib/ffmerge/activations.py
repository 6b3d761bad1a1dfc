"""What the sublayers compute on exemplar data: features to align, outputs to compare.

One forward pass over ~10k tokens or patches is enough for every window (paper, Section 3.4).
"""

import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ffmerge.masks import Batch, check_batch, take_tokens, token_masks
from ffmerge.sublayers import Stack, find_stacks, unwrap

Features = dict[str, list[Tensor]]
Place = tuple[nn.Module, bool]  # a module, and whether its input (or else its output) is wanted
FindPlace = Callable[[Stack, int], Place]


def collect_features(model: nn.Module, batches: Iterable[Batch], tokens: int = 10_000) -> Features:
    """Collect the features of every FF sublayer (Section 3.3; Appendix A for gated FFs).

    Features are what W_in puts out, just before the activation; in a gated FF they are the
    component-wise product that W_out reads.

    Args:
        model: any model that `find_stacks` knows.
        batches: keyword arguments for the model's forward.
        tokens: how many tokens (for images: patches and class tokens) to collect, counted in the
            first stack: an encoder-decoder counts its source side. The last batch is kept whole;
            where the batches end before, a warning tells both numbers.

    Returns:
        features["decoder"][i]: (n_tokens, d_ff), float32 on CPU, padding left out.

    Raises:
        ValueError: fewer than two tokens, a batch that is none, a mask of another layout, or a
            feature that is NaN or infinite.
    """
    (features,) = _collect(model, batches, tokens, [find_features])
    for name, layers in features.items():
        for i, x in enumerate(layers):
            check_features(x, name, i)
        warn_of_few(name, *layers[0].shape)
    return features


def check_features(x: Tensor, stack: str, i: int) -> None:
    """Check that the features of a sublayer are numbers.

    Args:
        x: (n_tokens, width).
        stack, i: which sublayer's, for the message.

    Raises:
        ValueError: NaN or infinite ones.
    """
    if not torch.isfinite(x).all():
        raise ValueError(
            f"features of FF sublayer {i} of the {stack} hold NaN or infinite values; "
            "valid are finite numbers: check the model's weights and dtype"
        )


def warn_of_few(stack: str, n: int, d_ff: int) -> None:
    """Warn where a stack's features hold fewer tokens than neurons."""
    if n < d_ff:
        warnings.warn(
            f"features of the {stack} hold {n} tokens for {d_ff} neurons; which neurons are alike "
            "is mostly chance with fewer tokens than neurons",
            stacklevel=3,
        )


def find_features(stack: Stack, i: int) -> Place:
    """The features of sublayer i: what W_in puts out, or if gated what W_out reads."""
    ff = stack.sublayers[i]
    return (ff.module("W_out"), True) if ff.is_gated else (ff.module("W_in"), False)


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
    ff, attention = _collect(model, batches, tokens, [find_outputs, find_attention_outputs])
    return ff, attention


def find_outputs(stack: Stack, i: int) -> Place:
    """The output of sublayer i, before the residual sum."""
    return stack.sublayers[i].module("W_out"), False


def find_attention_outputs(stack: Stack, i: int) -> Place:
    """The output of the self-attention of layer i, before the residual sum."""
    return stack.attention_outputs()[i], False


def collect_heads(model: nn.Module, batches: Iterable[Batch], tokens: int = 10_000) -> Features:
    """Collect what the heads of every self-attention put out: what its output projection reads.

    Args:
        model, batches, tokens: as in `collect_features`.

    Returns:
        outputs[stack][i]: (n_tokens, n_heads × d_head), float32 on CPU, padding left out.

    Raises:
        ValueError: as `Stack.attentions`.
    """
    for stack in find_stacks(model).values():
        stack.attentions()  # before the model runs: can they be merged?
    (outputs,) = _collect(model, batches, tokens, [find_head_outputs])
    return outputs


def find_head_outputs(stack: Stack, i: int) -> Place:
    """What the heads of layer i put out, which its output projection reads."""
    return stack.attention_outputs()[i], True


def peek(batches: Iterable[Batch]) -> tuple[Batch | None, Iterable[Batch]]:
    """The first batch, None if there is none, and all of them, the first one too."""
    if not isinstance(batches, Iterable):
        raise ValueError(
            f"batches is a {type(batches).__name__}; valid are keyword arguments for the model, in "
            "a list"
        )
    rest = iter(batches)
    first = next(rest, None)
    return first, rest if first is None else chain([first], rest)


def run_batch(model: nn.Module, batch: Batch) -> Any:
    """What a model gives for a batch, moved to where the model is, in evaluation mode.

    A compiled one runs eagerly.

    Args:
        model: hooks are called, which compiled code would leave out.
        batch: keyword arguments for its forward.

    Raises:
        ValueError: as `check_batch`.

    Invariant: modules are left in the mode that they were in.
    """
    check_batch(batch)
    model = unwrap(model)
    device = next(model.parameters()).device
    inputs = {
        name: value.to(device) if isinstance(value, Tensor) and device.type != "meta" else value
        for name, value in batch.items()
    }
    is_compiled = any(module._compiled_call_impl is not None for module in model.modules())
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
            return model(**inputs)
    finally:
        for module in training:
            module.training = True


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
        {name: [_join(rows) for rows in layers] for name, layers in features.items()}
        for features in kept
    ]


def _join(rows: list[Tensor]) -> Tensor:
    """All rows as one tensor; the pieces are let go, so that memory never holds all twice."""
    joined = torch.cat(rows)
    rows.clear()
    return joined


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
        ValueError: fewer than two tokens, a batch that is none, or a mask of another layout.
    """
    if type(tokens) is not int or tokens < 1:
        raise ValueError(f"tokens is {tokens!r}; valid is a whole number from 1")
    stacks, (_, batches) = find_stacks(model), peek(batches)
    ran = False
    running: list[tuple[str, int]] = []  # the layer whose forward is under way
    masks: dict[str, Tensor | None] = {}
    seen = dict.fromkeys(stacks, 0)  # tokens, at the first place of each stack's first layer
    handles = []

    def watch(number: int, place: Place, key: tuple[str, int]) -> None:
        def see(x: Tensor) -> None:
            if running == [key]:
                rows = take_tokens(x.detach(), masks[key[0]], key[0]).float()
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
        first = next(iter(stacks))
        with tqdm(total=tokens, desc="tokens", unit="token") as bar:
            for batch in batches:
                ran = True
                check_batch(batch)
                masks.update(token_masks(model, batch))
                run_batch(model, batch)
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
            compiled = "" if n or not ran else ", and layers that are not compiled one by one"
            told = f"batches hold {n} tokens for the {name}; valid are two or more{compiled}"
            if len(seen) > 1 and any(seen.values()):  # such as text alone for a model that sees
                told += ", or the part of the model that these batches are for"
            raise ValueError(told)
