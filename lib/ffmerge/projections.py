"""Linear projections inside a layer: which there are, their shapes, narrower copies of them."""

import copy
from collections.abc import Iterator

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

PROJECTIONS = (nn.Linear, Conv1D)


def find_projections(
    module: nn.Module, outside_attention: bool = False, prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of the linear projections below a module, in order of registration.

    Args:
        module: a layer, or a part of one.
        outside_attention: leave out those inside attention modules.
        prefix: of the names.
    """
    for name, child in module.named_children():
        if isinstance(child, PROJECTIONS):
            yield prefix + name, child
        elif not (outside_attention and is_attention(child)):
            yield from find_projections(child, outside_attention, f"{prefix}{name}.")


def is_attention(module: nn.Module) -> bool:
    """Whether a module is an attention, as every library calls its class."""
    return "Attention" in type(module).__name__


def find_shape(module: nn.Module) -> tuple[int, int]:
    """(n_outputs, n_inputs) of a projection; Conv1D keeps its weight transposed."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    n_inputs, n_outputs = module.weight.shape
    return n_outputs, n_inputs


def narrow_inputs(module: nn.Module, n: int) -> nn.Module:
    """A projection of the same kind that reads only the first n inputs; its parameters are new."""
    narrow = _copy_shell(module)
    axis = int(not isinstance(module, Conv1D))
    narrow.weight = _renew(module.weight, module.weight.narrow(axis, 0, n))
    if module.bias is not None:
        narrow.bias = _renew(module.bias, module.bias)
    if isinstance(module, nn.Linear):
        narrow.in_features = n
    return narrow


def narrow_outputs(module: nn.Module, n: int, parts: int = 1) -> nn.Module:
    """A projection of the same kind with only the first n outputs; its parameters are new.

    Args:
        module: the projection.
        n: outputs that stay, of each part.
        parts: how many projections of equal size it holds, one below the other.
    """

    def cut(tensor, axis: int):
        return tensor.unflatten(axis, (parts, -1)).narrow(axis + 1, 0, n).flatten(axis, axis + 1)

    narrow = _copy_shell(module)
    narrow.weight = _renew(module.weight, cut(module.weight, int(isinstance(module, Conv1D))))
    if module.bias is not None:
        narrow.bias = _renew(module.bias, cut(module.bias, 0))
    if isinstance(module, nn.Linear):
        narrow.out_features = parts * n
    else:
        narrow.nf = parts * n
    return narrow


def _renew(old: nn.Parameter, part: Tensor) -> nn.Parameter:
    """A parameter of its own, frozen if the old one is."""
    return nn.Parameter(part.detach().clone(), requires_grad=old.requires_grad)


def _copy_shell(module: nn.Module) -> nn.Module:
    """Its class, hooks and settings; parameters are put into a dictionary of its own."""
    shell = copy.copy(module)
    shell._parameters = dict(module._parameters)
    return shell
