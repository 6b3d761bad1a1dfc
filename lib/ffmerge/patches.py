"""Plan and Patch: what a variant does to a model, and the few tensors in which it differs.

A plan says which sublayers share one FF and which layers go; applied to a model it gives the
variant's structure. A patch adds the tensors that differ from the base; applied to the base it
gives the variant, bit for bit. Methods (`ffmerge.methods`) make patches; nothing else does.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ffmerge.checks import check_arrival, check_structure, check_unshared, check_writable
from ffmerge.files import replacing
from ffmerge.groups import Anchor, Group, check_groups, format_layers
from ffmerge.saving.sharing import remember
from ffmerge.sublayers import Stack, find_stacks, set_layers, set_widths, unwrap

Groups = Mapping[str, tuple[Group, ...]]
Layers = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Plan:
    """What a variant does to a model, small enough to read.

    Attributes:
        groups: stack to the groups of sublayers that share one FF.
        dropped: stack to the layers that go, attention and all (Section 4.4).
        neurons: stack to how many neurons stay in each of its FF sublayers; where the whole FF goes
            it is 1, a silent one.
        attention: stack to the groups of self-attention sublayers that share W_v and W_o.
    """

    groups: Groups = field(default_factory=dict)
    dropped: Layers = field(default_factory=dict)
    neurons: Layers = field(default_factory=dict)
    attention: Groups = field(default_factory=dict)

    def __str__(self) -> str:
        """`5-9`, or where stacks differ `encoder 0-2, decoder 3-5`; nothing for the base.

        So it is for FFs, for attention, and for both if their groups are the same.

        Of neurons how many stay in a sublayer: `170 neurons`, or from the fewest to the most, or
        the layers that are left without any.
        """
        texts = {name: " ".join(map(str, groups)) for name, groups in self.groups.items()}
        texts |= {f"{n} attention": " ".join(map(str, gs)) for n, gs in self.attention.items()}
        texts |= {name: format_layers(layers) for name, layers in self.dropped.items()}
        texts |= {name: _format_widths(widths) for name, widths in self.neurons.items()}
        if len(set(texts.values())) <= 1:
            return next(iter(texts.values()), "")
        return ", ".join(f"{name} {text}" for name, text in texts.items())

    def anchored(self, anchor: Anchor) -> "Plan":
        """The same plan with another anchor in every group (Section 5.3)."""
        groups, attention = (
            {name: tuple(g.anchored(anchor) for g in gs) for name, gs in of_kind.items()}
            for of_kind in (self.groups, self.attention)
        )
        return replace(self, groups=groups, attention=attention)

    def to_json(self) -> dict:
        """Plain values, for a file; what a plan does not use is left out."""
        content = {
            key: {
                name: [{"layers": list(g.layers), "anchor": g.anchor} for g in groups]
                for name, groups in getattr(self, key).items()
            }
            for key in ("groups", "attention")
        }
        for key in ("dropped", "neurons"):
            content[key] = {name: list(values) for name, values in getattr(self, key).items()}
        return {key: value for key, value in content.items() if value}

    @classmethod
    def from_json(cls, content: Mapping) -> "Plan":
        """The plan that `to_json` wrote.

        Raises:
            ValueError: it holds something that a plan does not know.
        """
        valid = [f.name for f in fields(cls)]
        unknown = set(content) - set(valid)
        if unknown:
            raise ValueError(f"plan holds {min(unknown)!r}; valid are {', '.join(valid)}")
        groups, attention = (
            {
                name: tuple(Group(tuple(g["layers"]), g["anchor"]) for g in groups)
                for name, groups in content.get(key, {}).items()
            }
            for key in ("groups", "attention")
        )
        dropped, neurons = (
            {name: tuple(values) for name, values in content.get(key, {}).items()}
            for key in ("dropped", "neurons")
        )
        return cls(groups, dropped, neurons, attention)


@dataclass(frozen=True)
class Patch:
    """A plan and the tensors of the variant that differ from the base.

    Attributes:
        plan: the structure.
        tensors: parameter names of the variant to values; of a shared sublayer its first name.
    """

    plan: Plan
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def apply_plan(model: nn.Module, plan: Plan) -> nn.Module:
    """The structure of a variant: groups tied, layers and neurons gone, all weights as they were.

    Args:
        model: an uncompressed model; left as it is.
        plan: what to do.

    Returns:
        A copy, always; of a compiled model one that is not. In a group every layer holds the first
        one's sublayer, the same module objects: counted once in parameters, memory, optimizer state
        and on disk.

    Raises:
        ValueError: an unknown stack, a layer outside its stack, groups that overlap, sublayers that
            share already, weights that cannot be written to, no layer left, layers whose absence
            no configuration can say, more neurons than there are, or attention that cannot be
            merged.
        RuntimeError: the result is not what the plan promised.
    """
    check_plan(model, plan)
    base = unwrap(model)
    model = copy.deepcopy(base)
    stacks = find_stacks(model)
    for name, widths in plan.neurons.items():
        set_widths(model, stacks[name], widths)
    for name, groups in plan.groups.items():
        sublayers = stacks[name].sublayers
        for group in groups:
            for i in group.layers[1:]:
                sublayers[i].share(sublayers[group.layers[0]])
    for name, groups in plan.attention.items():
        attentions = stacks[name].attentions()
        for group in groups:
            for i in group.layers[1:]:
                attentions[i].share(attentions[group.layers[0]])
    for name, layers in plan.dropped.items():
        set_layers(model, stacks[name], [i for i in range(len(stacks[name])) if i not in layers])
    check_structure(base, model, plan.groups, plan.dropped, plan.neurons, plan.attention)
    return remember(model, plan.to_json())


@torch.no_grad()
def apply_patch(model: nn.Module, patch: Patch) -> nn.Module:
    """The variant that a patch describes: `apply_plan`, then its tensors, bit for bit.

    Args:
        model: the base; left as it is.
        patch: made from this base.

    Returns:
        A copy, always; of an empty patch an equal one.

    Raises:
        ValueError: as `apply_plan`, or a tensor that the variant does not have.
        RuntimeError: as `apply_plan`, or a tensor did not arrive.
    """
    model = apply_plan(model, patch.plan)
    parameters = dict(model.named_parameters())
    for name, tensor in patch.tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise ValueError(
                f"patch holds {name} of shape {tuple(tensor.shape)}, which is not of this model; "
                "valid is a patch that was made from the same base"
            )
        parameters[name].copy_(tensor)
    check_arrival(model, patch.tensors)
    return model


def check_plan(model: nn.Module, plan: Plan) -> dict[str, Stack]:
    """Check that a plan fits a model.

    Args:
        model: an uncompressed model.
        plan: what is to be done to it.

    Returns:
        The model's stacks, by name.

    Raises:
        ValueError: as `apply_plan`.
    """
    stacks, kind = find_stacks(model), type(model).__name__
    if not hasattr(model, "config"):
        raise ValueError(f"model {kind} has no configuration; valid is a model of transformers")
    for name in (*plan.groups, *plan.dropped, *plan.neurons, *plan.attention):
        if name not in stacks:
            raise ValueError(f"stack {name!r} is unknown; valid are {', '.join(stacks)}")
    for name, groups in plan.groups.items():
        check_groups(groups, len(stacks[name]), name)
    for name, groups in plan.attention.items():
        check_groups(groups, len(stacks[name]), name)
        stacks[name].attentions()
    check_writable(model, stacks)
    check_unshared(stacks)
    for name, layers in plan.dropped.items():
        n = len(stacks[name])
        if not set(layers) < set(range(n)):
            raise ValueError(
                f"layers {format_layers(layers)} cannot be dropped from the {name}; valid are at "
                f"most {n - 1} of its layers 0 to {n - 1}"
            )
    for name, widths in plan.neurons.items():
        valid = [ff.d_ff for ff in stacks[name].sublayers]
        fits = len(widths) == len(valid) and all(map(int.__le__, widths, valid))
        if not fits or min(widths) < 1:
            raise ValueError(
                f"neurons of the {name} are {list(widths)}; valid is one number for each of its "
                f"{len(valid)} sublayers, from 1 to {max(valid)}"
            )
        for group in plan.groups.get(name, ()):
            if len({widths[i] for i in group.layers}) > 1:
                raise ValueError(
                    f"group {group} of the {name} has {[widths[i] for i in group.layers]} neurons; "
                    "valid is one width in a group"
                )
    return stacks


def _format_widths(widths: tuple[int, ...]) -> str:
    low, high = min(widths), max(widths)
    if low == 1:
        return f"no FF in {format_layers(i for i, width in enumerate(widths) if width == 1)}"
    return f"{low} neurons" if low == high else f"{low}-{high} neurons"


def save_patch(patch: Patch, path: Path) -> None:
    """Write a patch as one safetensors file, its plan as metadata; all of it, or nothing.

    Args:
        patch: what `load_patch` is to give again, bit for bit.
        path: of the file; replaced if it exists.
    """
    tensors = {name: tensor.contiguous() for name, tensor in sorted(patch.tensors.items())}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"plan": json.dumps(patch.plan.to_json())})


def load_patch(path: Path) -> Patch:
    """Read what `save_patch` wrote."""
    with safe_open(path, "pt") as file:
        plan = Plan.from_json(json.loads(file.metadata()["plan"]))
        return Patch(plan, {name: file.get_tensor(name) for name in file.keys()})


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, embeddings included, shared ones once (footnote 9)."""
    return sum(parameter.numel() for parameter in model.parameters())
