"""What a method will need of memory, told before it starts: the general bound, and what is its own.

`ffmerge.estimate_memory` goes by what a method needs to know; this one also by what it holds of
that at a time. Numbers are bounds: measured peaks lie below them (docs/hardware.md).
"""

from torch import nn

from ffmerge.catalogue import describe_method
from ffmerge.cli.commands import tell
from ffmerge.memory import count_bytes, estimate_memory, estimate_moments
from ffmerge.moments import find_tokens
from ffmerge.sublayers import find_stacks

MOMENTS, COPY = "second moments", "its compressed copy"
REGRESSION = "groups_local"  # trains on tokens, where others keep moments of them
GRADIENTS = ("neurons_taylor", "neurons_taylor_refit")  # of the loss, through all of the model


def announce_memory(model: nn.Module, method: str, tokens: int, calibrated: int) -> None:
    """Print what a method will need of memory at the most; arguments as in `estimate_parts`."""
    parts = estimate_parts(model, method, tokens, calibrated)
    text = ", ".join(f"{what} {size / 1e9:.2f}" for what, size in parts.items())
    tell("memory", f"at most about {sum(parts.values()) / 1e9:.1f} GB: {text}")


def estimate_parts(
    model: nn.Module, method: str, tokens: int, calibrated: int | None = None
) -> dict[str, int]:
    """What is held at the moment when most is: what needs it to bytes.

    Args:
        model: the base.
        method: its name.
        tokens: of features, for methods that align.
        calibrated: tokens to calibrate with; `find_tokens` if left out.
    """
    about = describe_method(method)
    parts = estimate_memory(model, about.needs, tokens)
    copy, moments = ({name: parts.pop(name, 0)} for name in (COPY, MOMENTS))
    if method in GRADIENTS:
        return parts | _largest(copy | moments, {"gradients": _count_gradients(model)})
    if method == REGRESSION:
        return parts | copy | {"tokens": _count_tokens(model, calibrated or find_tokens(model))}
    if about.family == "shares" and {"permutations", "calibration"} <= set(about.needs):
        # a shared FF's are d_ff × 2 d_ff, no square, and are let go before a copy is made
        return parts | _largest(copy, {MOMENTS: estimate_moments(model, 2) // 2})
    return parts | copy | (moments if moments[MOMENTS] else {})


def _largest(*parts: dict[str, int]) -> dict[str, int]:
    """Of what is held one after the other, the most."""
    return max(parts, key=lambda part: sum(part.values()))


def _count_gradients(model: nn.Module, batch_tokens: int = 1024) -> int:
    """Bytes of the gradients of all weights, and of what a batch leaves for them in the layers."""
    stacks = find_stacks(model).values()
    columns = sum(5 * ff.d_ff + 12 * len(ff.read().W_out) for s in stacks for ff in s.sublayers)
    return count_bytes(model.parameters()) + 4 * batch_tokens * columns


def _count_tokens(model: nn.Module, n: int) -> int:
    """Bytes of what n tokens are in and behind each FF, and of one's hidden activations."""
    sublayers = [ff for stack in find_stacks(model).values() for ff in stack.sublayers]
    columns = sum(2 * len(ff.read().W_out) for ff in sublayers)
    return 4 * n * (columns + 4 * max(ff.d_ff for ff in sublayers))
