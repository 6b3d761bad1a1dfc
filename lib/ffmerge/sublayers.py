"""Where the feed-forward (FF) sublayers of any transformer are (paper, Section 3.1).

The only file that knows architectures, and it knows them by shape, not by name. In every
layer the projections outside the attention modules are the FF sublayer: the last one is W_out,
the others read the residual stream. So a new model of the usual kind needs no entry anywhere.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from ffmerge.weights import Weights

PROJECTIONS = (nn.Linear, Conv1D)


@dataclass(frozen=True)
class FeedForward:
    """A view of the FF sublayer of one layer: its projections, whatever they are called.

    Attributes:
        layer: the transformer layer that the sublayer belongs to.
        names: projection ("W_in", "W_gate" if gated, "W_out") to module name inside `layer`.
    """

    layer: nn.Module
    names: dict[str, str]

    @property
    def is_gated(self) -> bool:
        """Whether the features are a component-wise product (SwiGLU and its kin, Eq. 7)."""
        return "W_gate" in self.names

    @property
    def d_ff(self) -> int:
        """Number of neurons, the feed-forward dimension."""
        return _shape(self.module("W_in"))[0]

    @property
    def n_parameters(self) -> int:
        """Number of its weights and biases."""
        return sum(p.numel() for name in self.names for p in self.module(name).parameters())

    def module(self, projection: str) -> nn.Module:
        """The module of "W_in", "W_gate" or "W_out"."""
        return self.layer.get_submodule(self.names[projection])

    def read(self) -> Weights:
        """Copy the weights out, in the paper's layout, whatever the module's own (Linear, Conv1D).

        Invariant: `write(read())` changes nothing.
        """
        values = {}
        for projection, suffix in (("W_in", "in"), ("W_gate", "gate"), ("W_out", "out")):
            if projection in self.names:
                module = self.module(projection)
                weight = module.weight.detach()
                values[projection] = (weight.T if isinstance(module, Conv1D) else weight).clone()
                if module.bias is not None:
                    values[f"b_{suffix}"] = module.bias.detach().clone()
        return Weights(**values)

    def arrange(self, weights: Weights) -> dict[str, Tensor]:
        """Weights as the modules hold them: parameter name inside the layer to tensor."""
        tensors = {}
        for projection, suffix in (("W_in", "in"), ("W_gate", "gate"), ("W_out", "out")):
            if projection in self.names:
                module, weight = self.module(projection), getattr(weights, projection)
                name = self.names[projection]
                tensors[f"{name}.weight"] = weight.T if isinstance(module, Conv1D) else weight
                if module.bias is not None:
                    tensors[f"{name}.bias"] = getattr(weights, f"b_{suffix}")
        return tensors

    @torch.no_grad()
    def write(self, weights: Weights) -> None:
        """Copy `weights` (shapes as in `Weights`) into the modules, in place."""
        for name, tensor in self.arrange(weights).items():
            self.layer.get_parameter(name).copy_(tensor)

    @torch.no_grad()
    def resize(self, d_ff: int) -> None:
        """Keep only the first `d_ff` neurons, one or more: new modules, of the same kind."""
        for projection, name in self.names.items():
            module, is_out = self.module(projection), projection == "W_out"
            narrow = copy.copy(module)  # its class, hooks and settings; the parameters are new
            narrow._parameters = dict(module._parameters)
            weight, axis = module.weight, int(is_out != isinstance(module, Conv1D))
            narrow.weight = nn.Parameter(weight.narrow(axis, 0, d_ff).clone())
            if module.bias is not None:
                bias = module.bias if is_out else module.bias[:d_ff]
                narrow.bias = nn.Parameter(bias.clone())
            if isinstance(module, nn.Linear):
                narrow.out_features, narrow.in_features = narrow.weight.shape
            elif not is_out:
                narrow.nf = d_ff
            self.layer.set_submodule(name, narrow, strict=True)

    def share(self, other: "FeedForward") -> None:
        """Tie this sublayer to `other`: from now on both are the same module objects.

        Modules, not parameters: LLM.int8() silently corrupts parameters shared between modules.
        """
        for projection, name in self.names.items():
            self.layer.set_submodule(name, other.module(projection), strict=True)


@dataclass(frozen=True)
class Stack:
    """The layers of the encoder or of the decoder, merged separately (Section 4.3).

    Attributes:
        name: "encoder" or "decoder".
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
        attentions = [next(m for m in layer.modules() if _is_attention(m)) for layer in self.layers]
        return [list(_projections(attention))[-1][1] for attention in attentions]


