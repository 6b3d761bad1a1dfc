"""The short commands of `python -m ffmerge`: what a folder holds, how it leaves."""

import os
import sys
from pathlib import Path

from torch import nn

import ffmerge
from ffmerge.checkpoints import load, size_on_disk
from ffmerge.files import STAGING, read_json
from ffmerge.groups import format_layers
from ffmerge.patches import count_parameters
from ffmerge.saving.folders import ORIGIN, check_folder
from ffmerge.saving.sharing import count_untied
from ffmerge.sublayers import find_stacks, group_sublayers


def tell(topic: str, text: str) -> None:
    """Print one line of a command's answer."""
    print(f"{topic:<10}{text}", flush=True)


def inspect(folder: Path) -> None:
    """Tell what a model shares, how large it is, and where it came from.

    Raises:
        ValueError: there is no model in this folder.
    """
    model = load(folder)
    tell("model", describe_model(model))
    for name, stack in find_stacks(model).items():
        groups = group_sublayers(stack.sublayers)
        shared = [format_layers(layers) for layers in groups if len(layers) > 1]
        text = ", ".join(f"{layers} share one FF" for layers in shared) or "no FF is shared"
        widths = [ff.d_ff for ff in stack.sublayers]
        span = f"{min(widths)}" if len(set(widths)) == 1 else f"{min(widths)} to {max(widths)}"
        tell(name, f"{len(stack)} layers, {text}; d_ff {span}")
    n, n_bytes = count_parameters(model), size_on_disk(folder)
    tell("size", f"{n:,} parameters ({count_untied(model):,} without sharing), {n_bytes:,} bytes")
    if not (folder / ORIGIN).exists():
        tell("origin", f"not told: there is no {ORIGIN}")
        return
    try:
        origin = read_json(folder / ORIGIN)
        how = "{base} by {method}, {removed} ({layers}), with {data}".format(**origin)
        check = "{metric} {before:.4g} → {after:.4g} on held-out data".format(**origin)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / ORIGIN} is not what `compress` wrote") from None
    tell("origin", how)
    tell("check", check)


def export(folder: Path, out: Path) -> None:
    """Write a model so that it opens without ffmerge.

    Raises:
        ValueError: there is no model in this folder, or something is in the way.
    """
    check_out(out, folder)
    ffmerge.export(folder, out)
    tell("saved", str(out))


def check_out(out: Path, source: str | Path) -> None:
    """Check that nothing is in the way of what will be written, and that the source is not.

    Raises:
        ValueError: there is something.
    """
    if Path(source).is_dir() and Path(source).resolve() in out.resolve().parents:
        raise ValueError(f"{str(out)!r} lies in {str(source)!r}, which is read; valid is another")
    if out.is_file() or (out.is_dir() and any(p.name != STAGING for p in out.iterdir())):
        raise ValueError(f"{str(out)!r} exists; valid is a new or an empty folder")
    check_folder(out)
    above = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"{str(out)!r} cannot be written in {above}; valid is a folder of yours")


def describe_model(model: nn.Module) -> str:
    """In one line: kind, layers, parameters and the share of them in FF sublayers."""
    stacks = find_stacks(model).values()
    layers = " + ".join(str(len(stack)) for stack in stacks)
    first = [s.sublayers[group[0]] for s in stacks for group in group_sublayers(s.sublayers)]
    n = count_parameters(model)
    share = sum(ff.n_parameters for ff in first) / n
    return f"{type(model).__name__}, {layers} layers, {n:,} parameters, {share:.0%} in FF sublayers"


def warn(text: str) -> None:
    """Print a warning beside a command's answer."""
    print(f"warning: {text}", file=sys.stderr)
