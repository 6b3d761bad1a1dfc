"""The FF sublayer of one layer: its view, and why some layers have none that can be merged.

Known by shape, not by name: the projections outside the attention modules are the FF sublayer; the
last one is W_out, the others read the residual stream.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ffmerge.projections import (
    find_projections,
    find_shape,
    is_attention,
    narrow_inputs,
    narrow_outputs,
)
from ffmerge.weights import Weights

SUFFIXES = (("W_in", "in"), ("W_gate", "gate"), ("W_out", "out"))
# W_gate and W_in in one matrix, W_gate (the activated half) first: in a shape nothing tells which
# half is which, so only names that were looked up are taken.
FUSED = ("gate_up_proj", "Wi")

EXPERTS = "a mixture of experts"
BETWEEN = "a norm or other weights between W_in and W_out, which would have to move along"
HALVES = "two projections in one matrix, in an unknown order"
ADAPTERS = "adapters on its projections (fold them in first)"
NESTED = "layers inside layers (stages, or layers that run more than once)"
OTHER = "more or other linear projections outside attention than one FF sublayer has"
REASONS = (EXPERTS, BETWEEN, HALVES, ADAPTERS, NESTED, OTHER)


@dataclass(frozen=True)
class FeedForward:
    """A view of the FF sublayer of one layer: its projections, whatever they are called.

    Attributes:
        layer: the transformer layer that the sublayer belongs to.
        names: projection ("W_in", "W_gate" if gated, "W_out") to module name inside `layer`.
        halves: of projections that are one matrix, which half of its rows each one is; else empty.
    """

    layer: nn.Module
    names: dict[str, str]
    halves: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_gated(self) -> bool:
        """Whether the features are a component-wise product (SwiGLU and its kin, Eq. 7)."""
        return "W_gate" in self.names

    @property
    def d_ff(self) -> int:
        """Number of neurons, the feed-forward dimension."""
        return find_shape(self.module("W_out"))[1]

    @property
    def n_parameters(self) -> int:
        """Number of its weights and biases."""
        return sum(p.numel() for module in self.modules() for p in module.parameters())

    @property
    def n_fixed(self) -> int:
        """Number of those that stay at any width: b_out."""
        return 0 if self.module("W_out").bias is None else self.module("W_out").bias.numel()

    def module(self, projection: str) -> nn.Module:
        """The module of "W_in", "W_gate" or "W_out"; two of them may be one matrix."""
        return self.layer.get_submodule(self.names[projection])

    def modules(self) -> list[nn.Module]:
        """Every module of it, once."""
        return [self.layer.get_submodule(name) for name in dict.fromkeys(self.names.values())]

    def read(self) -> Weights:
        """Copy the weights out, in the paper's layout, whatever the module's own (Linear, Conv1D).

        Invariant: `write(read())` changes nothing.
        """
        values = {}
        for projection, suffix in self._held():
            module = self.module(projection)
            weight = module.weight.detach()
            weight = weight.T if isinstance(module, Conv1D) else weight
            values[projection] = self._part(projection, weight).clone()
            if module.bias is not None:
                values[f"b_{suffix}"] = self._part(projection, module.bias.detach()).clone()
        return Weights(**values)

    def arrange(self, weights: Weights) -> dict[str, Tensor]:
        """Weights as the modules hold them: parameter name inside the layer to tensor."""
        rows: dict[str, list[Tensor]] = {}
        for projection, suffix in sorted(
            self._held(), key=lambda item: self.halves.get(item[0], 0)
        ):
            module, name = self.module(projection), self.names[projection]
            weight = getattr(weights, projection)
            weight = weight.T if isinstance(module, Conv1D) else weight
            rows.setdefault(f"{name}.weight", []).append(weight)
            if module.bias is not None:
                rows.setdefault(f"{name}.bias", []).append(getattr(weights, f"b_{suffix}"))
        return {name: r[0] if len(r) == 1 else torch.cat(r) for name, r in rows.items()}

    @torch.no_grad()
    def write(self, weights: Weights) -> None:
        """Copy `weights` (shapes as in `Weights`) into the modules, in place."""
        for name, tensor in self.arrange(weights).items():
            self.layer.get_parameter(name).copy_(tensor)

    @torch.no_grad()
    def resize(self, d_ff: int) -> None:
        """Keep only the first `d_ff` neurons, one or more: new modules, of the same kind."""
        for name in dict.fromkeys(self.names.values()):
            module = self.layer.get_submodule(name)
            if name == self.names["W_out"]:
                narrow = narrow_inputs(module, d_ff)
            else:
                narrow = narrow_outputs(module, d_ff, len(self.halves) or 1)
            self.layer.set_submodule(name, narrow, strict=True)

    def share(self, other: "FeedForward") -> None:
        """Tie this sublayer to `other`: from now on both are the same module objects.

        Modules, not parameters: LLM.int8() silently corrupts parameters shared between modules.
        """
        for projection, name in self.names.items():
            self.layer.set_submodule(name, other.module(projection), strict=True)

    def _held(self) -> Iterator[tuple[str, str]]:
        return ((p, suffix) for p, suffix in SUFFIXES if p in self.names)

    def _part(self, projection: str, tensor: Tensor) -> Tensor:
        """The rows of one projection: all, or its half."""
        if projection not in self.halves:
            return tensor
        return tensor.chunk(2)[self.halves[projection]]


def find_sublayer(layer: nn.Module) -> FeedForward | str:
    """The FF sublayer of one layer, or which of `REASONS` there is to find none.

    Args:
        layer: attention and the rest.
    """
    if has_experts(layer):
        return EXPERTS
    projections = list(find_projections(layer, outside_attention=True))
    if any("lora_" in name or "base_layer" in name for name, _ in projections):
        return ADAPTERS
    if len(projections) not in (2, 3):
        return OTHER
    *inner, (out_name, W_out) = projections
    d_model, d_ff = find_shape(W_out)
    names, halves = {"W_in": inner[-1][0], "W_out": out_name}, {}
    shapes = [find_shape(module) for _, module in inner]
    if shapes == [(2 * d_ff, d_model)]:
        fused_name, fused = inner[0]
        if fused_name.rpartition(".")[2] not in FUSED or not isinstance(fused, nn.Linear):
            return HALVES
        names, halves = names | {"W_gate": fused_name}, {"W_gate": 0, "W_in": 1}
    elif set(shapes) != {(d_ff, d_model)}:
        return OTHER
    elif len(inner) == 2:  # the gate is named so, or else comes first (T5's wi_0)
        gate, other = sorted(inner, key=lambda item: "gate" not in item[0])
        names = {"W_in": other[0], "W_gate": gate[0], "W_out": out_name}
        if d_ff == d_model and not any(word in gate[0] for word in ("gate", "wi_0")):
            return OTHER  # of equal shapes, nothing tells which is which (RWKV)
    if _has_weights_between(layer, list(names.values()), d_ff, d_model):
        return BETWEEN
    return FeedForward(layer, names, halves)


def has_experts(layer: nn.Module) -> bool:
    """Whether a layer chooses between several FFs; one that all tokens share is not its FF."""
    return any(
        "expert" in name.lower() or "Expert" in type(module).__name__
        for name, module in layer.named_modules()
    )


def _has_weights_between(layer: nn.Module, names: list[str], d_ff: int, d_model: int) -> bool:
    """Whether something else has a weight, or a buffer, for every neuron.

    Where d_ff is d_model, a norm of the residual stream has as many: then it counts only inside of
    the FF's own module, and elsewhere in a layer between the projections, in order of registration.
    """
    if d_ff == 1:  # what is left where an FF was dropped: nothing to move
        return False
    passed, total = 0, len(set(names))
    own = tuple(f"{name}." for name in names)  # such as what a projection is computed from
    above = {name.rpartition(".")[0] for name in names}  # the FF's own module, if they have one
    inside = f"{above.pop()}." if len(above) == 1 else "."
    for name, module in layer.named_modules():
        if name in names:
            passed += 1
        elif any(d_ff in held.shape for held in _list_tensors(module)):
            is_between = d_ff != d_model or 0 < passed < total
            is_between |= inside != "." and name.startswith(inside)
            if is_between and not name.startswith(own) and not _is_inside_attention(layer, name):
                return True
    return False


def _list_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Its own parameters and buffers, without those of modules inside."""
    return chain(module.parameters(recurse=False), module.buffers(recurse=False))


def _is_inside_attention(layer: nn.Module, name: str) -> bool:
    parts = name.split(".")
    above = (".".join(parts[: n + 1]) for n in range(len(parts)))
    return any(is_attention(layer.get_submodule(path)) for path in above)
