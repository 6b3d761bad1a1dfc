"""Which modules of a model are one object, and how that stays so when its weights travel.

A model with shared sublayers carries two hooks: its `state_dict` names every shared tensor once,
and `load_state_dict` takes that for all its names. So plain `save_pretrained`, Trainer's
checkpoints, accelerate and `load_state_dict` write and read shared weights once. transformers'
own `_tied_weights_keys` cannot be used for this: it is ignored unless the word embeddings are tied
too, and it ties parameters where modules must be tied.
"""

import re
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping

from ffmerge.saving.wrapping import describe_config, list_ways
from ffmerge.structure import rebuild
from ffmerge.sublayers import find_stacks

Names = Sequence[Sequence[str]]


def find_shared_modules(model: nn.Module) -> list[list[str]]:
    """The groups of names under which one and the same module with parameters appears.

    Returns:
        [["encoder.layers.3.fc1", "encoder.layers.4.fc1", …], …], first name first.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if next(module.parameters(recurse=False), None) is not None:
            names.setdefault(module, []).append(name)
    return [group for group in names.values() if len(group) > 1]


def shared_keys(model: nn.Module) -> dict[str, str]:
    """Every parameter name that repeats another one because its module is shared.

    Returns:
        {repeated name: first name}.
    """
    return {
        f"{name}.{parameter}": f"{group[0]}.{parameter}"
        for group in find_shared_modules(model)
        for parameter, _ in model.get_submodule(group[0]).named_parameters(recurse=False)
        for name in group[1:]
    }


def count_untied(model: nn.Module) -> int:
    """Number of parameters if every layer had sublayers of its own."""
    repeated = (
        parameter.numel() * len(names)
        for first, *names in _find_shared_in_layers(model)
        for parameter in model.get_submodule(first).parameters(recurse=False)
    )
    return sum(parameter.numel() for parameter in model.parameters()) + sum(repeated)


def find_untold_widths(model: nn.Module) -> dict[str, list[int]]:
    """d_ff of every sublayer, by stack, where the configuration does not say it.

    One number cannot, of uneven widths; some architectures have none, or need it for more. A model
    is built anew to see where it was pruned, and where no number of its configuration is a width.
    """
    widths = _list_widths(model)
    is_uneven = any(len(set(of_stack)) > 1 for of_stack in widths.values())
    is_pruned = "neurons" in (getattr(model, "ffmerge_plan", None) or {})
    if not (is_uneven or is_pruned):
        if {of_stack[0] for of_stack in widths.values()} <= _list_numbers(model):
            return {}
    with suppress(Exception):
        return {} if _list_widths(rebuild(model)) == widths else widths
    return widths if is_uneven else {}  # nothing is built from its configuration


def _list_numbers(model: nn.Module) -> set[int]:
    """Every number in a configuration, and four times each: what some say of d_model."""
    found, left = set(), [model.config.to_dict()]
    while left:
        values = left.pop().values()
        left += [value for value in values if isinstance(value, dict)]
        found |= {n * value for value in values if type(value) is int for n in (1, 4)}
    return found


def _list_widths(model: nn.Module) -> dict[str, list[int]]:
    return {name: [ff.d_ff for ff in stack.sublayers] for name, stack in find_stacks(model).items()}


def remember(model: nn.Module, plan: dict | None = None) -> nn.Module:
    """Make a model's own ways of saving write what it is: shared modules once, and its widths.

    Args:
        model: changed in place: its hooks, and what its configuration tells; no weights.
        plan: what was done to it (`Plan.to_json()`), if it is known.

    Invariant: a model that shares nothing, of one width, is written as any other model.
    """
    if plan:
        if "neurons" in (getattr(model, "ffmerge_plan", None) or {}):  # pruned, and then more
            plan = {"neurons": _list_widths(model)} | plan
        model.ffmerge_plan = plan
    groups = _find_shared_in_layers(model)
    describe_config(
        model.config, groups, find_untold_widths(model), getattr(model, "ffmerge_plan", {})
    )
    if groups:
        name_once(model)
    return model


def _find_shared_in_layers(model: nn.Module) -> list[list[str]]:
    """As `find_shared_modules`, but only what lies in the layers: no embeddings."""
    paths = tuple(f"{stack.path}." for stack in find_stacks(model).values())
    return [group for group in find_shared_modules(model) if group[0].startswith(paths)]


def name_once(model: nn.Module) -> None:
    """Give a model the two hooks that write shared tensors once, and read them; only once."""
    if _drop_repeated not in model._state_dict_hooks.values():
        model.register_state_dict_post_hook(_drop_repeated)
        model.register_load_state_dict_pre_hook(_repeat)


def _drop_repeated(model: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    for name in shared_keys(model):
        tensor = state.pop(prefix + name, None)
        if tensor is not None and is_guard(model.config, name):
            state[prefix + name] = tensor.new_empty(0)


def _repeat(model: nn.Module, state: dict, prefix: str, *unused) -> None:
    _rename(model, state, prefix)
    for name, first in shared_keys(model).items():
        own, held = state.get(prefix + first), state.get(prefix + name)
        if own is not None and (held is None or held.numel() == 0):
            state[prefix + name] = own
        elif own is not None and (own.shape != held.shape or not torch.equal(own, held.to(own))):
            raise ValueError(  # before anything is loaded
                f"{first} and {name} are one module here, and two in what is loaded; valid is one"
            )


def is_guard(config, name: str) -> bool:
    """Whether a weight stays in a second place, empty, one a stack: no plain model can take it."""
    groups = getattr(config, "ffmerge", {}).get("groups", ())
    ends = {re.split(r"\.\d+\.", group[0])[0]: f".{group[1]}.weight" for group in groups}
    return any(end.endswith(f".{name}") or f".{name}".endswith(end) for end in ends.values())


def build_structure(model: nn.Module, groups: Names, widths: dict[str, list[int]]) -> None:
    """Give a new model the widths of a saved one, and place for its shared modules, in place.

    In each group only the first module is left; the others' places are empty, so that
    whatever loads, quantizes or places weights finds each of them once. `share_modules` ends this.

    Raises:
        ValueError: they do not fit the model.
    """
    if widths:
        stacks = find_stacks(model)
        depths = {name: len(stack) for name, stack in stacks.items()}
        if {name: len(of_stack) for name, of_stack in widths.items()} != depths:
            raise ValueError(
                f"config.json has neurons {widths}; valid is one number for each layer: {depths}"
            )
        for name, stack in stacks.items():  # what its configuration can say it says already
            for ff, width in zip(stack.sublayers, widths[name], strict=True):
                ff.resize(width)
    for first, *others in resolve_names(model, groups):
        for name in others:
            kinds = [_describe(model.get_submodule(n)) for n in (first, name)]
            if kinds[0] != kinds[1] or len(kinds[0]) == 1:
                raise ValueError(
                    f"config.json shares {first} with {name}; valid is one kind and shape"
                )
            place = _Place(model.get_submodule(first), is_guard(model.config, f"{name}.weight"))
            model.set_submodule(name, place, strict=True)


def share_modules(model: nn.Module, groups: Names) -> None:
    """Put the first module of each group into all its places, in place."""
    for first, *others in resolve_names(model, groups):
        for name in others:
            model.set_submodule(name, model.get_submodule(first), strict=True)
    name_once(model)


def resolve_names(model: nn.Module, groups: Names) -> list[list[str]]:
    """The names of shared modules in a model that may have another head than the saved one.

    Raises:
        ValueError: the model has no such module.
    """
    modules = dict(model.named_modules(remove_duplicate=False))

    def find(name: str) -> str:
        for candidate in list_ways(model, name):
            if candidate in modules:
                return candidate
        raise ValueError(
            f"config.json shares {name!r}; valid are modules of {type(model).__name__}"
        )

    return [[find(name) for name in group] for group in groups]


class _Place(nn.Module):
    """Where a shared module will stand: it holds nothing, but shows its first one's parameters.

    Models that initialise weights by name want to see them (GPT-2). A guard holds its empty weight:
    one that is not empty does not fit, as its layer has left the group.
    """

    def __init__(self, first: nn.Module, holds_guard: bool) -> None:
        super().__init__()
        if holds_guard:
            self.weight = nn.Parameter(torch.empty(0))
        object.__setattr__(self, "first", first)  # no child of this one

    def __getattr__(self, name: str):
        if name in ("weight", "bias") and name not in self._parameters:
            return getattr(self.first, name)
        return super().__getattr__(name)


def _describe(module: nn.Module) -> tuple:
    return type(module), *(parameter.shape for parameter in module.parameters(recurse=False))


def _rename(model: nn.Module, state: dict, prefix: str) -> None:
    """Take the names of older versions, under which transformers still writes ViT, for today's.

    `from_pretrained` does; Trainer, which resumes and loads the best state without, only warns.
    """
    held = {prefix + name for name, _ in model.named_parameters(remove_duplicate=False)}
    strange = [name for name in state if name.startswith(prefix) and name not in held]
    ways = get_model_conversion_mapping(model) if strange else ()
    for old in strange:
        new = old.removeprefix(prefix)
        for way in ways:
            new, _ = way.rename_source_key(new)
        if prefix + new in held:
            state[prefix + new] = state.pop(old)
