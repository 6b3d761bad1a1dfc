"""Every model type of transformers, without weights: is its FF found, or refused, and right?

PYTHONPATH=lib:tests python tests/architectures.py > docs/architectures.md
"""

import copy
import inspect
import sys
from collections.abc import Iterator
from dataclasses import replace
from inspect import Parameter

import torch
import transformers
from modeltypes import GIVEN, KINDS, build
from torch import nn

from ffmerge.feedforward import REASONS, FeedForward
from ffmerge.sublayers import Stack, find_stacks
from ffmerge.weights import permute

NOTHING = "no FF sublayers that can be found"  # no layers with attention at all
VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
NEURONS = 16  # that stay in a sublayer when it is tried out
HEAD = """# Which architectures

Every model type of transformers {version} in its default configuration, without weights:
[`tests/architectures.py`](../tests/architectures.py) writes this page, and a
[test](../tests/test_architectures.py) says that it is up to date and that permuting the neurons of
the FF sublayers changes nothing. Found are {found}, refused {refused}, and of {absent} there is no
model here to look at. Where the defaults are not enough to build one,
[`tests/modeltypes.py`](../tests/modeltypes.py) gives more: {given}.

What is refused can often be had in part: `find_stacks(model.language_model)` where only another
part of a model is in the way.
"""

REASON_TABLE = """
## {title}

| reason | model types |
|---|---|
"""


def look(model: nn.Module) -> dict[str, Stack] | str:
    """The stacks of a model, or the reason to refuse it; anything else is an error."""
    try:
        return find_stacks(model)
    except ValueError as error:
        reasons = [reason for reason in (*REASONS, NOTHING) if reason in str(error)]
        if len(reasons) != 1 or "\n" in str(error):
            raise AssertionError(f"no reason of the list: {error}") from error
        return reasons[0]


def check(model: nn.Module, stack: Stack) -> bool:
    """Whether a found stack could be tried out; wrong ones are errors.

    Its depth is a number of the configuration, and permuting the neurons of a narrower copy with
    random weights changes nothing, where leaving W_out alone would.
    """
    numbers = set(_list_numbers(model.config.to_dict()))
    ff = stack.sublayers[-1]
    names = " ".join(ff.names.values()).lower()
    assert not any(
        word in names for word in ("expert", "lora", "adapter", "attn", "conv", "router")
    )
    assert len(stack) in numbers
    return _try_out(ff)


def _list_numbers(content: object) -> Iterator[int]:
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list | tuple):
        yield len(content)  # of a list with an entry for each layer
        for value in content:
            yield from _list_numbers(value)
    elif isinstance(content, int):
        yield content


def _try_out(ff: FeedForward) -> bool:
    """Permute the FF alone, or the layer that it lies in; False if that needs more than x."""
    paths = [name.split(".") for name in ff.names.values()]
    depth = next(i for i, parts in enumerate(zip(*paths, strict=False)) if len({*parts}) > 1)
    inside = copy.deepcopy(ff.layer.get_submodule(".".join(paths[0][:depth]))).eval()
    names = {key: ".".join(path[depth:]) for key, path in zip(ff.names, paths, strict=True)}
    ff = FeedForward(inside, names, ff.halves)
    ff.resize(NEURONS)
    inside.to_empty(device="cpu").double()
    others = [*inspect.signature(inside.forward).parameters.values()][1:]
    nothing = {p.name: None for p in others if p.default is p.empty and p.kind not in VARIADIC}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*inside.parameters(), *inside.buffers()]:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 8)
        d_model = len(ff.read().W_out)
        x = torch.randn(1, 3, d_model, generator=generator).double()
        p = torch.randperm(NEURONS, generator=generator)

        def run() -> torch.Tensor:
            y = inside(x, **nothing)
            return y[0] if isinstance(y, tuple) else y

        try:
            before = run()
        except Exception:  # whatever its code raises without the rest
            return False
        weights = ff.read()
        ff.write(permute(weights, p))
        after = run()
        ff.write(replace(permute(weights, p), W_out=weights.W_out))
        wrong = run()
    assert torch.allclose(before, after, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(before, wrong, rtol=1e-3, atol=1e-3)
    return True


def sweep() -> str:
    """The page: what was found in every model type, or the reason to refuse it."""
    found, refused, absent, tried = [], {}, {}, []
    for kind in KINDS:
        model = build(kind)
        if isinstance(model, str):
            absent.setdefault(model, []).append(kind)
            continue
        stacks = look(model)
        if isinstance(stacks, str):
            refused.setdefault(stacks, []).append(kind)
            continue
        for name, stack in stacks.items():
            try:
                tried.append(check(model, stack))
            except AssertionError as error:
                raise AssertionError(f"{kind}, {name} is wrong") from error
            widths = sorted({ff.d_ff for ff in stack.sublayers})
            ff = stack.sublayers[-1]
            cells = name, f"`{stack.path}`", len(stack), ", ".join(map(str, widths))
            found.append((kind, *cells, ", ".join(f"{k} `{v}`" for k, v in ff.names.items())))
    text = HEAD.format(
        version=transformers.__version__,
        found=len({row[0] for row in found}),
        refused=sum(map(len, refused.values())),
        absent=sum(map(len, absent.values())),
        given=", ".join(f"{kind} ({', '.join(given)})" for kind, given in GIVEN.items()),
    )
    text += _write_reasons("Refused, with the reason", refused)
    text += _write_reasons("No model to look at, with the reason", absent)
    text += f"""
## Found

{sum(tried)} of {len(tried)} stacks were tried out with random weights: the FF sublayer alone where
it is a module of its own, else the whole layer; layers of the others read more than hidden states.

| model type | stack | layers | how many | d_ff | projections |
|---|---|---|---|---|---|
"""
    return text + "".join(f"| {' | '.join(map(str, row))} |\n" for row in found)


def _write_reasons(title: str, kinds: dict[str, list[str]]) -> str:
    rows = sorted(kinds.items(), key=lambda item: -len(item[1]))
    return REASON_TABLE.format(title=title) + "".join(
        f"| {reason} ({len(listed)}) | {', '.join(listed)} |\n" for reason, listed in rows
    )


if __name__ == "__main__":
    sys.stdout.write(sweep())
