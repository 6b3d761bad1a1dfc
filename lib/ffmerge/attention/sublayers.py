"""The self-attention sublayer of one layer: its view, and why some have none that can be merged.

As FF sublayers, they are known by shape; only which projection gives the values no shape tells.
"""

import inspect
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ffmerge.attention.heads import HeadWeights
from ffmerge.projections import find_projections, find_shape, is_attention

VALUES = ("v_proj", "value", "v_lin", "v")  # how architectures call W_v
HEAD_SIZES = ("head_dim", "attention_head_size")  # how they call d_head

FUSED = "queries, keys and values in one matrix, a part of which cannot be a module that is shared"
BIASED = "weights of other kinds in it, or a bias for every head, which would have to move along"
STRANGE = "more or other linear projections than W_q, W_k, W_v and W_o, or heads of unknown size"


@dataclass(frozen=True)
class SelfAttention:
    """A view of the self-attention of one layer: its projections, whatever they are called.

    Attributes:
        layer: the transformer layer that it belongs to.
        names: "W_q", "W_k", "W_v", "W_o" to module name inside `layer`.
        d_head: width of a head.
    """

    layer: nn.Module
    names: dict[str, str]
    d_head: int

    @property
    def n_heads(self) -> int:
        """Number of heads, of queries."""
        return find_shape(self.module("W_o"))[1] // self.d_head

    @property
    def n_groups(self) -> int:
        """Number of heads of keys and values; fewer in grouped-query attention."""
        return find_shape(self.module("W_v"))[0] // self.d_head

    @property
    def n_shared(self) -> int:
        """Number of weights and biases that merging shares: those of W_v and W_o."""
        return sum(p.numel() for module in self.modules() for p in module.parameters())

    def module(self, projection: str) -> nn.Module:
        """The module of "W_q", "W_k", "W_v" or "W_o"."""
        return self.layer.get_submodule(self.names[projection])

    def modules(self) -> list[nn.Module]:
        """The modules that merging shares: W_v and W_o; queries and keys stay each layer's own."""
        return [self.module("W_v"), self.module("W_o")]

    def read(self) -> HeadWeights:
        """Copy the weights out. Invariant: writing what `arrange` makes of them changes nothing."""
        values = {}
        for projection in self.names:
            module = self.module(projection)
            weight = module.weight.detach()
            values[projection] = (weight.T if isinstance(module, Conv1D) else weight).clone()
            if module.bias is not None:
                values[f"b_{projection[-1]}"] = module.bias.detach().clone()
        return HeadWeights(**values)

    def arrange(self, weights: HeadWeights, kinds: str = "qkvo") -> dict[str, Tensor]:
        """Weights as the modules hold them: parameter name inside the layer to tensor.

        Args:
            weights: shapes as in `HeadWeights`.
            kinds: which projections, by their letters.
        """
        tensors = {}
        for field in fields(HeadWeights):
            value, projection = getattr(weights, field.name), f"W_{field.name[-1]}"
            if value is None or field.name[-1] not in kinds:
                continue
            if field.name == projection and isinstance(self.module(projection), Conv1D):
                value = value.T
            kind = "weight" if field.name == projection else "bias"
            tensors[f"{self.names[projection]}.{kind}"] = value
        return tensors

    def share(self, other: "SelfAttention") -> None:
        """Tie W_v and W_o to those of `other`: from now on they are the same module objects."""
        for projection in ("W_v", "W_o"):
            name = self.names[projection]
            self.layer.set_submodule(name, other.module(projection), strict=True)


def find_attention(layer: nn.Module) -> SelfAttention | str:
    """The self-attention sublayer of one layer, or the reason why it cannot be merged.

    Args:
        layer: attention and the rest; of several attentions the first one reads its own stack.
    """
    path, attention = next((n, m) for n, m in layer.named_modules() if is_attention(m))
    modules = {f"{path}.{name}": module for name, module in find_projections(attention)}
    values = [name for name in modules if name.rpartition(".")[2] in VALUES]
    if not values and len(modules) in (2, 3):
        return FUSED
    if len(values) != 1 or len(modules) != 4:
        return STRANGE
    W_o = next(reversed(modules))
    parent = layer.get_submodule(values[0].rpartition(".")[0])
    d_head = next((d for n in HEAD_SIZES if type(d := getattr(parent, n, None)) is int), None)
    inner = [name for name in modules if name not in (values[0], W_o)]
    rows = {name: find_shape(module)[0] for name, module in modules.items()}
    n_inputs = find_shape(modules[W_o])[1]
    inner.sort(key=lambda name: rows[name] != n_inputs)  # W_k is the narrower one, if one is
    names = {"W_q": inner[0], "W_k": inner[1], "W_v": values[0], "W_o": W_o}
    fits = rows[names["W_q"]] == n_inputs and rows[names["W_k"]] == rows[names["W_v"]]
    if not fits or not d_head or rows[names["W_v"]] % d_head or n_inputs % rows[names["W_v"]]:
        return STRANGE
    view = SelfAttention(layer, names, d_head)
    return BIASED if _knows_heads(parent, attention, view) else view


def _knows_heads(parent: nn.Module, attention: nn.Module, view: SelfAttention) -> bool:
    """Whether anything but the projections may tell one head from another.

    A norm of d_head numbers does not: it is the same for all.
    """
    own = {
        id(p) for name in view.names.values() for p in view.layer.get_submodule(name).parameters()
    }
    others = [p for p in parent.parameters() if id(p) not in own]
    norm = torch.Size([view.d_head])
    if any(p.shape != norm or view.n_heads == view.d_head for p in others):
        return True
    takes = {n for m in (parent, attention) for n in inspect.signature(m.forward).parameters}
    return any(name == "alibi" or name.endswith("bias") for name in takes)
