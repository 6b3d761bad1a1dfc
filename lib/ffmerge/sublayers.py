"""Where the feed-forward (FF) sublayers of any transformer are (paper, Section 3.1).

Only this file, `feedforward`, `attention.sublayers` and `structure` know architectures, and by
shape, not by name. So a new model of the usual kind needs no entry anywhere; any other is refused
with the reason.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers.activations import ACT2FN

from ffmerge.attention.sublayers import SelfAttention, find_attention
from ffmerge.feedforward import EXPERTS, NESTED, REASONS, FeedForward, find_sublayer
from ffmerge.projections import PROJECTIONS, find_projections, is_attention
from ffmerge.structure import find_configs, set_layers, set_widths
from ffmerge.weights import Weights

__all__ = [
    "PROJECTIONS",
    "FeedForward",
    "Stack",
    "check_stacks",
    "check_widths",
    "find_activation",
    "find_depths",
    "find_stacks",
    "reads_tokens",
    "set_layers",
    "set_widths",
    "unwrap",
]

PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
WITHOUT = "valid are methods without least squares on hidden activations, such as permute"
ACTIVATIONS = ("hidden_act", "activation_function", "hidden_activation", "dense_act_fn")


@dataclass(frozen=True)
class Stack:
    """The layers of the encoder or of the decoder, merged separately (Section 4.3).

    Attributes:
        name: "encoder" or "decoder"; of a model with more parts, such as CLIP, "text" or "vision".
        path: name of the layer list inside the model, such as "transformer.h".
        layers: the list itself.
        sublayers: the FF sublayer of every layer, in order.
    """

    name: str
    path: str
    layers: nn.ModuleList
    sublayers: tuple[FeedForward, ...]

    def __len__(self) -> int:
        return len(self.layers)

    def arrange(self, i: int, weights: Weights) -> dict[str, Tensor]:
        """Weights of sublayer i as the model holds them: its full parameter names to tensors."""
        tensors = self.sublayers[i].arrange(weights)
        return {f"{self.path}.{i}.{name}": tensor for name, tensor in tensors.items()}

    def attention_outputs(self) -> list[nn.Module]:
        """The linear layer just after self-attention's dot product, of every layer (Appendix G)."""
        attentions = [next(m for m in layer.modules() if is_attention(m)) for layer in self.layers]
        return [list(find_projections(attention))[-1][1] for attention in attentions]

    def attentions(self) -> list[SelfAttention]:
        """The self-attention sublayer of every layer.

        Raises:
            ValueError: one whose values and outputs cannot be shared.
        """
        views = [find_attention(layer) for layer in self.layers]
        for i, reason in enumerate(views):
            if isinstance(reason, str):
                raise ValueError(
                    f"self-attention of layer {i} of the {self.name} has {reason}; valid are "
                    "W_q, W_k, W_v and W_o apart, or a method that merges FF sublayers alone"
                )
        return views


def find_stacks(model: nn.Module) -> dict[str, Stack]:
    """Find the stacks of layers that hold FF sublayers (Section 3.1).

    Args:
        model: any transformers model whose layers hold attention and one FF sublayer each; a
            compiled or parallel one is looked through.

    Returns:
        {"encoder": Stack, "decoder": Stack}, or one of the two; of a model with other parts, such
        as {"text": Stack, "vision": Stack}, the first parts of their paths that differ.

    Raises:
        ValueError: no such layers, or layers with attention that hold something else: the reason
            is one of `ffmerge.feedforward.REASONS`.
    """
    model = unwrap(model)
    found: dict[str, tuple[FeedForward, ...]] = {}
    for path, layers in _find_lists(model):
        sublayers = [find_sublayer(layer) for layer in layers]
        reasons = {ff: i for i, ff in reversed([*enumerate(sublayers)]) if isinstance(ff, str)}
        if _holds_layers(layers) and EXPERTS not in reasons:
            reasons = {NESTED: 0}
        for reason in sorted(reasons, key=REASONS.index):
            raise ValueError(
                f"layer {reasons[reason]} of {path!r} in {type(model).__name__} has {reason}; valid"
                " are layers of attention and one FF sublayer: pass the part of the model with them"
            )
        found[path] = tuple(sublayers)
    if not found:
        raise ValueError(
            f"model {type(model).__name__} has no FF sublayers that can be found; valid are layers "
            "in a ModuleList with attention and two (or, gated, three) linear projections outside"
        )
    names = _name_stacks(model, list(found))
    stacks = {
        name: Stack(name, path, model.get_submodule(path), found[path])
        for name, path in zip(names, found, strict=True)
    }
    return {n: stacks[n] for n in sorted(stacks, key=lambda n: n != "encoder")}  # it runs first


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, without what `torch.compile` and data parallelism put around it."""
    while hasattr(model, "_orig_mod") or isinstance(model, PARALLEL):
        model = getattr(model, "_orig_mod", None) or model.module
    return model


def find_depths(model: nn.Module) -> dict[str, int]:
    """Every stack's number of layers."""
    return {name: len(stack) for name, stack in find_stacks(model).items()}