def find_stacks(model: nn.Module) -> dict[str, Stack]:
    """Find the stacks of layers that hold FF sublayers (Section 3.1).

    Args:
        model: any transformers model whose layers hold one FF sublayer each.

    Returns:
        {"encoder": Stack, "decoder": Stack}, or one of the two.

    Raises:
        ValueError: no such layers, or several lists of them for one stack.
    """
    stacks: dict[str, Stack] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0:
            continue
        sublayers = [_find_sublayer(layer) for layer in module]
        if any(ff is None for ff in sublayers):
            continue
        name = _stack_name(path, module)
        if name in stacks:
            raise ValueError(
                f"model {type(model).__name__} has two lists of layers for its {name}, "
                f"{stacks[name].path!r} and {path!r}; at most one encoder and one decoder are valid"
            )
        stacks[name] = Stack(name, path, module, tuple(sublayers))
    if not stacks:
        raise ValueError(
            f"model {type(model).__name__} has no FF sublayers that can be found; valid are layers "
            "in a ModuleList with two (or, gated, three) linear projections outside attention"
        )
    return dict(sorted(stacks.items(), reverse=True))  # encoder first: it runs first


def find_depths(model: nn.Module) -> dict[str, int]:
    """Every stack's number of layers."""
    return {name: len(stack) for name, stack in find_stacks(model).items()}


def find_activation(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The activation function of a model's FF sublayers.

    Raises:
        ValueError: its configuration names none.
    """
    for name in ("hidden_act", "activation_function", "hidden_activation", "dense_act_fn"):
        if isinstance(getattr(model.config, name, None), str):
            return ACT2FN[getattr(model.config, name)]
    raise ValueError(
        f"the configuration of {type(model).__name__} names no activation function; valid is one "
        "with hidden_act or activation_function"
    )


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
    for name, stack in stacks.items():
        widths = sorted({ff.d_ff for ff in stack.sublayers})
        if len(widths) > 1:
            raise ValueError(
                f"the FF sublayers of the {name} have d_ff {widths}; valid is one width in a stack"
            )


def set_layers(model: nn.Module, stack: Stack, keep: list[int]) -> Stack:
    """Keep only some layers of a stack, in place, and make the configuration say so.

    Args:
        model: the model that `stack` was found in.
        keep: indices of the layers that stay, ascending.

    Returns:
        The shortened stack.
    """
    depth = len(stack)
    layers = nn.ModuleList(stack.layers[i] for i in keep)
    model.set_submodule(stack.path, layers, strict=True)
    for i, layer in enumerate(layers):  # attention finds its key-value cache by this number
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = i
    config = model.config
    for name in (f"{stack.name}_layers", f"num_{stack.name}_layers", "num_layers"):
        if getattr(config, name, None) == depth:
            setattr(config, name, len(keep))
            break
    else:
        config.num_hidden_layers = len(keep)
    if len(getattr(config, "layer_types", None) or ()) == depth:
        config.layer_types = [config.layer_types[i] for i in keep]
    return replace(stack, layers=layers, sublayers=tuple(stack.sublayers[i] for i in keep))


def set_widths(model: nn.Module, stack: Stack, widths: Sequence[int]) -> None:
    """Keep only the first neurons of every sublayer of a stack, in place.

    Args:
        model: the model that `stack` was found in; where all widths are one, its configuration
            says so, and any tool builds the narrower model.
        widths: of each sublayer: how many neurons stay.
    """
    before = {ff.d_ff for ff in stack.sublayers}
    for ff, d_ff in zip(stack.sublayers, widths, strict=True):
        ff.resize(d_ff)
    if len(set(widths)) == 1 == len(before):
        config, known = model.config, (*before, None)  # GPT-2 says None for 4 × d_model
        for name in (f"{stack.name}_ffn_dim", "intermediate_size", "n_inner", "ffn_dim", "d_ff"):
            if getattr(config, name, 0) in known:
                setattr(config, name, widths[0])
                break


def _find_sublayer(layer: nn.Module) -> FeedForward | None:
    """The FF sublayer of one layer, or None if its projections do not form exactly one."""
    projections = list(_projections(layer, outside_attention=True))
    if len(projections) not in (2, 3):
        return None
    *inner, (out_name, W_out) = projections
    d_model, d_ff = _shape(W_out)
    if any(_shape(module) != (d_ff, d_model) for _, module in inner):
        return None
    names = {"W_in": inner[-1][0], "W_out": out_name}
    if len(inner) == 2:  # the gate is named so, or else comes first (T5's wi_0)
        gate, other = sorted(inner, key=lambda item: "gate" not in item[0])
        names = {"W_in": other[0], "W_gate": gate[0], "W_out": out_name}
    return FeedForward(layer, names)


def _projections(
    module: nn.Module, outside_attention: bool = False, prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of the linear projections below `module`, in order of registration."""
    for name, child in module.named_children():
        if isinstance(child, PROJECTIONS):
            yield prefix + name, child
        elif not (outside_attention and _is_attention(child)):
            yield from _projections(child, outside_attention, f"{prefix}{name}.")


def _is_attention(module: nn.Module) -> bool:
    return "Attention" in type(module).__name__


def _shape(module: nn.Module) -> tuple[int, int]:
    """(n_outputs, n_inputs) of a projection; Conv1D keeps its weight transposed."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    n_inputs, n_outputs = module.weight.shape
    return n_outputs, n_inputs


def _stack_name(path: str, layers: nn.ModuleList) -> str:
    for name in ("encoder", "decoder"):
        if name in path.split("."):
            return name
    causal = any(getattr(module, "is_causal", False) for module in layers.modules())
    return "decoder" if causal else "encoder"
