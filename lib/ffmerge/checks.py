"""Before and after: weights that can be written to, and a result that is what was promised."""

from collections.abc import Mapping, Sequence
from types import FunctionType

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ffmerge.attention.sublayers import SelfAttention, find_attention
from ffmerge.feedforward import FeedForward
from ffmerge.groups import Group
from ffmerge.projections import find_projections
from ffmerge.sublayers import Stack, find_stacks

Groups = Mapping[str, tuple[Group, ...]]
Layers = Mapping[str, tuple[int, ...]]


def check_writable(model: nn.Module, stacks: Mapping[str, Stack]) -> None:
    """Check that what is written to a copy's layers arrives and is run: plain numbers, in memory.

    Args:
        model: for its name.
        stacks: its stacks.

    Raises:
        ValueError: weights that are quantised, elsewhere, or computed from others; or a module
            whose forward was replaced by a function, which in a copy would run the original.
    """
    for name, module in model.named_modules():
        if isinstance(vars(module).get("forward"), FunctionType):
            raise ValueError(
                f"forward of {name or 'the model'} in {type(model).__name__} is a function that "
                "was set on the object, and a copy would run the original's weights; valid is the "
                "class's own, and torch.compile(model) in the place of torch.compile(model.forward)"
            )
    for stack in stacks.values():
        for name, module in find_projections(stack.layers):
            weight = module._parameters.get("weight")
            if getattr(module, "bias", None) is not None and "bias" not in module._parameters:
                weight = None
            if parametrize.is_parametrized(module):
                found = "parametrised"
            elif weight is None:
                found = "computed from others, such as by a pruning mask"
            elif type(weight) is not nn.Parameter or weight.dtype.itemsize < 2:
                found = f"quantised ({type(weight).__name__} of {weight.dtype})"
            elif weight.is_meta or hasattr(module, "_hf_hook"):
                found = "offloaded or spread over devices"
            else:
                continue
            raise ValueError(
                f"the weights of {stack.path}.{name} in {type(model).__name__} are {found}; valid "
                "are plain weights in memory: compress first, quantise, offload or mask after"
            )


def check_unshared(stacks: Mapping[str, Stack]) -> None:
    """Check that every sublayer has weights of its own.

    Raises:
        ValueError: FF or attention sublayers that share already.
    """
    for name, stack in stacks.items():
        attentions = [
            view for view in map(find_attention, stack.layers) if not isinstance(view, str)
        ]
        for kind, views in (("FF", stack.sublayers), ("attention", attentions)):
            weights = [module.weight for view in views for module in view.modules()]
            if len(set(map(id, weights))) < len(weights):
                raise ValueError(
                    f"{kind} sublayers of the {name} share already; valid is an uncompressed "
                    "model: put all groups into one plan"
                )


def check_structure(
    model: nn.Module,
    small: nn.Module,
    groups: Groups,
    dropped: Layers,
    neurons: Layers,
    attention: Groups,
) -> None:
    """Check that a compressed model is what its plan promised.

    Args:
        model: the base.
        small: the result.
        groups, dropped, neurons, attention: of the plan.

    Raises:
        RuntimeError: other layers, widths, shared modules or parameters than promised.
    """
    before, after = find_stacks(model), find_stacks(small)
    for name, stack in before.items():
        kept = [i for i in range(len(stack)) if i not in dropped.get(name, ())]
        widths = [neurons[name][i] if name in neurons else stack.sublayers[i].d_ff for i in kept]
        sublayers = after[name].sublayers
        numbers, promised = _number_modules(sublayers), _number_owners(groups.get(name, ()), kept)
        if numbers != promised or [ff.d_ff for ff in sublayers] != widths:
            raise RuntimeError(
                f"the {name} of {type(model).__name__} came out with sublayers {numbers} of d_ff "
                f"{[ff.d_ff for ff in sublayers]}, where {promised} of {widths} were promised"
            )
        if name in attention:
            numbers = _number_modules(after[name].attentions())
            promised = _number_owners(attention[name], kept)
            if numbers != promised:
                raise RuntimeError(
                    f"the {name} of {type(model).__name__} came out with attention sublayers "
                    f"{numbers}, where {promised} were promised"
                )
    found, promised = (
        _count(small),
        _count(model) - _count_lost(model, before, groups, dropped, neurons, attention),
    )
    if found != promised:
        raise RuntimeError(
            f"{type(model).__name__} came out with {found:,} parameters; {promised:,} were promised"
        )


def check_arrival(small: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Check that what was written to a model is what it holds.

    Args:
        small: the result.
        tensors: parameter names to what was written.

    Raises:
        RuntimeError: it holds something else.
        ValueError: numbers that are not finite.
    """
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"{name} of {type(small).__name__} came out with numbers that are not finite; "
                "valid are finite weights, in float32 where half precision cannot hold the rest"
            )
        held = small.get_parameter(name)
        if not torch.allclose(held, tensor.to(held), rtol=0, atol=0, equal_nan=True):
            raise RuntimeError(
                f"{name} of {type(small).__name__} does not hold what was written to it"
            )


def _number_modules(views: Sequence[FeedForward | SelfAttention]) -> list[int]:
    """For every layer the first one that has the same modules."""
    modules = [tuple(map(id, view.modules())) for view in views]
    return [modules.index(m) for m in modules]


def _number_owners(groups: Sequence[Group], kept: Sequence[int]) -> list[int]:
    """For every layer that is kept the first one of its group."""
    first = {i: group.layers[0] for group in groups for i in group.layers}
    owners = [first.get(i, i) for i in kept]
    return [owners.index(owner) for owner in owners]


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _count_lost(
    model: nn.Module,
    stacks: Mapping[str, Stack],
    groups: Groups,
    dropped: Layers,
    neurons: Layers,
    attention: Groups,
) -> int:
    """How many parameters a plan takes away."""
    lost = 0
    for name, stack in stacks.items():
        sizes = []
        for i, ff in enumerate(stack.sublayers):
            width = neurons[name][i] if name in neurons else ff.d_ff
            sizes.append(ff.n_fixed + (ff.n_parameters - ff.n_fixed) // ff.d_ff * width)
            lost += ff.n_parameters - sizes[i]
        for group in groups.get(name, ()):
            left = [i for i in group.layers if i not in dropped.get(name, ())]
            lost += sum(sizes[i] for i in left[1:])
        for group in attention.get(name, ()):
            left = [i for i in group.layers if i not in dropped.get(name, ())]
            lost += sum(stack.attentions()[i].n_shared for i in left[1:])
        for i in dropped.get(name, ()):
            lost += sizes[i] - stack.sublayers[i].n_parameters
        lost += _count_only_in(model, [f"{stack.path}.{i}." for i in dropped.get(name, ())])
    return lost


def _count_only_in(model: nn.Module, prefixes: list[str]) -> int:
    """Parameters whose names all begin so: they go with the layers."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    begin = tuple(prefixes)
    return sum(
        p.numel() for p, known in names.items() if begin and all(n.startswith(begin) for n in known)
    )