def group_sublayers(sublayers: Sequence[FeedForward]) -> list[list[int]]:
    """The layers that share an FF, together; a layer with one of its own alone."""
    groups: dict[nn.Module, list[int]] = {}
    for i, ff in enumerate(sublayers):
        groups.setdefault(ff.module("W_out"), []).append(i)
    return list(groups.values())


def find_activation(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The activation function of a model's FF sublayers.

    Raises:
        ValueError: its configuration names none, several for its stacks, or one with weights.
    """
    model = unwrap(model)
    named = {
        name: next(_list_activations(model, stack), None)
        for name, stack in find_stacks(model).items()
    }
    if None in named.values():
        raise ValueError(
            f"the configuration of {type(model).__name__} names no activation function; valid is "
            f"one with {' or '.join(ACTIVATIONS)}"
        )
    if len(set(named.values())) > 1:
        raise ValueError(
            f"the stacks of {type(model).__name__} have activation functions {named}; valid is "
            "one: pass the part of the model with one stack"
        )
    activation = ACT2FN[next(iter(named.values()))]
    if isinstance(activation, nn.Module) and any(True for _ in activation.parameters()):
        raise ValueError(
            f"activation {next(iter(named.values()))!r} of {type(model).__name__} has weights of "
            f"its own in every layer; {WITHOUT}"
        )
    return activation


def _list_activations(model: nn.Module, stack: Stack) -> Iterator[str]:
    for config in find_configs(model, stack.path):
        for name in ACTIVATIONS:
            if isinstance(getattr(config, name, None), str):
                yield getattr(config, name)


def reads_tokens(model: nn.Module, stack: Stack) -> bool:
    """Whether the part of a model that a stack is in reads tokens, which may be padding.

    Images and sounds come in through something else than an embedding.
    """
    parts = stack.path.split(".")
    for n in range(len(parts) - 1, 0, -1):
        module = unwrap(model).get_submodule(".".join(parts[:n]))
        try:
            return isinstance(module.get_input_embeddings(), nn.Embedding)
        except (AttributeError, NotImplementedError):  # not a model of its own
            continue
    return True


def check_stacks(stacks: dict[str, Stack], layers: dict[str, int]) -> None:
    """Check that stacks are as deep as expected, and their sublayers of one width.

    Args:
        stacks: what `find_stacks` found.
        layers: expected number of layers of each stack.

    Raises:
        ValueError: another depth, or FF sublayers of different d_ff in one stack.
    """
    found = {name: len(stack) for name, stack in stacks.items()}
    if found != layers:
        raise ValueError(f"layers is {layers}; valid is what the model has: {found}")
    check_widths(stacks)


def check_widths(stacks: dict[str, Stack]) -> None:
    """Check that the FF sublayers of a stack are of one width.

    Raises:
        ValueError: several widths, such as one budget for all layers leaves.
    """
    for name, stack in stacks.items():
        widths = sorted({ff.d_ff for ff in stack.sublayers})
        if len(widths) > 1:
            raise ValueError(
                f"the FF sublayers of the {name} have d_ff {widths}; valid is one width in a stack"
            )


def _find_lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """The lists of layers with attention, of one inside another the outer one."""
    above = "\n"
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not path.startswith(above):
            above = f"{path}."
            if _has_attention(module):
                yield path, module


def _has_attention(layer: nn.Module) -> bool:
    return any(map(is_attention, layer.modules()))


def _holds_layers(layers: nn.ModuleList) -> bool:
    """Whether the layers have whole layers inside: stages, or a few that run many times."""
    return any(
        _has_attention(inner) and isinstance(find_sublayer(inner), FeedForward)
        for layer in layers
        for nested in layer.modules()
        if isinstance(nested, nn.ModuleList)
        for inner in nested.children()
    )


def _name_stacks(model: nn.Module, paths: list[str]) -> list[str]:
    """Names of the stacks, each its own."""
    if len(paths) == 1:
        for name in ("encoder", "decoder"):
            if name in paths[0].split("."):
                return [name]
        return ["decoder" if _is_causal(model, paths[0]) else "encoder"]
    return _tell_apart([path.split(".") for path in paths])


def _tell_apart(paths: list[list[str]]) -> list[str]:
    """The first part in which each path differs from the others, further ones where it must."""
    if len(paths) == 1:
        return [""]
    first = [path[0] for path in paths]
    groups = {part: [path[1:] for path in paths if path[0] == part] for part in first}
    rest = {part: iter(_tell_apart(group)) for part, group in groups.items()}
    if len(groups) == 1:
        return list(rest[first[0]])
    return ["_".join(filter(None, (_clip(part), next(rest[part])))) for part in first]


def _clip(part: str) -> str:
    return re.sub(r"_(model|tower|module)$", "", part)


def _is_causal(model: nn.Module, path: str) -> bool:
    """Whether a stack predicts: it says so, or its type of model is only used for that."""
    from transformers.models.auto import modeling_auto  # ours register with it, and import this

    if any(getattr(m, "is_causal", False) for m in model.get_submodule(path).modules()):
        return True
    kind = getattr(getattr(model, "config", None), "model_type", None)
    masked = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not masked
