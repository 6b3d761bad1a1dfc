"""Change a model's structure: fewer layers, fewer neurons, and a configuration that says so."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from ffmerge.sublayers import Stack

INDICES = ("layer_idx", "layer_id", "layer_number")  # how layers call their own place
WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "d_ff")
MODES = ("training", "gradient_checkpointing")
SIZES = ("in_features", "out_features", "nf", "nx")
SCALED = "scale_attn_by_inverse_layer_idx"
READERS = (  # how configurations name the layers that something outside them reads, by number
    "backbone_out_indices",
    "deepstack_visual_indexes",
    "encoder_projection_indices",
    "extract_layers",
    "feature_layer",
    "feature_layers",
    "intermediate_hidden_state_indices",
    "intermediate_layers_indices",
    "target_layer_ids",
    "vision_feature_layer",
)


def set_layers(model: nn.Module, stack: "Stack", keep: list[int]) -> "Stack":
    """Keep only some layers of a stack, in place, and make the configuration say so.

    Args:
        model: the model that `stack` was found in.
        keep: indices of the layers that stay, ascending.

    Returns:
        The shortened stack.

    Raises:
        ValueError: no configuration can say it: a model that is built from it would hold other
            layers than the ones that stay.
    """
    depth = len(stack)
    _check_unread(model, stack, keep)
    layers = nn.ModuleList(stack.layers[i] for i in keep)
    model.set_submodule(stack.path, layers, strict=True)
    for i, layer in enumerate(layers):  # attention finds its key-value cache by this number
        for module in layer.modules():
            for name in INDICES:
                if getattr(module, name, None) == keep[i]:
                    setattr(module, name, i)
    names = (f"{stack.name}_layers", f"num_{stack.name}_layers", "num_layers", "num_hidden_layers")
    for config in find_configs(model, stack.path):
        for name in names:
            if getattr(config, name, None) == depth:
                setattr(config, name, len(keep))
                break
        for name in ("layer_types", "mlp_layer_types"):
            if len(getattr(config, name, None) or ()) == depth:
                setattr(config, name, [getattr(config, name)[i] for i in keep])
        _move_last_stage(config, depth, len(keep))
    _check_rebuilt(model, stack, layers)
    return replace(stack, layers=layers, sublayers=tuple(stack.sublayers[i] for i in keep))


def set_widths(model: nn.Module, stack: "Stack", widths: Sequence[int]) -> None:
    """Keep only the first neurons of every sublayer of a stack, in place.

    Args:
        model: the model that `stack` was found in; where all widths are one and its configuration
            can say so, it does, and any tool builds the narrower model.
        widths: of each sublayer: how many neurons stay.
    """
    before = {ff.d_ff for ff in stack.sublayers}
    for ff, d_ff in zip(stack.sublayers, widths, strict=True):
        ff.resize(d_ff)
    if len(set(widths)) == 1 == len(before):
        known = (*before, None)  # GPT-2 says None for 4 × d_model
        said = []
        for config in find_configs(model, stack.path):
            for name in (f"{stack.name}_ffn_dim", *WIDTHS):
                if getattr(config, name, 0) in known:
                    said.append((config, name, getattr(config, name)))
                    setattr(config, name, widths[0])
                    break
        if said and not is_told(model):  # the number is that of something else too
            for config, name, value in said:
                setattr(config, name, value)


def find_configs(model: nn.Module, path: str) -> Iterator:
    """The configurations that tell of the module at a path: its part's, and the whole model's."""
    parts, seen = path.split("."), set()
    for n in range(len(parts), -1, -1):
        config = getattr(model.get_submodule(".".join(parts[:n])), "config", None)
        if config is not None and id(config) not in seen:
            seen.add(id(config))
            yield config


def is_told(model: nn.Module) -> bool:
    """Whether what its configuration builds anew has these shapes; yes if it builds nothing."""
    with suppress(Exception):
        return list_shapes(rebuild(model)) == list_shapes(model)
    return True


def rebuild(model: nn.Module) -> nn.Module:
    """A model of the same configuration, without weights."""
    config = type(model.config).from_dict(copy.deepcopy(model.config.to_dict()))
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return type(model)(config)


def list_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """The shape of every parameter, under all of its names."""
    return {name: p.shape for name, p in model.named_parameters(remove_duplicate=False)}


def _check_rebuilt(model: nn.Module, stack: "Stack", layers: nn.ModuleList) -> None:
    """Build the model anew from its configuration, without weights, and compare the layers."""
    if not hasattr(model, "config"):
        return  # a model of one's own, which nothing builds from a configuration
    try:
        whole = rebuild(model)
        rebuilt, theirs = whole.get_submodule(stack.path), list_shapes(whole)
    except Exception as problem:
        told = " ".join(str(problem).split())  # some are several lines
        error = f"no model is built from it ({told})"
    else:
        error = None if len(rebuilt) == len(layers) else f"built from it, {len(rebuilt)} are left"
        for i, pair in enumerate(zip(layers, rebuilt, strict=False)):
            name = _find_difference(*pair)
            error = error or (name and f"built from it, layer {i} has another {name}")
        for name, shape in list_shapes(model).items():  # such as a head that reads every layer
            if theirs.get(name) != shape and not name.startswith(f"{stack.path}."):
                other = "has another shape" if name in theirs else "is not there"
                error = error or f"built from it, {name} {other}"
    if error:
        raise ValueError(_refuse(model, stack, error))


def _check_unread(model: nn.Module, stack: "Stack", keep: list[int]) -> None:
    """Check that nothing reads layers by numbers that dropping would move.

    A number counts the hidden states before and behind layers; a negative one from the last.
    """
    depth = len(stack)
    dropped = set(range(depth)) - set(keep)
    first, last = min(dropped, default=depth), max(dropped, default=-1)
    for config, name in product(find_configs(model, stack.path), READERS):
        numbers = getattr(config, name, None)
        numbers = numbers if isinstance(numbers, list | tuple) else [numbers]
        numbers = [n for n in numbers if isinstance(n, int)]
        of_others = name.startswith("vision") and "vision" not in stack.path
        if any(n >= first if n >= 0 else depth + 1 + n <= last for n in numbers) and not of_others:
            raise ValueError(
                _refuse(model, stack, f"{name} reads them by their numbers, {numbers}")
            )
    for config in find_configs(model, stack.path):
        if getattr(config, SCALED, False) and first < max(keep, default=-1):
            raise ValueError(_refuse(model, stack, f"{SCALED} makes each one's place count"))


def _move_last_stage(config, depth: int, left: int) -> None:
    """Where a vision model names its layers as stages, and gives out the last one: it is another.

    One that gives out others is left alone, and not built.
    """
    names = getattr(config, "stage_names", None) or ()
    if len(names) == depth + 1 and config.out_features == [names[-1]]:
        config.stage_names = names[: left + 1]
        config._out_features, config._out_indices = [names[left]], [left]


def _refuse(model: nn.Module, stack: "Stack", reason: str) -> str:
    return (
        f"the configuration of {type(model).__name__} cannot say which layers of the {stack.name} "
        f"are dropped: {reason}; valid are other layers, or a method that shares"
    )


def _find_difference(a: nn.Module, b: nn.Module) -> str | None:
    """In what two layers differ: a parameter, or a setting such as a sliding window."""
    names = {n for n, _ in a.named_parameters()} ^ {n for n, _ in b.named_parameters()}
    others = dict(b.named_modules())
    for name, module in a.named_modules():
        mine, theirs = _read_settings(module), _read_settings(others.get(name, module))
        names |= {f"{name}.{key}".strip(".") for key in mine if mine[key] != theirs.get(key)}
    return min(names, default=None)


def _read_settings(module: nn.Module) -> dict:
    plain = (bool, int, float, str, type(None))
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, plain) and name not in (*SIZES, *MODES) and name[0] != "_"
    }
