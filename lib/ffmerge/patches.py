"""Plan and Patch: what a variant does to a model, and the few tensors in which it differs.

A plan says which sublayers share one FF and which layers go; applied to a model it gives the
variant's structure. A patch adds the tensors that differ from the base; applied to the base it
gives the variant, bit for bit. Methods (`ffmerge.methods`) make patches; nothing else does.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ffmerge.files import replacing
from ffmerge.groups import Anchor, Group, check_groups, format_layers
from ffmerge.sublayers import Stack, find_stacks, set_layers

Groups = Mapping[str, tuple[Group, ...]]


@dataclass(frozen=True)
class Plan:
    """What a variant does to a model, small enough to read.

    Attributes:
        groups: stack to the groups of sublayers that share one FF.
        dropped: stack to the layers that go, attention and all (Section 4.4).
    """

    groups: Groups = field(default_factory=dict)
    dropped: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        """`5-9`, or where stacks differ `encoder 0-2, decoder 3-5`; nothing for the base."""
        texts = {name: " ".join(map(str, groups)) for name, groups in self.groups.items()}
        texts |= {name: format_layers(layers) for name, layers in self.dropped.items()}
        if len(set(texts.values())) <= 1:
            return next(iter(texts.values()), "")
        return ", ".join(f"{name} {text}" for name, text in texts.items())

    def anchored(self, anchor: Anchor) -> "Plan":
        """The same plan with another anchor in every group (Section 5.3)."""
        groups = {name: tuple(g.anchored(anchor) for g in gs) for name, gs in self.groups.items()}
        return replace(self, groups=groups)

    def to_json(self) -> dict:
        """Plain values, for a file; what a plan does not use is left out."""
        groups = {
            name: [{"layers": list(g.layers), "anchor": g.anchor} for g in groups]
            for name, groups in self.groups.items()
        }
        dropped = {name: list(layers) for name, layers in self.dropped.items()}
        return {key: value for key, value in (("groups", groups), ("dropped", dropped)) if value}

    @classmethod
    def from_json(cls, content: Mapping) -> "Plan":
        """The plan that `to_json` wrote.

        Raises:
            ValueError: it holds something that a plan does not know.
        """
        unknown = set(content) - {"groups", "dropped"}
        if unknown:
            raise ValueError(f"plan holds {min(unknown)!r}; valid are groups and dropped")
        groups = {
            name: tuple(Group(tuple(g["layers"]), g["anchor"]) for g in groups)
            for name, groups in content.get("groups", {}).items()
        }
        dropped = {name: tuple(layers) for name, layers in content.get("dropped", {}).items()}
        return cls(groups, dropped)


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
    """The structure of a variant: groups tied, dropped layers gone, all weights as they were.

    Args:
        model: an uncompressed model; left as it is.
        plan: what to do.

    Returns:
        A copy, always. In a group every layer holds the first one's sublayer, the same module
        objects: counted once in parameters, memory, optimizer state and on disk.

    Raises:
        ValueError: an unknown stack, a layer outside its stack, groups that overlap, sublayers that
            share already, or no layer left.
    """
    check_plan(model, plan)
    model = copy.deepcopy(model)
    stacks = find_stacks(model)
    for name, groups in plan.groups.items():
        sublayers = stacks[name].sublayers
        for group in groups:
            for i in group.layers[1:]:
                sublayers[i].share(sublayers[group.layers[0]])
    for name, layers in plan.dropped.items():
        set_layers(model, stacks[name], [i for i in range(len(stacks[name])) if i not in layers])
    return model


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
    stacks = find_stacks(model)
    for name in (*plan.groups, *plan.dropped):
        if name not in stacks:
            raise ValueError(f"stack {name!r} is unknown; valid are {', '.join(stacks)}")
    for name, groups in plan.groups.items():
        check_groups(groups, len(stacks[name]), name)
    for name, stack in stacks.items():
        outputs = [ff.module("W_out") for ff in stack.sublayers]
        if len(set(map(id, outputs))) < len(outputs):
            raise ValueError(
                f"FF sublayers of the {name} share already; valid is an uncompressed model: put "
                "all groups into one plan"
            )
    for name, layers in plan.dropped.items():
        n = len(stacks[name])
        if not set(layers) < set(range(n)):
            raise ValueError(
                f"layers {format_layers(layers)} cannot be dropped from the {name}; valid are at "
                f"most {n - 1} of its layers 0 to {n - 1}"
            )
    return stacks


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
